// Illegal combinations, each with its one line, word for word.
#include <gtest/gtest.h>

#include <functional>

#include "kvcache/sparse/checker.h"

namespace lacuna::kvcache {
namespace {

using Lines = std::vector<std::string>;
using Change = std::function<void(SparseProfile&)>;

// A legal profile that uses most sections: page bounds for decode, pooled blocks for prefill.
SparseProfile Legal() {
  SparseProfile p;
  p.name = "p";
  p.decode_metadata.kind = "minmax";
  p.decode_score = {.kind = "bound", .query = "head", .normalise = false, .pool = "max"};
  p.decode_select.kind = "top_k";
  p.decode_select.budget_tokens = 1024;
  p.prefill_estimate.kind = "pooled";
  p.prefill_select.kind = "top_p";
  p.prefill_force.local_tokens = 128;
  return p;
}

// Tokens scored by the planners' logits instead.
SparseProfile Planned() {
  SparseProfile p = Legal();
  p.decode_metadata.kind = "none";
  p.decode_score = {.kind = "logits", .query = "head", .normalise = false, .pool = "none"};
  p.decode_select.unit_tokens = 1;
  p.decode_layers.planner_layers = {2};
  return p;
}

SparseProfile Dense() {
  SparseProfile p;
  p.name = "p";
  return p;
}

struct Case final {
  SparseProfile (*base)();
  Change change;
  Lines lines;  // without "p: "
};

void Check(const std::vector<Case>& cases) {
  for (const Case& one : cases) {
    SparseProfile profile = one.base();
    one.change(profile);
    Lines lines;
    for (const std::string& line : one.lines) lines.push_back("p: " + line);
    EXPECT_EQ(CheckProfile(profile), lines);
  }
}

TEST(SparseChecker, LegalOnes) {
  EXPECT_EQ(CheckProfile(Legal()), Lines{});
  EXPECT_EQ(CheckProfile(Planned()), Lines{});
  EXPECT_EQ(CheckProfile(Dense()), Lines{});
}

TEST(SparseChecker, HeadsThatStream) {
  const auto streaming = [](SparseProfile& p) {
    p.who.heads = "streaming";
    p.who.local_tokens = 256;
  };
  Check(
      {{Dense, streaming, {}},
       {Dense,
        [](SparseProfile& p) { p.who.heads = "streaming"; },
        {"who.local_tokens: got 0, need at least 1 with who.heads streaming"}},
       {Dense,
        [&](SparseProfile& p) {
          streaming(p);
          p.who.prefill_local_tokens = 255;
        },
        {"who.prefill_local_tokens: got 255, need 0 or at least who.local_tokens (256)"}},
       {Legal,
        streaming,
        {"prefill.select.kind: got \"top_p\", need all: with who.heads streaming no head selects",
         "decode.select.kind: got \"top_k\", need all: with who.heads streaming no head selects"}},
       {Legal,
        [&](SparseProfile& p) {
          streaming(p);
          p.who.heads = "artefact";
          p.decode_group.owner = "layer";
        },
        {"decode.group.owner: got \"layer\", need kv_head: with who.heads artefact some heads "
         "stream"}}});
}

TEST(SparseChecker, Prefill) {
  Check(
      {{Legal,
        [](SparseProfile& p) { p.prefill_estimate.kind = "probe"; },
        {"prefill.select.kind: got \"top_p\", need vertical_slash or cover with "
         "prefill.estimate.kind probe"}},
       {Legal,
        [](SparseProfile& p) { p.prefill_select.kind = "cover"; },
        {"prefill.select.kind: got \"cover\", need top_k or top_p with prefill.estimate.kind "
         "pooled"}},
       {Legal,
        [](SparseProfile& p) { p.prefill_estimate.kind = "none"; },
        {"prefill.select.kind: got \"top_p\", need all or none with prefill.estimate.kind none"}},
       {Legal,
        [](SparseProfile& p) { p.prefill_estimate.kind = "probe_pooled"; },
        {"prefill.select.kind: got \"top_p\", need cover with prefill.estimate.kind "
         "probe_pooled"}},
       {Legal,
        [](SparseProfile& p) { p.prefill_select.patterns_from = "artefact"; },
        {"prefill.select.patterns_from: got \"artefact\", need profile: only vertical_slash has "
         "patterns"}},
       {Legal,
        [](SparseProfile& p) {
          p.prefill_select.kind = "top_k";
          p.prefill_select.p_from = "artefact";
        },
        {"prefill.select.p_from: got \"artefact\", need profile: only cover and top_p have a p",
         "prefill.select.budget_tokens: got 0, need at least 1 with kind top_k, or a fraction "
         "above 0"}},
       {Legal,
        [](SparseProfile& p) {
          p.prefill_estimate.kind = "probe";
          p.prefill_select.kind = "cover";
          p.prefill_select.scope = "map";
        },
        {"prefill.select.scope: got \"map\", need row: no map is chosen from with kind cover"}},
       {Legal,
        [](SparseProfile& p) {
          p.prefill_select.min_tokens = 8;
          p.prefill_select.max_tokens = 4;
        },
        {"prefill.select.max_tokens: got 4, need 0 or at least min_tokens (8)"}},
       {Legal,
        [](SparseProfile& p) { p.prefill_estimate.block_tokens = 96; },
        {"prefill.estimate.block_tokens: got 96, need 64 or 128"}},
       {Legal,
        [](SparseProfile& p) {
          p.prefill_estimate.pool = "antidiagonal";
          p.prefill_estimate.stride_tokens = 12;
        },
        {"prefill.estimate.stride_tokens: got 12, need a divisor of block_tokens (128)"}},
       {Legal,
        [](SparseProfile& p) { p.prefill_estimate.cell_tokens = 2048; },
        {"prefill.estimate.cell_tokens: got 2048, need 1024: only probes have other cells"}},
       {Legal,
        [](SparseProfile& p) {
          p.prefill_estimate.kind = "probe";
          p.prefill_select.kind = "cover";
          p.prefill_estimate.cell_tokens = 3072;
        },
        {"prefill.estimate.cell_tokens: got 3072, need 1024, 2048, 4096 or 8192"}},
       {Legal,
        [](SparseProfile& p) {
          p.prefill_estimate.kind = "probe";
          p.prefill_select.kind = "cover";
          p.prefill_estimate.probe_place = "tails";
          p.prefill_estimate.probe_fraction = 0.6;
          p.prefill_estimate.probe_rows = 32;
        },
        {"prefill.estimate.probe_fraction: got 0.6, need tails of at most 1024 rows of a cell, "
         "each "
         "rounded up to 64"}},
       {Legal,
        [](SparseProfile& p) { p.prefill_force.local_tokens = 0; },
        {"prefill.force.local_tokens: got 0, need at least 1: a query that sees no key has no "
         "softmax"}},
       {Dense,
        [](SparseProfile& p) { p.prefill_force.sink_tokens = 4; },
        {"prefill.select.kind: got \"all\", need another kind, or no prefill.force: dense prefill "
         "forces nothing"}},
       {Dense,
        [](SparseProfile& p) { p.prefill_correct.kind = "delta"; },
        {"prefill.correct.kind: got \"delta\", need none, or sparse prefill with who.heads all: it "
         "computes rows over all keys"}}});
}

TEST(SparseChecker, PlannersAndReuse) {
  Check(
      {{Planned,
        [](SparseProfile& p) { p.decode_layers.planner_layers.clear(); },
        {"decode.score.kind: got \"logits\", need bound, dot or keys, or "
         "decode.layers.planner_layers that export them"}},
       {Planned,
        [](SparseProfile& p) {
          p.decode_layers.planner_layers.clear();
          p.decode_layers.planners_from = "artefact";
        },
        {}},
       {Legal,
        [](SparseProfile& p) { p.decode_layers.planner_layers = {2}; },
        {"decode.score.kind: got \"bound\", need logits or probs with "
         "decode.layers.planner_layers"}},
       {Planned,
        [](SparseProfile& p) { p.decode_layers.share_layers = 2; },
        {"decode.layers.share_layers: got 2, need 1: planners already say who shares"}},
       {Planned,
        [](SparseProfile& p) { p.decode_refresh.kind = "every_n"; },
        {"decode.refresh.kind: got \"every_n\", need every_step: a planner's scores are of its own "
         "step"}},
       {Planned,
        [](SparseProfile& p) {
          p.decode_layers.dense_layers = {0, 2};
        },
        {"decode.layers.planner_layers: got 2, need a layer that is not in dense_layers"}}});
}

TEST(SparseChecker, MetadataAndScores) {
  Check(
      {{Legal,
        [](SparseProfile& p) { p.decode_metadata.kind = "mean"; },
        {"decode.metadata.kind: got \"mean\", need minmax with decode.score.kind bound"}},
       {Legal,
        [](SparseProfile& p) { p.decode_score.kind = "dot"; },
        {"decode.metadata.kind: got \"minmax\", need mean, labels or lowbit with decode.score.kind "
         "dot"}},
       {Legal,
        [](SparseProfile& p) {
          p.decode_score.kind = "keys";
          p.decode_select.unit_tokens = 64;
        },
        {"decode.metadata.kind: got \"minmax\", need none with decode.score.kind keys"}},
       {Legal,
        [](SparseProfile& p) { p.decode_metadata.precision = "int4"; },
        {"decode.metadata.precision: got \"int4\", need bf16 or int8 with kind minmax"}},
       {Legal,
        [](SparseProfile& p) { p.decode_metadata.sub_tokens = 32; },
        {"decode.metadata.sub_tokens: got 32, need 1, 16 or 64"}},
       {Legal,
        [](SparseProfile& p) { p.decode_metadata.window_tokens = 32; },
        {"decode.metadata.window_tokens: got 32, need 0, or with kind mean a multiple of "
         "sub_tokens (16)"}},
       {Legal,
        [](SparseProfile& p) {
          p.decode_metadata.kind = "labels";
          p.decode_score.kind = "dot";
        },
        {"decode.metadata.sub_tokens: got 16, need 1 with kind labels: each key has its own"}},
       {Legal,
        [](SparseProfile& p) {
          p.decode_metadata = {.kind = "lowbit",
                               .precision = "bf16",
                               .sub_tokens = 1,
                               .window_tokens = 0,
                               .channel_divisor = 8};
          p.decode_score.kind = "dot";
        },
        {"decode.metadata.precision: got \"bf16\", need int8, int4 or int2 with kind lowbit"}},
       {Legal,
        [](SparseProfile& p) { p.decode_score.normalise = true; },
        {"decode.score.normalise: got true, need false: a bound is no probability"}},
       {Legal,
        [](SparseProfile& p) { p.decode_select.kind = "top_p"; },
        {"decode.select.kind: got \"top_p\", need scores with a mass: decode.score.normalise or "
         "kind probs"}},
       {Planned,
        [](SparseProfile& p) {
          p.decode_score.kind = "probs";
          p.decode_select.kind = "top_p";
        },
        {}},
       {Legal,
        [](SparseProfile& p) {
          p.decode_score.kind = "none";
          p.decode_metadata.kind = "none";
        },
        {"decode.score.kind: got \"none\", need a score with decode.select.kind top_k"}},
       {Legal,
        [](SparseProfile& p) { p.decode_select.kind = "all"; },
        {"decode.score.kind: got \"bound\", need none with decode.select.kind all"}},
       {Legal,
        [](SparseProfile& p) { p.decode_score.query = "group_mean"; },
        {"decode.score.query: got \"group_mean\", need head, or decode.group of owner kv_head, "
         "reduce mean"}}});
}

TEST(SparseChecker, GroupsAndSelections) {
  Check(
      {{Legal,
        [](SparseProfile& p) { p.decode_group = {.owner = "layer", .reduce = "union"}; },
        {"decode.group.reduce: got \"union\", need max, mean, sum or round_robin with owner "
         "layer"}},
       {Legal,
        [](SparseProfile& p) { p.decode_group.reduce = "round_robin"; },
        {"decode.group.reduce: got \"round_robin\", need max, mean, sum or union, or owner layer "
         "with top_k"}},
       {Legal,
        [](SparseProfile& p) { p.decode_select.unit_tokens = 1; },
        {"decode.select.unit_tokens: got 1, need at least decode.metadata.sub_tokens (16)"}},
       {Legal,
        [](SparseProfile& p) { p.decode_select.unit_tokens = 32; },
        {"decode.select.unit_tokens: got 32, need 1, 16 or 64"}},
       {Legal,
        [](SparseProfile& p) { p.decode_select.unit_tokens = 16; },
        {"decode.score.pool: got \"max\", need none: a unit holds one entry"}},
       {Legal,
        [](SparseProfile& p) { p.decode_score.pool = "none"; },
        {"decode.score.pool: got \"none\", need max, sum or mean: a unit holds several entries"}},
       {Legal,
        [](SparseProfile& p) { p.decode_select.budget_tokens = 0; },
        {"decode.select.budget_tokens: got 0, need at least 1 with kind top_k, or a fraction above "
         "0"}},
       {Legal,
        [](SparseProfile& p) { p.decode_select.threshold_from = "artefact"; },
        {"decode.select.threshold_from: got \"artefact\", need profile: only threshold has "
         "thresholds"}},
       {Legal,
        [](SparseProfile& p) {
          p.decode_select.min_tokens = 64;
          p.decode_select.max_tokens = 32;
        },
        {"decode.select.max_tokens: got 32, need 0 or at least min_tokens (64)"}}});
}

TEST(SparseChecker, Cascades) {
  const auto refine = [](SparseProfile& p) {
    p.decode_refine.kind = "top_k";
    p.decode_refine.budget_tokens = 128;
  };
  Check({{Legal, refine, {}},
         {Dense,
          refine,
          {"decode.refine.kind: got \"top_k\", need none: there is no first choice with "
           "decode.select.kind all"}},
         {Planned,
          [&](SparseProfile& p) {
            refine(p);
            p.decode_refine.unit_tokens = 16;
          },
          {"decode.refine.unit_tokens: got 16, need at most decode.select.unit_tokens (1)"}},
         {Legal,
          [&](SparseProfile& p) {
            refine(p);
            p.decode_refine.precision = "bf16";
          },
          {"decode.refine.precision: got \"bf16\", need int8, int4 or int2 with source lowbit"}},
         {Legal,
          [&](SparseProfile& p) {
            refine(p);
            p.decode_refine.reduce = "round_robin";
          },
          {"decode.refine.reduce: got \"round_robin\", need max, mean, sum or union"}},
         {Legal,
          [&](SparseProfile& p) {
            refine(p);
            p.decode_group.owner = "layer";
          },
          {"decode.refine.reduce: got \"union\", need max, mean or sum with decode.group.owner "
           "layer"}},
         {Legal,
          [&](SparseProfile& p) {
            refine(p);
            p.decode_refine.budget_tokens = 2048;
          },
          {"decode.refine.budget_tokens: got 2048, need at least 1, and no more than "
           "decode.select.budget_tokens"}}});
}

TEST(SparseChecker, ForcedSetsRefreshAndCorrections) {
  Check(
      {{Legal,
        [](SparseProfile& p) { p.decode_force.local_tokens = 1024; },
        {"decode.select.budget_tokens: got 1024, need more than the 1024 forced tokens"}},
       {Legal,
        [](SparseProfile& p) {
          p.decode_force.budget_share = 0.25;
          p.decode_force.local_tokens = 64;
        },
        {"decode.force.local_tokens: got 64, need 0: budget_share already says it"}},
       {Legal,
        [](SparseProfile& p) {
          p.decode_force.budget_share = 0.25;
          p.decode_force.inside_budget = false;
        },
        {"decode.force.budget_share: got 0.25, need 0, or decode.select.kind top_k with "
         "inside_budget"}},
       {Dense,
        [](SparseProfile& p) { p.decode_select.kind = "none"; },
        {"decode.force.local_tokens: got 0, need at least 1 with decode.select.kind none"}},
       {Dense,
        [](SparseProfile& p) { p.decode_force.sink_tokens = 4; },
        {"decode.select.kind: got \"all\", need another kind, or no decode.force: dense decode "
         "forces nothing"}},
       {Legal,
        [](SparseProfile& p) {
          p.decode_select.kind = "threshold";
          p.decode_force.tail = false;
        },
        {"decode.force.tail: got false, need true, or forced tokens: a threshold may keep "
         "nothing"}},
       {Dense,
        [](SparseProfile& p) { p.decode_refresh.kind = "every_n"; },
        {"decode.refresh.kind: got \"every_n\", need every_step: nothing is chosen anew"}},
       {Legal,
        [](SparseProfile& p) { p.decode_correct.kind = "denominator"; },
        {"decode.correct.kind: got \"denominator\", need none, or decode.select.kind threshold: it "
         "needs the threshold"}}});
}

}  // namespace
}  // namespace lacuna::kvcache
