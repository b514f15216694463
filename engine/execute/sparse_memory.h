// SparseMemory: device memory that the classes of a step work in: lists, choices, key ranges, rows
// of corrections and audits, and the tables of plans.
//
// Allocated at creation from the plans that are served, and never later. With R = running_max,
// D = decode rows of a step with padding, T = step_tokens_max, P = pages of a full context, H = kv
// heads and Q = query heads:
//   lists      D * H * P * 16 bytes              choices of one layer      D * H * P * 8
//   choices that plans keep over steps: R * H * P * 8 for each slot of the plan with most of them
//   (for each layer, where streaming heads have pages of their own)
//   ranges     Q * (T / 64 + 1) * RangesMax(context) * 8
// Without plans it takes nothing. Engine thread only.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/execute/path_tables.h"
#include "engine/model/head_order.h"
#include "engine/model/sparse_step.h"
#include "kernels/core/status.h"
#include "kernels/device/device.h"

namespace lacuna::engine {

struct SparseLimits final {
  std::span<const std::shared_ptr<const kvcache::SparsePlan>> plans;
  int64_t step_tokens_max = 1;
  int64_t running_max = 1;
  int64_t decode_rows_max = 1;  // of a step, with padding
  int64_t context_tokens_max = 1;
  DType act = DType::kBF16;
  const HeadOrder* head_order = nullptr;   // of the model, or null
  const HeadLaunches* launches = nullptr;  // likewise
};

class SparseMemory final {
 public:
  explicit SparseMemory(kernels::Device& device) : device_(device) {}

  Status Allocate(const SparseLimits& limits);
  // Rows of one AttendDecode that a correction makes.
  int64_t correct_rows_max() const { return correct_rows_max_; }
  // Query tiles of one class of chunks.
  static int64_t TilesMax(int64_t step_tokens_max);
  int64_t bytes() const;

  // Points the classes of step number `step`, whose sizes and spans are filled, to their memory.
  // kInternal: a plan that needs what no served plan needs.
  Status Bind(std::span<DecodeClass> decode, std::span<PrefillClass> prefill, int64_t step,
              kernels::Stream& stream);
  // See PathTables.
  std::vector<uint64_t> TakeEvictedPaths() { return tables_.TakeEvicted(); }
  SparseScratch scratch() const;

  // Whether choices of the plan outlive a step.
  static bool KeepsChoices(const kvcache::SparsePlan& plan) {
    return plan.decode.refresh != kernels::RefreshKind::kEveryStep;
  }

 private:
  Status BindRows(DecodeClass& rows, int64_t step, kernels::Stream& stream);
  Status BindChunks(PrefillClass& chunks, int64_t step, kernels::Stream& stream);
  Status AllocateDecode(const SparseLimits& limits);
  Status AllocatePrefill(const SparseLimits& limits);

  kernels::Device& device_;
  DType act_ = DType::kBF16;
  const HeadLaunches* launches_ = nullptr;
  int64_t running_max_ = 0, decode_rows_max_ = 0, q_heads_ = 0, kv_heads_ = 0, head_dim_ = 0,
          pages_max_ = 0;
  // Choices of heads, and of whole layers, stand apart: of either kind a mask's place follows from
  // the row's choice alone.
  struct Choices {
    int64_t kept_slots = 0;
    kernels::Buffer masks;       // of one layer
    kernels::Buffer kept_masks;  // [slots]
  };
  static bool ByLayer(const kvcache::SparsePlan& plan) {
    return plan.decode.owner == kernels::OwnerKind::kLayer;
  }
  Choices& ChoicesOf(const kvcache::SparsePlan& plan) {
    return ByLayer(plan) ? layer_choices_ : head_choices_;
  }
  int64_t correct_rows_max_ = 0;
  Choices head_choices_, layer_choices_;
  kernels::Buffer list_pages_, list_logical_, list_masks_, list_begins_, list_ends_;
  kernels::Buffer dropped_lse_;
  kernels::Buffer kept_queries_;  // [slots]
  kernels::Buffer audit_out_, sparse_lse_, dense_lse_, correct_out_;
  kernels::Buffer range_entries_, range_lists_;
  PathTables tables_;
};

}  // namespace lacuna::engine
