// The rules, in the order of the file's sections. Numbers in brackets name the rule of the research
// notes (decode.md, section C4) that a check enforces. Its rules 6 and 8 to 10 speak of primitives
// that profiles cannot name yet: taps before RoPE, renumbered positions, biases, host tiers.
#include "kvcache/sparse/checker.h"

#include <algorithm>
#include <bit>
#include <initializer_list>

#include "kernels/ops/range_limits.h"

namespace lacuna::kvcache {
namespace {

bool IsOneOf(std::string_view word, std::initializer_list<std::string_view> words) {
  return std::ranges::find(words, word) != words.end();
}

bool IsUnit(int64_t tokens) { return tokens == 1 || tokens == 16 || tokens == 64; }

// Adds a line when `legal` is false.
class Rules final {
 public:
  explicit Rules(const SparseProfile& profile) : p(profile), errors_(profile.name) {}

  template <typename Value>
  bool Need(bool legal, std::string_view key, const Value& got, std::string_view need) {
    if (!legal) errors_.Add(key, ShownJson(ConfigJson(got)), need);
    return legal;
  }
  const std::vector<std::string>& lines() const { return errors_.lines(); }

  const SparseProfile& p;

 private:
  ConfigErrors errors_;
};

// [4] Streaming heads have neither metadata nor scores nor selections.
void CheckWho(Rules& r) {
  const WhoOptions& who = r.p.who;
  const bool all_static = IsOneOf(who.heads, {"streaming", "spans"});
  if (IsOneOf(who.heads, {"streaming", "artefact"})) {
    r.Need(who.local_tokens > 0, "who.local_tokens", who.local_tokens,
           "at least 1 with who.heads " + who.heads);
    r.Need(who.prefill_local_tokens == 0 || who.prefill_local_tokens >= who.local_tokens,
           "who.prefill_local_tokens", who.prefill_local_tokens,
           "0 or at least who.local_tokens (" + std::to_string(who.local_tokens) + ")");
  }
  r.Need(!all_static || !r.p.sparse_prefill(), "prefill.select.kind", r.p.prefill_select.kind,
         "all: with who.heads " + who.heads + " no head selects");
  r.Need(!all_static || !r.p.sparse_decode(), "decode.select.kind", r.p.decode_select.kind,
         "all: with who.heads " + who.heads + " no head selects");
  r.Need(who.heads != "artefact" || !r.p.sparse_decode() || r.p.decode_group.owner == "kv_head",
         "decode.group.owner", r.p.decode_group.owner,
         "kv_head: with who.heads artefact some heads stream");
}

void CheckPrefillPairs(Rules& r) {
  const std::string& estimate = r.p.prefill_estimate.kind;
  const std::string& select = r.p.prefill_select.kind;
  const bool fits = estimate == "none"     ? IsOneOf(select, {"all", "none"})
                    : estimate == "probe"  ? IsOneOf(select, {"vertical_slash", "cover"})
                    : estimate == "pooled" ? IsOneOf(select, {"top_k", "top_p"})
                                           : select == "cover";
  const std::string need = estimate == "none"     ? "all or none"
                           : estimate == "probe"  ? "vertical_slash or cover"
                           : estimate == "pooled" ? "top_k or top_p"
                                                  : "cover";
  r.Need(fits, "prefill.select.kind", select, need + " with prefill.estimate.kind " + estimate);
}

void CheckPrefillSelect(Rules& r) {
  const PrefillSelectOptions& select = r.p.prefill_select;
  const bool uses_p = IsOneOf(select.kind, {"cover", "top_p"});
  r.Need(select.patterns_from == "profile" || select.kind == "vertical_slash",
         "prefill.select.patterns_from", select.patterns_from,
         "profile: only vertical_slash has patterns");
  r.Need(select.p_from == "profile" || uses_p, "prefill.select.p_from", select.p_from,
         "profile: only cover and top_p have a p");
  if (select.kind == "vertical_slash") {
    r.Need(select.vertical_tokens + select.slash_tokens > 0, "prefill.select.vertical_tokens",
           select.vertical_tokens, "at least 1, or slash_tokens of at least 1");
  }
  if (select.kind == "top_k") {
    r.Need(select.budget_tokens > 0 || select.fraction > 0, "prefill.select.budget_tokens",
           select.budget_tokens, "at least 1 with kind top_k, or a fraction above 0");
  }
  r.Need(select.scope == "row" || select.kind == "top_p" ||
             r.p.prefill_estimate.kind == "probe_pooled",
         "prefill.select.scope", select.scope,
         "row: no map is chosen from with kind " + select.kind);
  r.Need(select.max_tokens == 0 || select.max_tokens >= select.min_tokens,
         "prefill.select.max_tokens", select.max_tokens,
         "0 or at least min_tokens (" + std::to_string(select.min_tokens) + ")");
}

// A probe has room for 1024 rows of a cell, runs of them rounded up to 64.
void CheckProbe(Rules& r) {
  const PrefillEstimateOptions& estimate = r.p.prefill_estimate;
  const kernels::PrefillPath path{.probe_place = estimate.probe_place == "tails"
                                                     ? kernels::ProbePlace::kTails
                                                     : kernels::ProbePlace::kLast,
                                  .cell_tokens = static_cast<int32_t>(estimate.cell_tokens)};
  const kernels::PrefillDials dials{.probe_rows = static_cast<int32_t>(estimate.probe_rows),
                                    .probe_fraction = static_cast<float>(estimate.probe_fraction)};
  r.Need(kernels::ProbeFits(path, dials), "prefill.estimate.probe_fraction",
         estimate.probe_fraction, "tails of at most 1024 rows of a cell, each rounded up to 64");
}

void CheckPrefill(Rules& r) {
  const PrefillEstimateOptions& estimate = r.p.prefill_estimate;
  const PrefillForceOptions& force = r.p.prefill_force;
  CheckPrefillPairs(r);
  CheckPrefillSelect(r);
  r.Need(estimate.block_tokens % 64 == 0, "prefill.estimate.block_tokens", estimate.block_tokens,
         "64 or 128");
  if (estimate.pool == "antidiagonal") {
    r.Need(estimate.block_tokens % estimate.stride_tokens == 0, "prefill.estimate.stride_tokens",
           estimate.stride_tokens,
           "a divisor of block_tokens (" + std::to_string(estimate.block_tokens) + ")");
  }
  const bool probes = estimate.kind == "probe" || estimate.kind == "probe_pooled";
  r.Need(estimate.cell_tokens == kernels::kCellTokensMin ||
             (probes && std::has_single_bit(static_cast<uint64_t>(estimate.cell_tokens))),
         "prefill.estimate.cell_tokens", estimate.cell_tokens,
         probes ? "1024, 2048, 4096 or 8192" : "1024: only probes have other cells");
  if (probes) CheckProbe(r);
  if (r.p.sparse_prefill()) {
    r.Need(force.local_tokens > 0, "prefill.force.local_tokens", force.local_tokens,
           "at least 1: a query that sees no key has no softmax");
  } else {
    r.Need(force == PrefillForceOptions{}, "prefill.select.kind", r.p.prefill_select.kind,
           "another kind, or no prefill.force: dense prefill forces nothing");
  }
  r.Need(r.p.prefill_correct.kind == "none" || (r.p.sparse_prefill() && r.p.who.heads == "all"),
         "prefill.correct.kind", r.p.prefill_correct.kind,
         "none, or sparse prefill with who.heads all: it computes rows over all keys");
}

// [5] Reuse needs the planner's scores of the same step, and one rule for who is the source.
void CheckPlanners(Rules& r) {
  const DecodeLayerOptions& layers = r.p.decode_layers;
  const bool exported = IsOneOf(r.p.decode_score.kind, {"logits", "probs"});
  const bool planned = !layers.planner_layers.empty() || layers.planners_from == "artefact";
  r.Need(planned || !exported, "decode.score.kind", r.p.decode_score.kind,
         "bound, dot or keys, or decode.layers.planner_layers that export them");
  r.Need(exported || !planned, "decode.score.kind", r.p.decode_score.kind,
         "logits or probs with decode.layers.planner_layers");
  r.Need(!planned || layers.share_layers == 1, "decode.layers.share_layers", layers.share_layers,
         "1: planners already say who shares");
  r.Need(!planned || r.p.decode_refresh.kind == "every_step", "decode.refresh.kind",
         r.p.decode_refresh.kind, "every_step: a planner's scores are of its own step");
  for (const int64_t layer : layers.planner_layers) {
    r.Need(std::ranges::find(layers.dense_layers, layer) == layers.dense_layers.end(),
           "decode.layers.planner_layers", layer, "a layer that is not in dense_layers");
  }
}

void CheckMetadata(Rules& r) {
  const DecodeMetadataOptions& m = r.p.decode_metadata;
  const std::string& score = r.p.decode_score.kind;
  const std::string need = score == "bound" ? "minmax"
                           : score == "dot" ? "mean, labels or lowbit"
                                            : "none";
  const bool fits = score == "bound" ? m.kind == "minmax"
                    : score == "dot" ? IsOneOf(m.kind, {"mean", "labels", "lowbit"})
                                     : m.kind == "none";
  r.Need(fits, "decode.metadata.kind", m.kind, need + " with decode.score.kind " + score);
  r.Need(IsUnit(m.sub_tokens), "decode.metadata.sub_tokens", m.sub_tokens, "1, 16 or 64");
  if (IsOneOf(m.kind, {"minmax", "mean"})) {
    r.Need(IsOneOf(m.precision, {"bf16", "int8"}), "decode.metadata.precision", m.precision,
           "bf16 or int8 with kind " + m.kind);
  }
  if (IsOneOf(m.kind, {"labels", "lowbit"})) {
    r.Need(m.sub_tokens == 1, "decode.metadata.sub_tokens", m.sub_tokens,
           "1 with kind " + m.kind + ": each key has its own");
  }
  r.Need(m.kind != "lowbit" || m.precision != "bf16", "decode.metadata.precision", m.precision,
         "int8, int4 or int2 with kind lowbit");
  // [7] A mean over a window straddles pages: its open end is kept per request, at most a page.
  const bool window_fits =
      m.window_tokens == 0 || (m.kind == "mean" && m.window_tokens % m.sub_tokens == 0);
  r.Need(window_fits, "decode.metadata.window_tokens", m.window_tokens,
         "0, or with kind mean a multiple of sub_tokens (" + std::to_string(m.sub_tokens) + ")");
}

// [1] Only normalised scores have a mass; an upper bound is none. [2, 3] Lists belong to a kv head
// or to the layer, so query heads agree by a rule that the profile names.
void CheckScore(Rules& r) {
  const DecodeScoreOptions& score = r.p.decode_score;
  const DecodeGroupOptions& group = r.p.decode_group;
  const DecodeSelectOptions& select = r.p.decode_select;
  r.Need(score.kind != "bound" || !score.normalise, "decode.score.normalise", score.normalise,
         "false: a bound is no probability");
  r.Need(select.kind != "top_p" || score.normalise || score.kind == "probs", "decode.select.kind",
         select.kind, "scores with a mass: decode.score.normalise or kind probs");
  const bool chooses = IsOneOf(select.kind, {"top_k", "top_p", "threshold"});
  r.Need(chooses == (score.kind != "none"), "decode.score.kind", score.kind,
         chooses ? "a score with decode.select.kind " + select.kind
                 : "none with decode.select.kind " + select.kind);
  r.Need(score.query == "head" || (group.owner == "kv_head" && group.reduce == "mean"),
         "decode.score.query", score.query, "head, or decode.group of owner kv_head, reduce mean");
  r.Need(group.reduce != "union" || group.owner == "kv_head", "decode.group.reduce", group.reduce,
         "max, mean, sum or round_robin with owner layer");
  r.Need(group.reduce != "round_robin" || (group.owner == "layer" && select.kind == "top_k"),
         "decode.group.reduce", group.reduce, "max, mean, sum or union, or owner layer with top_k");
}

void CheckSelect(Rules& r) {
  const DecodeSelectOptions& select = r.p.decode_select;
  const bool has_entries = IsOneOf(r.p.decode_metadata.kind, {"minmax", "mean"});
  const int64_t sub = has_entries ? r.p.decode_metadata.sub_tokens : 1;
  r.Need(IsUnit(select.unit_tokens), "decode.select.unit_tokens", select.unit_tokens,
         "1, 16 or 64");
  r.Need(select.unit_tokens >= sub, "decode.select.unit_tokens", select.unit_tokens,
         "at least decode.metadata.sub_tokens (" + std::to_string(sub) + ")");
  if (r.p.decode_score.kind != "none" && select.unit_tokens >= sub) {
    const bool pools = select.unit_tokens > sub;
    r.Need(
        (r.p.decode_score.pool != "none") == pools, "decode.score.pool", r.p.decode_score.pool,
        pools ? "max, sum or mean: a unit holds several entries" : "none: a unit holds one entry");
  }
  if (select.kind == "top_k") {
    r.Need(select.budget_tokens > 0 || select.fraction > 0, "decode.select.budget_tokens",
           select.budget_tokens, "at least 1 with kind top_k, or a fraction above 0");
  }
  r.Need(select.threshold_from == "profile" || select.kind == "threshold",
         "decode.select.threshold_from", select.threshold_from,
         "profile: only threshold has thresholds");
  r.Need(select.max_tokens == 0 || select.max_tokens >= select.min_tokens,
         "decode.select.max_tokens", select.max_tokens,
         "0 or at least min_tokens (" + std::to_string(select.min_tokens) + ")");
}

void CheckRefine(Rules& r) {
  const DecodeRefineOptions& refine = r.p.decode_refine;
  if (refine.kind == "none") return;
  const DecodeSelectOptions& select = r.p.decode_select;
  r.Need(IsOneOf(select.kind, {"top_k", "top_p", "threshold"}), "decode.refine.kind", refine.kind,
         "none: there is no first choice with decode.select.kind " + select.kind);
  r.Need(IsUnit(refine.unit_tokens), "decode.refine.unit_tokens", refine.unit_tokens,
         "1, 16 or 64");
  r.Need(refine.unit_tokens <= select.unit_tokens, "decode.refine.unit_tokens", refine.unit_tokens,
         "at most decode.select.unit_tokens (" + std::to_string(select.unit_tokens) + ")");
  r.Need(refine.source != "lowbit" || refine.precision != "bf16", "decode.refine.precision",
         refine.precision, "int8, int4 or int2 with source lowbit");
  r.Need(refine.reduce != "round_robin", "decode.refine.reduce", refine.reduce,
         "max, mean, sum or union");
  r.Need(refine.reduce != "union" || r.p.decode_group.owner == "kv_head", "decode.refine.reduce",
         refine.reduce, "max, mean or sum with decode.group.owner layer");
  if (refine.kind == "top_k") {
    const bool within = select.kind != "top_k" || select.fraction > 0 ||
                        refine.budget_tokens <= select.budget_tokens;
    r.Need(refine.budget_tokens > 0 && within, "decode.refine.budget_tokens", refine.budget_tokens,
           "at least 1, and no more than decode.select.budget_tokens");
  }
}

void CheckForce(Rules& r) {
  const DecodeForceOptions& force = r.p.decode_force;
  const DecodeSelectOptions& select = r.p.decode_select;
  const int64_t forced = force.sink_tokens + force.local_tokens;
  if (select.kind == "top_k" && select.fraction == 0 && force.inside_budget) {
    r.Need(forced < select.budget_tokens || select.budget_tokens == 0,
           "decode.select.budget_tokens", select.budget_tokens,
           "more than the " + std::to_string(forced) + " forced tokens");
  }
  r.Need(force.budget_share == 0 || (select.kind == "top_k" && force.inside_budget),
         "decode.force.budget_share", force.budget_share,
         "0, or decode.select.kind top_k with inside_budget");
  r.Need(force.budget_share == 0 || force.local_tokens == 0, "decode.force.local_tokens",
         force.local_tokens, "0: budget_share already says it");
  if (select.kind == "none") {
    r.Need(force.local_tokens > 0, "decode.force.local_tokens", force.local_tokens,
           "at least 1 with decode.select.kind none");
  } else if (select.kind == "all") {
    r.Need(force == DecodeForceOptions{}, "decode.select.kind", select.kind,
           "another kind, or no decode.force: dense decode forces nothing");
  }
  if (select.kind == "threshold") {
    r.Need(force.tail || forced > 0, "decode.force.tail", force.tail,
           "true, or forced tokens: a threshold may keep nothing");
  }
}

void CheckDecode(Rules& r) {
  CheckPlanners(r);
  CheckMetadata(r);
  CheckScore(r);
  CheckSelect(r);
  CheckRefine(r);
  CheckForce(r);
  r.Need(r.p.decode_refresh.kind == "every_step" || r.p.decode_score.kind != "none",
         "decode.refresh.kind", r.p.decode_refresh.kind, "every_step: nothing is chosen anew");
  r.Need(r.p.decode_correct.kind == "none" || r.p.decode_select.kind == "threshold",
         "decode.correct.kind", r.p.decode_correct.kind,
         "none, or decode.select.kind threshold: it needs the threshold");
}

}  // namespace

std::vector<std::string> CheckProfile(const SparseProfile& profile) {
  Rules rules(profile);
  CheckWho(rules);
  CheckPrefill(rules);
  CheckDecode(rules);
  return rules.lines();
}

}  // namespace lacuna::kvcache
