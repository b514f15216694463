#include "kvcache/sparse/decode_counts.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/core/checked_math.h"

namespace lacuna::kvcache {
namespace {

constexpr int64_t kSpanStepTokens = 64;  // MoA's block
constexpr int64_t kSpanTokensMin = 128;

int32_t Units(int64_t tokens, int64_t unit_tokens) {
  return static_cast<int32_t>(CeilDiv(tokens, unit_tokens));
}

// Units that hold any of the newest `tokens` of N.
int32_t NewestUnits(int64_t tokens, int64_t total_tokens, int64_t unit_tokens) {
  if (tokens <= 0) return 0;
  const int64_t first = std::max<int64_t>(total_tokens - tokens, 0) / unit_tokens;
  return Units(total_tokens, unit_tokens) - static_cast<int32_t>(first);
}

int64_t LocalTokens(const DecodeDials& dials, int64_t budget_tokens) {
  if (dials.budget_share == 0) return dials.local_tokens;
  const double share = dials.budget_share * static_cast<double>(budget_tokens);
  return std::max<int64_t>(static_cast<int64_t>(share) - dials.sink_tokens, 0);
}

bool FirstKeepsAll(const DecodePath& path, const DecodeDials& dials, const DecodeCounts& counts) {
  return counts.ranked_units_max == counts.candidates() &&
         (path.select == SelectKind::kTopK || (path.select == SelectKind::kTopP && dials.p >= 1));
}

bool SecondKeepsAll(const DecodePath& path, const DecodeDials& dials, int64_t total_tokens) {
  return path.refine == RefineKind::kNone ||
         (path.refine == RefineKind::kTopP && dials.refine_p >= 1) ||
         (path.refine == RefineKind::kTopK && dials.refine_budget_tokens >= total_tokens);
}

int32_t Scaled(int32_t tokens, float scale) {
  const double scaled = static_cast<double>(tokens) * static_cast<double>(scale);
  return static_cast<int32_t>(
      std::min(std::ceil(scaled), 0.5 * std::numeric_limits<int32_t>::max()));
}

// Of the mass that is let go, one part in `scale`.
float ScaledMass(float p, float scale) { return p >= 1 ? p : 1 - (1 - p) / scale; }

DecodeDials ScaleBudget(DecodeDials dials, float scale) {
  dials.budget_tokens = Scaled(dials.budget_tokens, scale);
  dials.fraction = std::min(dials.fraction * static_cast<double>(scale), 1.0);
  dials.min_tokens = Scaled(dials.min_tokens, scale);
  dials.max_tokens = Scaled(dials.max_tokens, scale);
  dials.p = ScaledMass(dials.p, scale);
  dials.refine_budget_tokens = Scaled(dials.refine_budget_tokens, scale);
  dials.refine_min_tokens = Scaled(dials.refine_min_tokens, scale);
  dials.refine_p = ScaledMass(dials.refine_p, scale);
  return dials;
}

}  // namespace

int64_t BudgetTokens(const DecodeDials& dials, int64_t total_tokens) {
  const int64_t share = static_cast<int64_t>(dials.fraction * static_cast<double>(total_tokens));
  const int64_t budget = dials.budget_tokens + share;
  const int64_t at_least = std::max<int64_t>(budget, std::max(dials.min_tokens, 1));
  return dials.max_tokens > 0 ? std::min<int64_t>(at_least, dials.max_tokens) : at_least;
}

namespace {

DecodeCounts CountOf(const SparsePlan& plan, const DecodeDials& dials, int64_t total_tokens,
                     int64_t kept_steps) {
  const DecodePath& path = plan.decode;
  const int64_t unit = path.unit_tokens;
  const int64_t budget = BudgetTokens(dials, total_tokens);
  DecodeCounts counts;
  counts.units = Units(total_tokens, unit);
  counts.sink_units = std::min(Units(dials.sink_tokens, unit), counts.units);
  const int64_t local = std::max<int64_t>(LocalTokens(dials, budget), dials.tail ? 1 : 0);
  counts.local_units = std::min(NewestUnits(local > 0 ? local + kept_steps : 0, total_tokens, unit),
                                counts.units - counts.sink_units);
  const int32_t between = counts.candidates();
  if (path.select == SelectKind::kTopK) {
    const int32_t forced = dials.inside_budget ? counts.sink_units + counts.local_units : 0;
    counts.ranked_units_max = std::clamp(Units(budget, unit) - forced, 0, between);
    counts.ranked_units_min = counts.ranked_units_max;
  } else if (path.select != SelectKind::kNone) {
    counts.ranked_units_max =
        dials.max_tokens > 0 ? std::min(Units(dials.max_tokens, unit), between) : between;
    counts.ranked_units_min = std::min(Units(dials.min_tokens, unit), counts.ranked_units_max);
  }
  counts.refine_units = Units(dials.refine_budget_tokens, path.refine_unit_tokens);
  counts.refine_units_min = Units(dials.refine_min_tokens, path.refine_unit_tokens);
  counts.dense = !plan.sparse_decode || total_tokens < dials.dense_below_tokens || between == 0 ||
                 (FirstKeepsAll(path, dials, counts) && SecondKeepsAll(path, dials, total_tokens));
  return counts;
}

}  // namespace

DecodeCounts CountUnits(const SparsePlan& plan, int64_t total_tokens, int64_t kept_steps) {
  return CountOf(plan, plan.decode_dials, total_tokens, kept_steps);
}

kernels::SelectRow MakeSelectRow(const SparsePlan& plan, int64_t total_tokens,
                                 int64_t steps_since_choice, float budget_scale) {
  const DecodeDials dials =
      budget_scale > 1 ? ScaleBudget(plan.decode_dials, budget_scale) : plan.decode_dials;
  kernels::SelectRow row;
  row.choose = RefreshDue(plan, steps_since_choice);
  row.counts = CountOf(plan, dials, total_tokens, row.choose ? 0 : steps_since_choice);
  row.p = dials.p;
  row.threshold = dials.threshold;
  row.refine_p = dials.refine_p;
  row.refresh_cosine = dials.refresh_cosine;
  return row;
}

bool RefreshDue(const SparsePlan& plan, int64_t steps_since) {
  if (steps_since < 0 || plan.decode.refresh == RefreshKind::kEveryStep) return true;
  return plan.decode.refresh == RefreshKind::kEveryN &&
         steps_since >= plan.decode_dials.refresh_steps;
}

int64_t ListPagesMax(const SparsePlan& plan, int64_t total_tokens) {
  const int64_t page = plan.shape.page_tokens;
  const int64_t pages = CeilDiv(total_tokens, page);
  const DecodePath& path = plan.decode;
  const DecodeDials& dials = plan.decode_dials;
  const bool counted = path.select == SelectKind::kTopK || path.select == SelectKind::kNone;
  // A mass may need everything, and a choice kept by cosine may grow old.
  if (!plan.sparse_decode || !counted || path.refresh == RefreshKind::kCosine) return pages;
  const int64_t budget = path.select == SelectKind::kTopK ? BudgetTokens(dials, total_tokens) : 0;
  const int64_t kept = path.refresh == RefreshKind::kEveryN ? dials.refresh_steps - 1 : 0;
  const int64_t unit = path.unit_tokens;
  // The newest tokens lie across one unit more than they fill.
  const int64_t forced = CeilDiv(dials.sink_tokens, unit) + 1 +
                         CeilDiv(std::max<int64_t>(LocalTokens(dials, budget), 1) + kept, unit);
  const int64_t each = path.reduce == ReduceKind::kUnion ? plan.shape.group() : 1;
  const int64_t ranked = each * CeilDiv(budget, unit);
  const int64_t units =
      dials.inside_budget && each == 1 ? std::max(ranked, forced) : ranked + forced;
  const int64_t dense = std::min<int64_t>(dials.dense_below_tokens, total_tokens);
  return std::min(std::max(units * std::max<int64_t>(unit / page, 1), CeilDiv(dense, page)), pages);
}

int64_t SpanTokens(const HeadSpan& span, int64_t total_tokens) {
  const double tokens = static_cast<double>(span.alpha) +
                        static_cast<double>(span.beta) * static_cast<double>(total_tokens);
  const int64_t whole = static_cast<int64_t>(std::clamp(tokens, 0.0, 1e9));
  return std::max(RoundUp(whole, kSpanStepTokens), kSpanTokensMin);
}

namespace {

// A span counts its sink tokens (MoA: the first 64 and the last span - 64).
kernels::StaticShape SpanShape(const SparsePlan& plan, int32_t layer, int32_t kv_head,
                               int64_t total_tokens) {
  const int32_t group = plan.shape.group();
  int64_t span = 0;
  for (int32_t i = 0; i < group; ++i) {
    const int32_t q_head = layer * plan.shape.q_heads + kv_head * group + i;
    span = std::max(span, SpanTokens(plan.spans[static_cast<size_t>(q_head)], total_tokens));
  }
  if (span >= total_tokens) return {};
  const int32_t sink = plan.head(layer, kv_head).decode.sink_tokens;
  return {.window_tokens = std::max(static_cast<int32_t>(span) - sink, 1), .sink_tokens = sink};
}

}  // namespace

kernels::StaticShape DecodeShape(const SparsePlan& plan, int32_t layer, int32_t kv_head,
                                 int64_t total_tokens) {
  const HeadPlan& head = plan.head(layer, kv_head);
  if (head.role == HeadRole::kSpan) return SpanShape(plan, layer, kv_head, total_tokens);
  return head.decode;
}

kernels::StaticShape PrefillShape(const SparsePlan& plan, int32_t layer, int32_t kv_head,
                                  int64_t total_tokens) {
  const HeadPlan& head = plan.head(layer, kv_head);
  if (head.role == HeadRole::kSpan) return SpanShape(plan, layer, kv_head, total_tokens);
  return head.prefill;
}

bool DensePrefill(const SparsePlan& plan, int64_t prompt_tokens) {
  return !plan.sparse_prefill || prompt_tokens < plan.prefill_dials.dense_below_tokens;
}

}  // namespace lacuna::kvcache
