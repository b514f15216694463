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

}  // namespace lacuna::kernels::cuda

#ifdef __CUDACC__
#include "kernels/cuda/select/select_rows.cuh"  // what kernels read of rows
#endif
