// Plans: roles of layers and heads, counts at each length, dials, fingerprints, residency.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <random>
#include <set>

#include "kvcache/sparse/decode_counts.h"
#include "kvcache/sparse/plan_storage.h"
#include "kvcache/sparse/prefill_grain.h"
#include "kvcache/sparse/profile_set.h"
#include "kvcache/sparse/resolve.h"
#include "tests/kvcache/sparse_test_models.h"

namespace lacuna::kvcache {
namespace {

using Lines = std::vector<std::string>;

const SparseProfile& Shipped(std::string_view name) {
  static const ProfileSet kSet = ProfileSet::Load(ShippedProfiles()).set;
  return *kSet.Find(name);
}

SparsePlan PlanOf(const SparseProfile& profile, const AttentionShape& shape = Llama8B()) {
  const ResolvedPlan resolved = ResolvePlan(profile, shape, MakeArtefacts(shape));
  EXPECT_EQ(resolved.errors, Lines{});
  return *resolved.plan;
}

// "d" dense, "P" planner, "S" select, a digit: reuse of that layer.
std::string Roles(const SparsePlan& plan) {
  std::string roles;
  for (const LayerPlan& layer : plan.layers) {
    if (layer.decode == LayerRole::kDense) roles += 'd';
    if (layer.decode == LayerRole::kPlanner) roles += 'P';
    if (layer.decode == LayerRole::kSelect) roles += 'S';
    if (layer.decode == LayerRole::kReuse) roles += std::to_string(layer.source);
  }
  return roles;
}

TEST(SparsePlan, LayerNumbersScaleToTheModel) {
  EXPECT_EQ(Roles(PlanOf(Shipped("quest"))), "dd" + std::string(30, 'S'));
  EXPECT_EQ(Roles(PlanOf(Shipped("quest"), Recall12m())), "dSSSSS");
  EXPECT_EQ(Roles(PlanOf(Shipped("tidaldecode"), Recall12m())), "P0P222");
  EXPECT_EQ(Roles(PlanOf(Shipped("tidaldecode"))).substr(0, 16), "ddP2222222222P13");
  EXPECT_EQ(Roles(PlanOf(Shipped("delta"), Recall12m())),
            "P00P3d");  // a planner that nobody reads is dense
  const SparsePlan triangle = PlanOf(Shipped("trianglemix"));
  for (int32_t layer = 0; layer < 32; ++layer) {
    EXPECT_EQ(triangle.layers[static_cast<size_t>(layer)].prefill_sparse, layer >= 16);
  }
  AttentionShape deep = Llama8B();
  deep.layers = 80;
  EXPECT_EQ(Roles(PlanOf(Shipped("quest"), deep)), "dd" + std::string(78, 'S'));
}

TEST(SparsePlan, PlannersAloneExportAndTheLastOneMayNotNeedTo) {
  SparseProfile profile = Shipped("delta");
  profile.who.reference_layers = 0;
  profile.decode_layers.planner_layers = {0, 1, 3, 5};
  const SparsePlan plan = PlanOf(profile, Recall12m());
  EXPECT_EQ(Roles(plan), "dP1P3d");
  EXPECT_EQ(plan.slots, 2);
  EXPECT_EQ(plan.layers[2].slot, 0);
  EXPECT_EQ(plan.layers[4].slot, 1);
  EXPECT_EQ(plan.layers[5].slot, -1);
}

TEST(SparsePlan, PlannersFromTheArtefact) {
  SparseProfile profile = Shipped("delta");
  profile.decode_layers.planners_from = "artefact";
  EXPECT_EQ(Roles(PlanOf(profile, Recall12m())), "P00P33");
}

TEST(SparsePlan, LayersThatShareAChoice) {
  SparseProfile profile = Shipped("quest");
  profile.who.reference_layers = 0;
  profile.decode_layers.share_layers = 2;
  profile.decode_layers.dense_layers = {0, 4};
  const SparsePlan plan = PlanOf(profile, Recall12m());
  EXPECT_EQ(Roles(plan), "dS1SdS");
  EXPECT_TRUE(plan.layers[1].stores_metadata);
  EXPECT_FALSE(plan.layers[2].stores_metadata);
}

TEST(SparsePlan, LayersWithAWindowOfTheirOwnStayAsTheyAre) {
  AttentionShape shape = Recall12m();
  shape.layer_window_tokens = {0, 512, 0, 512, 0, 512};
  EXPECT_EQ(Roles(PlanOf(Shipped("quest"), shape)), "ddSdSd");
  const SparsePlan stream = PlanOf(Shipped("streamingllm"), shape);
  EXPECT_EQ(stream.head(0, 0).role, HeadRole::kStreaming);
  EXPECT_EQ(stream.head(1, 0).role, HeadRole::kFull);
  EXPECT_FALSE(PlanOf(Shipped("xattention"), shape).layers[1].prefill_sparse);
}

TEST(SparsePlan, LayersThatTheModelLacksAndTablesThatAreMissing) {
  SparseProfile profile = Shipped("tidaldecode");
  profile.who.reference_layers = 0;
  EXPECT_EQ(ResolvePlan(profile, Recall12m(), {}).errors,
            Lines{"tidaldecode: decode.layers.planner_layers: got 13, need less than the model's 6 "
                  "layers"});
  EXPECT_EQ(ResolvePlan(Shipped("duoattention"), Recall12m(), {}).errors,
            Lines{"duoattention: artefacts.head_scores: got nothing for this model, need a table "
                  "(lacuna calibrate makes one)"});
  AttentionShape odd = Recall12m();
  odd.q_heads = 7;
  EXPECT_EQ(ResolvePlan(Shipped("quest"), odd, {}).errors,
            Lines{"quest: model: got a shape that is none, need layers, heads, and pages of 16 or "
                  "64 tokens"});
}

TEST(SparsePlan, TheHeadsThatRetrieveLeastStream) {
  SparseProfile profile = Shipped("lserve");
  const SparsePlan plan = PlanOf(profile, Recall12m());
  const SparseArtefacts artefacts = MakeArtefacts(Recall12m());
  std::vector<float> sorted = artefacts.head_scores;
  std::ranges::sort(sorted);
  const float median = sorted[sorted.size() / 2];
  for (size_t i = 0; i < plan.heads.size(); ++i) {
    EXPECT_EQ(plan.heads[i].role,
              artefacts.head_scores[i] < median ? HeadRole::kStreaming : HeadRole::kFull);
  }
  const std::vector<Residency> groups = ResidencyOf(plan);
  ASSERT_EQ(groups.size(), 2u);
  EXPECT_EQ(groups[0].heads.size(), 6u);
  EXPECT_EQ(groups[1].heads.size(), 6u);
  EXPECT_EQ(groups[1].sink_tokens, 128);
  EXPECT_EQ(groups[1].window_tokens, 256);
  EXPECT_EQ(groups[1].prefill_window_tokens, 8192);
  // Equal scores: the first heads stream.
  SparseArtefacts equal = artefacts;
  std::ranges::fill(equal.head_scores, 0.5f);
  profile.who.streaming_fraction = 0.25;
  const SparsePlan ties = *ResolvePlan(profile, Recall12m(), equal).plan;
  for (size_t i = 0; i < 12; ++i) EXPECT_EQ(ties.heads[i].role == HeadRole::kStreaming, i < 3);
}

TEST(SparsePlan, SpansTakeTheWidestOfTheGroup) {
  const AttentionShape shape = Recall12m();
  SparseArtefacts artefacts = MakeArtefacts(shape);
  for (HeadSpan& span : artefacts.spans) span = {-1024, 0.125f};
  artefacts.spans[1] = {512, 0};
  artefacts.spans[2] = {-1024, 0.5f};
  const SparsePlan plan = *ResolvePlan(Shipped("moa"), shape, artefacts).plan;
  EXPECT_EQ(DecodeShape(plan, 0, 0, 2000).window_tokens, 512 - 64);   // 512 beats 2000 / 2 - 1024
  EXPECT_EQ(DecodeShape(plan, 0, 0, 4096).window_tokens, 1024 - 64);  // 1024 beats 512
  EXPECT_EQ(DecodeShape(plan, 0, 0, 4096).sink_tokens, 64);
  EXPECT_EQ(DecodeShape(plan, 0, 1, 4096).window_tokens, 128 - 64);  // at least 128
  EXPECT_EQ(DecodeShape(plan, 0, 0, 500).window_tokens, 0);          // covers everything
  EXPECT_EQ(SpanTokens({100, 0}, 1), 128);
  EXPECT_EQ(SpanTokens({130, 0}, 1), 192);
  EXPECT_EQ(SpanTokens({-1e9f, 0}, 1), 128);
}

TEST(SparsePlan, LabelsTakeTheFirstChannelsOfEachList) {
  const SparsePlan plan = PlanOf(Shipped("double-sparsity"));
  EXPECT_EQ(plan.decode.metadata.channels, 16);
  ASSERT_EQ(plan.channels.size(), 32u * 8 * 16);
  for (size_t at = 0; at < plan.channels.size(); at += 16) {
    EXPECT_TRUE(std::is_sorted(plan.channels.begin() + static_cast<ptrdiff_t>(at),
                               plan.channels.begin() + static_cast<ptrdiff_t>(at + 16)));
  }
  // Head 1's list is (5 c + 1) mod 128: its first 16 channels are 1, 6, ..., 76.
  for (size_t c = 0; c < 16; ++c) EXPECT_EQ(plan.channels[16 + c], static_cast<int16_t>(5 * c + 1));
  EXPECT_EQ(plan.decode.metadata.PageBytes(plan.shape.head_dim, plan.shape.page_tokens),
            64 * (8 + 4));
  const SparsePlan twilight = PlanOf(Shipped("twilight-double-sparsity"));
  EXPECT_EQ(twilight.decode.metadata.channels, 64);
  EXPECT_EQ(twilight.decode.refine_metadata.kind, MetadataKind::kLowBit);
  EXPECT_EQ(twilight.decode.refine_metadata.PageBytes(twilight.shape.head_dim,
                                                      twilight.shape.page_tokens),
            64 * (64 + 4));
  EXPECT_NE(twilight.decode.metadata.channel_lists, plan.decode.metadata.channel_lists);
}

TEST(SparsePlan, PatternsOfEachHead) {
  const SparsePlan plan = PlanOf(Shipped("minference"), Recall12m());
  EXPECT_EQ(plan.prefill_head(0, 0).pattern, (HeadPattern{PatternKind::kAShape, 100, 800}));
  EXPECT_EQ(plan.prefill_head(1, 2).pattern, (HeadPattern{PatternKind::kVerticalSlash, 110, 810}));
  SparseArtefacts artefacts = MakeArtefacts(Recall12m());
  artefacts.patterns[10] = {};
  const SparsePlan partial = *ResolvePlan(Shipped("minference"), Recall12m(), artefacts).plan;
  EXPECT_EQ(partial.prefill_head(1, 2).pattern,
            (HeadPattern{PatternKind::kVerticalSlash, 1000, 6096}));
}

TEST(SparsePlan, BandsAreWholeRotaryPairs) {
  const SparsePlan plan = PlanOf(Shipped("prism"));
  EXPECT_EQ(plan.prefill_dials.low_channels, 96);
  EXPECT_EQ(plan.prefill_dials.high_channels, 64);
  EXPECT_TRUE(plan.prefill_depends_on_end);
  EXPECT_FALSE(PlanOf(Shipped("xattention")).prefill_depends_on_end);
  EXPECT_TRUE(PlanOf(Shipped("minference")).prefill_depends_on_end);
  EXPECT_TRUE(PlanOf(Shipped("trianglemix")).prefill_depends_on_end);
  EXPECT_FALSE(PlanOf(Shipped("quest")).prefill_depends_on_end);
}

// Sets of units, one by one, as the header of decode_counts.h says them.
DecodeCounts PlainCounts(const SparsePlan& plan, int64_t n, int64_t kept) {
  const DecodeDials& d = plan.decode_dials;
  const int64_t unit = plan.decode.unit_tokens, units = (n + unit - 1) / unit;
  int64_t local = d.local_tokens;
  const int64_t budget =
      std::max<int64_t>(d.budget_tokens + static_cast<int64_t>(d.fraction * static_cast<double>(n)),
                        std::max(d.min_tokens, 1));
  if (d.budget_share > 0) {
    local = std::max<int64_t>(
        static_cast<int64_t>(d.budget_share * static_cast<double>(budget)) - d.sink_tokens, 0);
  }
  if (d.tail) local = std::max<int64_t>(local, 1);
  if (local > 0) local += kept;
  std::vector<char> forced(static_cast<size_t>(units), 'm');
  for (int64_t t = 0; t < n; ++t) {
    if (n - t <= local) forced[static_cast<size_t>(t / unit)] = 'l';
  }
  for (int64_t t = 0; t < n; ++t) {
    if (t < d.sink_tokens) forced[static_cast<size_t>(t / unit)] = 's';
  }
  DecodeCounts counts;
  counts.units = static_cast<int32_t>(units);
  counts.sink_units = static_cast<int32_t>(std::ranges::count(forced, 's'));
  counts.local_units = static_cast<int32_t>(std::ranges::count(forced, 'l'));
  const int64_t between = std::ranges::count(forced, 'm');
  const int64_t used = d.inside_budget ? units - between : 0;
  const int64_t ranked = (budget + unit - 1) / unit;
  counts.ranked_units_max =
      static_cast<int32_t>(std::min(std::max<int64_t>(ranked - used, 0), between));
  counts.ranked_units_min = counts.ranked_units_max;
  counts.dense = n < d.dense_below_tokens || between == 0 || counts.ranked_units_max == between;
  return counts;
}

TEST(SparsePlan, CountsOfTopKAgreeWithSetsCountedOneByOne) {
  std::mt19937 random(7);
  const auto below = [&](int64_t n) { return static_cast<int64_t>(random() % n); };
  SparsePlan plan = PlanOf(Shipped("quest"));
  for (int trial = 0; trial < 4000; ++trial) {
    DecodeDials& d = plan.decode_dials;
    plan.decode.unit_tokens = std::array{1, 16, 64}[below(3)];
    d = {};
    d.budget_tokens = static_cast<int32_t>(1 + below(600));
    d.fraction = static_cast<double>(below(3)) / 16;
    d.min_tokens = static_cast<int32_t>(below(2) * 128);
    d.sink_tokens = static_cast<int32_t>(below(100));
    d.tail = below(2) == 0;
    d.inside_budget = below(2) == 0;
    if (below(3) == 0) {
      d.budget_share = 0.25;
    } else {
      d.local_tokens = static_cast<int32_t>(below(200));
    }
    d.dense_below_tokens = static_cast<int32_t>(below(2) * 100);
    const int64_t n = 1 + below(1500), kept = below(4);
    const DecodeCounts counts = CountUnits(plan, n, kept);
    EXPECT_EQ(counts, PlainCounts(plan, n, kept)) << "trial " << trial << ", N " << n;
    const int64_t read = counts.sink_units + counts.local_units + counts.ranked_units_max;
    EXPECT_LE(read, counts.units);
    if (kept == 0 && !counts.dense) {
      const int64_t pages = read * std::max<int64_t>(plan.decode.unit_tokens / 64, 1);
      EXPECT_LE(std::min<int64_t>(pages, (n + 63) / 64), ListPagesMax(plan, n));
    }
  }
}

TEST(SparsePlan, ABudgetThatCoversTheSequenceIsDense) {
  for (const char* name : {"quest", "lserve", "lessismore", "delta", "kinetics", "tokenselect",
                           "double-sparsity", "lacuna-balanced"}) {
    const DialedProfile dialed =
        ApplyDials(Shipped(name), std::vector<DialValue>{{"budget_tokens", 5000}});
    ASSERT_EQ(dialed.errors, Lines{}) << name;
    const SparsePlan plan = PlanOf(dialed.profile);
    EXPECT_TRUE(CountUnits(plan, 5000).dense) << name;
    EXPECT_FALSE(CountUnits(plan, 9000).dense) << name;
  }
  // Of a cascade, both stages.
  std::vector<DialValue> dials = {{"budget_tokens", 5000}};
  EXPECT_FALSE(
      CountUnits(PlanOf(ApplyDials(Shipped("twilight-quest"), dials).profile), 5000).dense);
  dials.push_back({"refine_top_p", 1});
  EXPECT_TRUE(CountUnits(PlanOf(ApplyDials(Shipped("twilight-quest"), dials).profile), 5000).dense);
}

TEST(SparsePlan, WhatCardsSayAboutBudgets) {
  const DecodeCounts quest = CountUnits(PlanOf(Shipped("quest")), 32768);
  EXPECT_EQ(quest.units, 2048);
  EXPECT_EQ(quest.local_units, 1);
  EXPECT_EQ(quest.ranked_units_max, 127);  // with the tail 2048 tokens
  const DecodeCounts less = CountUnits(PlanOf(Shipped("lessismore")), 10000);
  EXPECT_EQ(less.sink_units, 4);
  EXPECT_EQ(less.local_units, 508);  // a quarter of 2048 less 4 sinks
  EXPECT_EQ(less.ranked_units_max, 1536);
  const DecodeCounts select = CountUnits(PlanOf(Shipped("tokenselect")), 10000);
  EXPECT_EQ(select.sink_units + select.local_units + select.ranked_units_max, 128 + 512 + 2048);
  const DecodeCounts heavy = CountUnits(PlanOf(Shipped("double-sparsity")), 32768);
  EXPECT_EQ(heavy.ranked_units_max, 2048);  // a sixteenth
}

TEST(SparsePlan, KeptChoicesKeepWhatWasForced) {
  const SparsePlan plan = PlanOf(Shipped("lserve"));
  EXPECT_TRUE(RefreshDue(plan, -1));
  EXPECT_FALSE(RefreshDue(plan, 3));
  EXPECT_TRUE(RefreshDue(plan, 4));
  EXPECT_TRUE(RefreshDue(PlanOf(Shipped("quest")), 1));
  // The choice was made at 6400 tokens with page 99 as its tail; page 100 has begun since.
  EXPECT_EQ(CountUnits(plan, 6400, 0).local_units, 1);
  EXPECT_EQ(CountUnits(plan, 6402, 2).local_units, 2);
}

TEST(SparsePlan, PromptsAreCutWhereTheirChoicesEnd) {
  EXPECT_EQ(PrefillGrainTokens(PlanOf(Shipped("quest"))), 1);
  EXPECT_EQ(PrefillGrainTokens(PlanOf(Shipped("xattention"))), 128);
  EXPECT_EQ(PrefillGrainTokens(PlanOf(Shipped("lacuna-balanced"))), 128);
  EXPECT_EQ(PrefillGrainTokens(PlanOf(Shipped("delta-streamingllm"))), 128);
  EXPECT_EQ(PrefillGrainTokens(PlanOf(Shipped("prism"))), 1024);
  for (const char* name : {"minference", "flexprefill", "sampleattention"}) {
    EXPECT_EQ(PrefillGrainTokens(PlanOf(Shipped(name))), 4096) << name;
    EXPECT_EQ(PrefillGrainTokens(PlanOf(FitStep(Shipped(name), 8192))), 4096) << name;
    EXPECT_EQ(PrefillGrainTokens(PlanOf(FitStep(Shipped(name), 4095))), 2048) << name;
    EXPECT_EQ(PrefillGrainTokens(PlanOf(FitStep(Shipped(name), 64))), 1024) << name;
  }
  EXPECT_NE(PlanOf(FitStep(Shipped("minference"), 2048)).kv_fingerprint,
            PlanOf(Shipped("minference")).kv_fingerprint);
}

TEST(SparsePlan, DialsReplaceNumbersWithinTheirBounds) {
  const auto errors = [](std::string_view name, std::vector<DialValue> dials) {
    return ApplyDials(Shipped(name), dials).errors;
  };
  const std::string quest_dials =
      "one of budget_tokens, budget_fraction, sink_tokens, local_tokens, dense_below_tokens";
  EXPECT_EQ(errors("quest", {{"top_p", 0.5}}),
            Lines{"quest: top_p: got a dial that this profile lacks, need " + quest_dials});
  EXPECT_EQ(errors("quest", {{"budgt", 1}}),
            Lines{"quest: budgt: got an unknown dial, need " + quest_dials});
  EXPECT_EQ(errors("streamingllm", {{"budget_tokens", 64}}),
            Lines{"streamingllm: budget_tokens: got a dial that this profile lacks, need no dial: "
                  "this profile has none"});
  EXPECT_EQ(errors("quest", {{"budget_tokens", -1}}),
            Lines{"quest: budget_tokens: got -1, need a whole number from 0 to 16777216"});
  EXPECT_EQ(errors("quest", {{"budget_tokens", 1.5}}),
            Lines{"quest: budget_tokens: got 1.5, need a whole number from 0 to 16777216"});
  EXPECT_EQ(errors("quest", {{"budget_tokens", std::numeric_limits<double>::quiet_NaN()}}),
            Lines{"quest: budget_tokens: got null, need a whole number from 0 to 16777216"});
  EXPECT_EQ(
      errors("quest", {{"budget_tokens", 0}}),
      Lines{"quest: decode.select.budget_tokens: got 0, need at least 1 with kind top_k, or a "
            "fraction above 0"});
  EXPECT_EQ(errors("quest", {{"budget_tokens", 8}, {"budget_tokens", 9}}),
            Lines{"quest: budget_tokens: got two values, need one"});
  EXPECT_EQ(errors("quest", {{"budget_tokens", 8}, {"budget_fraction", 0.5}}),
            Lines{"quest: budget_fraction: got budget_tokens too, need one of the two"});
  EXPECT_EQ(errors("quest", {{"sink_tokens", 4096}}),
            Lines{"quest: decode.select.budget_tokens: got 2048, need more than the 4096 forced "
                  "tokens"});

  const SparseProfile share =
      ApplyDials(Shipped("quest"), std::vector<DialValue>{{"budget_fraction", 0.1}}).profile;
  EXPECT_EQ(share.decode_select.budget_tokens, 0);
  EXPECT_EQ(BudgetTokens(PlanOf(share).decode_dials, 1000), 100);
  const SparseProfile balanced =
      ApplyDials(Shipped("lacuna-balanced"), std::vector<DialValue>{{"budget_tokens", 777}})
          .profile;
  EXPECT_EQ(BudgetTokens(PlanOf(balanced).decode_dials, 100000), 777);
}

TEST(SparsePlan, EveryDialOfEveryProfileIsANumberThatCanBeSet) {
  std::set<std::string_view> seen;
  for (const ProfileText& text : ShippedProfiles()) {
    SparseProfile profile = Shipped(text.name);
    const std::vector<DialInfo> dials = DialsOf(profile);
    for (const DialInfo& dial : dials) {
      seen.insert(dial.name);
      // What the profile says already, said again, changes nothing but the exclusive pair.
      double value = -1;
      for (const BoundSection& section : BindProfile(profile)) {
        for (const BoundField& field : section.fields) {
          if (dial.key != std::string(section.name) + "." + std::string(field.name)) continue;
          value = FieldJson(field).get<double>();
        }
      }
      ASSERT_GE(value, 0) << dial.name;
      if (dial.name.starts_with("budget_")) continue;
      const DialedProfile again =
          ApplyDials(profile, std::vector<DialValue>{{std::string(dial.name), value}});
      EXPECT_EQ(again.errors, Lines{});
      EXPECT_EQ(again.profile, profile) << dial.name;
    }
  }
  // No shipped profile has a first top_p, a threshold, a second top_k or a prefill top_k.
  EXPECT_EQ(seen.size() + 4, AllDials().size());
}

TEST(SparsePlan, FingerprintsTellWhatChangesKeysAndValues) {
  // Decode sparsity alone leaves a prompt's keys and values as dense attention makes them.
  for (const char* name : {"quest", "delta", "double-sparsity", "twilight-quest", "tokenselect"}) {
    const SparsePlan plan = PlanOf(Shipped(name));
    EXPECT_EQ(plan.kv_fingerprint, 0u) << name;
    EXPECT_NE(plan.fingerprint, 0u) << name;
  }
  for (const char* name : {"xattention", "duoattention", "streamingllm", "moa", "trianglemix"}) {
    EXPECT_NE(PlanOf(Shipped(name)).kv_fingerprint, 0u) << name;
  }
  SparseProfile dense;
  dense.name = "dense";
  EXPECT_EQ(PlanOf(dense).kv_fingerprint, 0u);
  EXPECT_EQ(PlanOf(dense).fingerprint, 0u);

  const SparsePlan base = PlanOf(Shipped("lacuna-balanced"));
  const auto dialed = [](const char* dial, double value) {
    return PlanOf(
        ApplyDials(Shipped("lacuna-balanced"), std::vector<DialValue>{{dial, value}}).profile);
  };
  EXPECT_EQ(dialed("budget_tokens", 900).kv_fingerprint, base.kv_fingerprint);
  EXPECT_NE(dialed("budget_tokens", 900).fingerprint, base.fingerprint);
  EXPECT_NE(dialed("prefill_top_p", 0.8).kv_fingerprint, base.kv_fingerprint);
  EXPECT_NE(dialed("prefill_dense_below_tokens", 64).kv_fingerprint, base.kv_fingerprint);
  EXPECT_NE(PlanOf(Shipped("lacuna-balanced"), Recall12m()).kv_fingerprint, base.kv_fingerprint);
  // Names are not part of it, sizes of tables are.
  SparseProfile renamed = Shipped("lacuna-balanced");
  renamed.name = "other";
  EXPECT_EQ(PlanOf(renamed).fingerprint, base.fingerprint);
}

// The same in every build: pages on disk and other processes will rely on it. A change here means
// that the meaning of plans changed: raise kVersion in fingerprint.cc.
TEST(SparsePlan, FingerprintsAreStable) {
  const SparsePlan plan = PlanOf(Shipped("streamingllm"), Recall12m());
  EXPECT_EQ(plan.kv_fingerprint, 7508590137942521427u);
  EXPECT_EQ(plan.fingerprint, 5284803173195796930u);
  EXPECT_EQ(PlanOf(Shipped("quest"), Recall12m()).fingerprint, 17246029067128656128u);
  EXPECT_EQ(PlanOf(Shipped("prism"), Recall12m()).kv_fingerprint, 13158226400685494526u);
}

TEST(SparsePlan, PlansOfOneServerShareStores) {
  const AttentionShape shape = Recall12m();
  std::vector<SparsePlan> plans;
  for (const char* name : {"quest", "twilight-quest", "twilight-double-sparsity", "delta"}) {
    plans.push_back(PlanOf(Shipped(name), shape));
  }
  SparseProfile early = Shipped("quest");
  early.decode_layers.dense_layers = {5};
  early.who.reference_layers = 0;
  plans.push_back(PlanOf(early, shape));
  std::vector<const SparsePlan*> pointers;
  for (const SparsePlan& plan : plans) pointers.push_back(&plan);
  const std::vector<MetadataStore> stores = MetadataStores(pointers);
  ASSERT_EQ(stores.size(), 3u);  // page bounds, the low-bit copy, labels
  EXPECT_EQ(stores[0].spec, plans[0].decode.metadata);
  EXPECT_EQ(stores[0].layers, std::vector<bool>(6, true));  // quest lacks 0, `early` lacks 5
  EXPECT_EQ(stores[1].spec.kind, MetadataKind::kLowBit);
  EXPECT_EQ(stores[1].layers, (std::vector<bool>{false, true, true, true, true, true}));
  EXPECT_EQ(stores[2].spec, plans[2].decode.metadata);
  EXPECT_EQ(stores[2].channels, plans[2].channels);
  EXPECT_TRUE(stores[0].channels.empty());
}

TEST(SparsePlan, MetadataBytes) {
  // Two vectors of 128 bf16 for the 4 entries of a page; 32 channels of 4 bits for each key, with
  // scale and zero.
  const SparsePlan bounds = PlanOf(Shipped("lserve")), labels = PlanOf(Shipped("lacuna-balanced"));
  EXPECT_EQ(bounds.decode.metadata.PageBytes(128, 64), 4 * 2 * 128 * 2);
  EXPECT_EQ(labels.decode.metadata.PageBytes(128, 64), 64 * (16 + 4));
  EXPECT_DOUBLE_EQ(MetadataBytesPerToken(labels), 32.0 * 8 * 20);
  EXPECT_EQ(MetadataBytesPerToken(PlanOf(Shipped("delta"))), 0);
}

}  // namespace
}  // namespace lacuna::kvcache
