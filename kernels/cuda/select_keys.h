// SelectKeysCall: one group of rows of a SelectKeys call, as kernels take it; what each row does;
// where the scores of its units lie. SEAM between scoring (select_score*.cu) and choosing
// (select_choice*.cu, select_refine*.cu, select_lists*.cu). Host and device; a plain value.
//
// Everything that rows hold is device memory, so nothing can be refused here: a row whose counts
// do not fit its length, or whose pages have gaps, reads everything (Act::kDense).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

#include "kernels/core/dtype.h"
#include "kernels/cuda/metadata_layout.h"
#include "kernels/cuda/ops.h"
#include "kernels/ops/select_keys.h"

namespace lacuna::kernels::cuda {

struct SelectKeysCall final {
  // The arguments. Pointers are of device memory.
  const void* q = nullptr;  // [rows, kv_heads * group, head_dim] act
  int64_t q_stride = 0;     // elements from row to row
  DType act = DType::kBF16;
  KvPool pool;
  MetadataPool metadata, refine_metadata;
  const int32_t* positions = nullptr;  // [rows]
  PageLists pages;                     // [rows]
  DecodePath path;
  const SelectRow* rows = nullptr;      // [rows]
  const float* thresholds = nullptr;    // [q_heads], path.head_thresholds
  const StaticShape* shapes = nullptr;  // [rows, kv_heads], or null
  float scale = 1.0f;
  KeyChoices choices;
  SelectedLists out;
  SelectStats* stats = nullptr;  // [rows, kv_heads], or null
  float* dropped_lse = nullptr;  // [rows, q_heads], or null
  int64_t dropped_stride = 0;

  // Derived, the same for all rows. Query rows of a kv head lie together; with
  // QueryForm::kGroupMean it has one.
  int32_t kv_heads = 1, group = 1, head_dim = 0, page_tokens = 64;
  int32_t heads = 1;         // query rows of a kv head
  int32_t query_rows = 1;    // kv_heads * heads
  int32_t owners = 1;        // kv_heads, or 1 with OwnerKind::kLayer
  int32_t unit_rows = 1;     // rows of unit scores: query_rows with per_head, else owners
  int32_t entry_tokens = 1;  // tokens of one raw score
  bool scores_keys = false;  // by the keys themselves
  bool normalises = false;   // unit scores are made of probabilities
  bool per_head = false;     // union and round robin: heads choose by themselves
  bool chooses = false;
  bool refines = false;
  int64_t slab_bytes = 0, metadata_slab_bytes = 0, refine_slab_bytes = 0;
  MetadataLayout layout, refine_layout;  // of the metadata, where there are any

  // This group: rows [first_row, first_row + group_rows) of the arguments.
  int32_t first_row = 0, group_rows = 0;
  int32_t pages_max = 0;     // a row with more pages that would choose is dense
  int64_t units_stride = 0;  // floats from one row of unit scores to the next; multiple of 64
  // [group_rows, unit_rows, units_stride]: of rows that choose, for each unit of the sequence
  // (forced ones too); thresholds of heads are taken off. Undefined for heads with a window (not
  // per_head: where all heads of the owner have one) and past the row's units.
  float* units = nullptr;
  // Scratch of scoring.
  float* scores =
      nullptr;  // [group_rows, query_rows, scores_stride] raw, where two passes are made
  int64_t scores_stride = 0;
  float2* chunk_sums =
      nullptr;  // [group_rows, query_rows, chunks_max] maximum, sum of exponentials
  int32_t chunks_max = 0;
  int32_t* turned = nullptr;  // [group_rows], RefreshKind::kCosine: 1: the row chooses anew
};
static_assert(std::is_trivially_copyable_v<SelectKeysCall> && sizeof(SelectKeysCall) <= 2048);

// The second half, of the rows of one group: choices, refinement, kept choices, lists, stats,
// dropped_lse. `rest` holds ChooseRowBytes(call) * call.group_rows bytes, 256-byte aligned.
// ChooseRowBytes is at most kChooseBytesPerToken bytes for each query head and token of pages_max,
// plus kChooseBytesPerRow, and a multiple of 256; it does not depend on the group.
inline constexpr int kSelectRowsMax = 256;  // of one group
inline constexpr int64_t kChooseBytesPerToken = 9;
inline constexpr int64_t kChooseBytesPerRow = 64 << 10;
int64_t ChooseRowBytes(const SelectKeysCall& call);
Status ChooseKeys(const SelectKeysCall& call, const DeviceTraits& traits, const Workspace& rest,
                  cudaStream_t stream);

// What a row does.
struct RowPlan final {
  enum class Act : int32_t {
    kDense,   // reads everything its heads' shapes allow
    kForced,  // reads the forced units only
    kKeep,    // and the kept choice
    kChoose,  // and a new choice, by its unit scores
  };
  Act act = Act::kDense;
  int32_t tokens = 0;       // its own included; 0: a position below 0
  int32_t pages = 0;        // entries of its list that hold tokens
  int32_t units = 0;        // of unit_tokens
  int64_t first_entry = 0;  // of its list in call.pages
};

#ifdef __CUDACC__
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
#endif

}  // namespace lacuna::kernels::cuda
