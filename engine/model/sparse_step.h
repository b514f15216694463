// The sparse part of a step: sequences with plans, in classes that run in one launch each.
//
// Arrays lie on the device unless said otherwise. Made by the executor, read by Forward; valid for
// one step. Decode rows of classes follow the dense ones, class by class, and so do chunks.
#pragma once

#include <cstdint>
#include <span>

#include "engine/model/head_order.h"
#include "kernels/core/tensor_view.h"
#include "kernels/ops/correct.h"
#include "kernels/ops/select_keys.h"
#include "kernels/ops/select_ranges.h"
#include "kvcache/sparse/metadata_storage.h"
#include "kvcache/sparse/plan.h"

namespace lacuna::engine {

// Audits are added up over the first, middle and last third of the layers.
inline constexpr int kAuditGroups = 3;
inline int AuditGroup(int64_t layer, int64_t layers) {
  return static_cast<int>(layer * kAuditGroups / layers);
}

// Decode rows [first, first + rows) of a step; those of a recorded one end with rows of padding,
// which are dense, have no pages and no choice. Lists are those of the layer that chose last: a
// layer that reuses a choice reads the one made before it.
struct DecodeClass final {
  const kvcache::SparsePlan* plan = nullptr;  // of any of the rows: its dials are not read
  const HeadLaunches* launches = nullptr;
  int64_t first = 0, rows = 0;
  int64_t audited = 0;                           // the first of them are also computed densely
  const kernels::SelectRow* select = nullptr;    // [rows]
  const kernels::SelectRow* kept = nullptr;      // [rows]: the same without a choice
  const kernels::StaticShape* shapes = nullptr;  // [layers, rows, kv_heads], or null
  // [slots, rows, kv_heads], with `shapes`: of heads that stream in every layer that reads a slot.
  const kernels::StaticShape* choosing = nullptr;
  const float* thresholds = nullptr;          // [layers, q_heads], or null
  kernels::SelectStats* stats = nullptr;      // see HeadLaunches
  kernels::AttentionAudit* audits = nullptr;  // [audited, kAuditGroups]
  kernels::SelectedLists lists;
  kernels::KeyChoices choices;  // of slot 0
  int64_t slot_masks = 0,
          slot_queries = 0;  // from one slot's choices to the next; 0: all share one
  TensorView dropped_lse;    // [rows, q_heads] f32, or empty
};

// Prompt chunks [first, first + chunks) of a step.
struct PrefillClass final {
  const kvcache::SparsePlan* plan = nullptr;
  const HeadLaunches* launches = nullptr;
  int64_t first = 0;
  bool sparse = false;  // else the prompts are too short, and only shapes count
  std::span<const kernels::RangeChunk> all, last;  // host memory: of `chunks` and `last_chunks`
  const kernels::StaticShape* shapes = nullptr;    // [layers, chunks, kv_heads], or null
  const kernels::PrefillHead* heads = nullptr;     // [layers, q_heads]
  kernels::RangeArrays ranges, last_ranges;
  // See HeadLaunches; of the query heads of its kv heads.
  kernels::RangeStats* stats = nullptr;
  // Rows that are also computed densely, of all chunks in order: those of chunk c begin at
  // correct_firsts[c] (host memory).
  std::span<const int64_t> correct_firsts;
  const int32_t* correct_positions = nullptr;
  kernels::PageLists correct_lists;
};

struct SparseScratch final {
  int64_t correct_rows_max = 0;      // of correct_out
  TensorView correct_out;            // [rows, q_heads, head_dim] act
  TensorView audit_out;              // [decode rows, q_heads, head_dim] act
  TensorView sparse_lse, dense_lse;  // [decode rows, q_heads] f32
};

struct SparseInputs final {
  std::span<const DecodeClass> decode;
  std::span<const PrefillClass> prefill;
  SparseScratch scratch;
};

// Rows of a chunk whose position is a multiple of the stride, as far as a correction goes: rows of
// the prompt's dense end need none.
struct CorrectRows final {
  int64_t first = 0, count = 0;  // row of the chunk; how many
  int32_t chunk_rows = 0;        // of the chunk's rows, those that are corrected
};
CorrectRows RowsToCorrect(const kernels::RangeChunk& chunk);

}  // namespace lacuna::engine
