// SparseMemory: device memory that the classes of a step work in: lists, choices, key ranges, rows
// of corrections and audits, and the tables of plans.
//
// Allocated at creation from the plans that are served; with R = running_max, T = step_tokens_max,
// P = pages of a full context, H = kv heads and Q = query heads:
//   lists      R * H * P * 16 bytes              choices of one layer      R * H * P * 8
//   choices that plans keep over steps: as many again for each slot of the plan with most of them
//   (for each layer, where streaming heads have pages of their own)
//   ranges     Q * (T / 64 + 1) * RangesMax(context) * 8, more for steps of many small chunks
//   tables     kept by path, uploaded when a path is first met
// Without plans it takes nothing. Engine thread only.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "engine/model/head_order.h"
#include "engine/model/sparse_step.h"
#include "kernels/core/status.h"
#include "kernels/device/device.h"

namespace lacuna::engine {

struct SparseLimits final {
  std::span<const std::shared_ptr<const kvcache::SparsePlan>> plans;
  int64_t step_tokens_max = 1;
  int64_t running_max = 1;
  int64_t context_tokens_max = 1;
  DType act = DType::kBF16;
  const HeadOrder* head_order = nullptr;  // of the model, or null
};

class SparseMemory final {
 public:
  explicit SparseMemory(kernels::Device& device) : device_(device) {}

  Status Allocate(const SparseLimits& limits);
  // Rows of one AttendDecode that a correction makes.
  int64_t correct_rows_max() const { return correct_rows_max_; }
  int64_t bytes() const;

  // Makes room for the classes of a step, whose sizes and spans are filled, and points them there.
  // kInternal: a plan that needs what no served plan needs.
  Status Bind(std::span<DecodeClass> decode, std::span<PrefillClass> prefill,
              kernels::Stream& stream);
  SparseScratch scratch() const;

  // Whether choices of the plan outlive a step.
  static bool KeepsChoices(const kvcache::SparsePlan& plan) {
    return plan.decode.refresh != kernels::RefreshKind::kEveryStep;
  }

 private:
  struct Tables {
    kernels::Buffer memory;
    const float* thresholds = nullptr;
    const kernels::PrefillHead* heads = nullptr;
  };
  Status BindRows(DecodeClass& rows, kernels::Stream& stream);
  Status BindChunks(PrefillClass& chunks, kernels::Stream& stream);
  Status AllocateDecode(const SparseLimits& limits);
  Status AllocatePrefill(const SparseLimits& limits);
  Status Grow(kernels::Buffer& buffer, int64_t bytes, kernels::Stream& stream);
  Result<const Tables*> TablesOf(const kvcache::SparsePlan& plan, kernels::Stream& stream);

  kernels::Device& device_;
  DType act_ = DType::kBF16;
  const HeadOrder* head_order_ = nullptr;
  int64_t running_max_ = 0, q_heads_ = 0, kv_heads_ = 0, head_dim_ = 0, pages_max_ = 0;
  int64_t kept_slots_ = 0, correct_rows_max_ = 0;
  kernels::Buffer list_pages_, list_logical_, list_masks_, list_begins_, list_ends_;
  kernels::Buffer dropped_lse_;
  kernels::Buffer masks_;                      // of one layer
  kernels::Buffer kept_masks_, kept_queries_;  // [slots]
  kernels::Buffer audit_out_, sparse_lse_, dense_lse_, correct_out_;
  kernels::Buffer range_entries_, range_lists_;
  std::map<uint64_t, Tables> tables_;  // by path_fingerprint
};

}  // namespace lacuna::engine
