// What the kernels of SelectKeys read of a row: its queries, shapes and unit scores, and its plan.
// Device code; comes with select_keys.h.
#pragma once

#include "kernels/cuda/select/select_keys.h"

namespace lacuna::kernels::cuda {

// `row` is of the arguments, as everywhere below.
__device__ inline bool HasWindow(const SelectKeysCall& call, int row, int kv_head) {
  return call.shapes != nullptr &&
         call.shapes[static_cast<int64_t>(row) * call.kv_heads + kv_head].window_tokens > 0;
}
__device__ inline bool AllHaveWindows(const SelectKeysCall& call, int row) {
  if (call.shapes == nullptr) return false;
  bool any_full = false;
  for (int kv = 0; kv < call.kv_heads; ++kv) any_full |= !HasWindow(call, row, kv);
  return !any_full;
}
__device__ inline float* UnitScores(const SelectKeysCall& call, int row, int unit_row) {
  return call.units + (static_cast<int64_t>(row - call.first_row) * call.unit_rows + unit_row) *
                          call.units_stride;
}
__device__ inline float QueryValue(const SelectKeysCall& call, int row, int head, int channel) {
  const int64_t at = row * call.q_stride + static_cast<int64_t>(head) * call.head_dim + channel;
  if (call.act == DType::kF32) return static_cast<const float*>(call.q)[at];
  if (call.act == DType::kF16) return __half2float(static_cast<const __half*>(call.q)[at]);
  return __bfloat162float(static_cast<const __nv_bfloat16*>(call.q)[at]);
}
// Channel of a query row: the head's own, or the mean of its group.
__device__ inline float QueryRowValue(const SelectKeysCall& call, int row, int query_row,
                                      int channel) {
  if (call.heads == call.group) return QueryValue(call, row, query_row, channel);
  float sum = 0.0f;
  for (int h = 0; h < call.group; ++h) {
    sum += QueryValue(call, row, query_row * call.group + h, channel);
  }
  return sum / static_cast<float>(call.group);
}

// Sizes of pages and units are powers of two.
__device__ inline int32_t LogOf(int32_t size) { return 31 - __clz(size); }
__device__ inline int32_t PiecesOf(int32_t tokens, int32_t size) {  // ceil(tokens / size)
  return (tokens + size - 1) >> LogOf(size);
}

// What a row's plan is made of: loads that wait for each other only once.
struct RowFacts final {
  SelectRow what;
  int32_t tokens;                  // its own included
  int64_t first_entry, listed;     // of its list
  int32_t needed;                  // pages of so many tokens
  int32_t last, last_needed = -1;  // logical places of the last entry, of entry needed - 1
};
__device__ inline RowFacts ReadRow(const SelectKeysCall& call, int row) {
  RowFacts facts;
  facts.first_entry = call.pages.begins[row];
  facts.listed = call.pages.ends[row] - facts.first_entry;
  facts.tokens = max(call.positions[row], -1) + 1;
  facts.what = call.rows[row];
  facts.needed = PiecesOf(facts.tokens, call.page_tokens);
  const int32_t* logical = call.pages.logical + facts.first_entry;
  facts.last = facts.listed > 0 ? logical[facts.listed - 1] : -1;
  if (facts.needed > 0 && facts.needed <= facts.listed) {
    facts.last_needed = logical[facts.needed - 1];
  }
  return facts;
}

// Entries of an ascending list that hold the row's tokens; mostly a look at its end.
__device__ inline int32_t PagesOf(const RowFacts& facts, const int32_t* logical) {
  if (facts.last < facts.needed) return static_cast<int32_t>(facts.listed);
  if (facts.last_needed == facts.needed - 1) return facts.needed;
  const int32_t logical_end = facts.needed;
  int64_t low = 0, high = facts.listed - 1;  // the answer; logical[high] is not before
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (logical[middle] < logical_end) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return static_cast<int32_t>(low);
}

// Act kChoose where the row may choose: whether it does is PlanRow's to say.
__device__ inline RowPlan PlanRowBeforeRefresh(const SelectKeysCall& call, int row,
                                               const RowFacts& facts) {
  RowPlan plan;
  const DecodeCounts& counts = facts.what.counts;
  plan.tokens = facts.tokens;
  plan.first_entry = facts.first_entry;
  plan.pages = PagesOf(facts, call.pages.logical + plan.first_entry);
  plan.units = PiecesOf(plan.tokens, call.path.unit_tokens);
  if (counts.dense || call.path.select == SelectKind::kAll || plan.tokens == 0) return plan;
  const bool sound = counts.units == plan.units && counts.sink_units >= 0 &&
                     counts.local_units >= 0 &&
                     counts.local_units <= counts.units - counts.sink_units;
  if (!sound || AllHaveWindows(call, row)) return plan;
  if (!call.chooses) {
    plan.act = RowPlan::Act::kForced;
    return plan;
  }
  // Ascending and without repeats, so complete when the last has the place of its count.
  const bool whole = plan.pages == facts.needed && facts.last_needed == facts.needed - 1;
  if (whole && plan.pages <= call.pages_max && facts.what.choice >= 0) {
    plan.act = RowPlan::Act::kChoose;
  }
  return plan;
}
__device__ inline RowPlan PlanRowBeforeRefresh(const SelectKeysCall& call, int row) {
  return PlanRowBeforeRefresh(call, row, ReadRow(call, row));
}

// Read by every kernel of the call, by any number of threads.
__device__ inline RowPlan PlanRow(const SelectKeysCall& call, int row, const RowFacts& facts) {
  RowPlan plan = PlanRowBeforeRefresh(call, row, facts);
  if (plan.act != RowPlan::Act::kChoose) return plan;
  const bool chooses = call.path.refresh == RefreshKind::kCosine
                           ? call.turned[row - call.first_row] != 0
                           : facts.what.choose;
  plan.act = chooses ? RowPlan::Act::kChoose : RowPlan::Act::kKeep;
  return plan;
}
__device__ inline RowPlan PlanRow(const SelectKeysCall& call, int row) {
  return PlanRow(call, row, ReadRow(call, row));
}

}  // namespace lacuna::kernels::cuda
