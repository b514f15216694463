// The first of two launches: one pass over all logits, spread over the device, which leaves of each
// chunk its greatest value and its mass. Where a row has edits or a mask it leaves the changed row
// too; the logits stay as they are.
#pragma once

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/sample/sample_changed.cuh"
#include "kernels/cuda/sample/sample_chunks.cuh"
#include "kernels/cuda/sample/sample_measure.cuh"

namespace lacuna::kernels::cuda {

// A block takes `measured_chunks` neighbours of those of all rows, a warp one at a time.
class ChunkMeasure final {
 public:
  __device__ explicit ChunkMeasure(const SampleParams& params)
      : p_(params),
        begin_(static_cast<int>(blockIdx.x) * p_.measured_chunks),
        end_(min(begin_ + p_.measured_chunks, p_.measured)),
        here_(begin_ + WarpIndex(), p_.all),
        next_(params) {}

  // Waits first: what it lets start may read what is older than it. Rows that change come last:
  // what they need in registers the others do not have to spare.
  __device__ __forceinline__ void Run() {
    WaitForPrevious();
    LetNextStart();
    Fetch();
    bool changes = false;
    ForRows([&](const RowPlan& plan, int /*row*/, int /*begin*/, int end) {
      changes = changes || plan.changes;
      if (plan.changes) {
        Skip(end);
      } else {
        Measure(plan, end);
      }
    });
    if (!changes) return;
    ForRows([&](const RowPlan& plan, int row, int begin, int end) {
      if (plan.changes) ChangedRow(p_, plan, row).Measure(begin, end);
    });
  }

 private:
  // Calls f(plan, row, begin, end) for the block's chunks [begin, end) of each row.
  template <typename F>
  __device__ __forceinline__ void ForRows(const F& f) const {
#pragma unroll 1
    for (int at = begin_; at < end_;) {
      const int row = at / p_.all;
      const int end = min((row + 1) * p_.all, end_);
      f(RowPlan(p_.rows[row], p_), row, at, end);
      at = end;
    }
  }
  __device__ __forceinline__ void Fetch() {
    if (here_.at < end_) next_.Fetch(here_);
  }
  __device__ __forceinline__ void Skip(int end) {
    if (here_.at >= end) return;
    next_.Drop(here_);
#pragma unroll 1
    while (here_.at < end) here_.Move(kMeasureWarps, p_.all);
    Fetch();
  }
  __device__ __forceinline__ void Measure(const RowPlan& plan, int end) {
#pragma unroll 1
    while (here_.at < end) {
      const int at = here_.at;
      LaneChunk x;
      next_.Take(here_, x);
      if (IsCut(p_, here_)) StoreWhole(x, p_.tails + here_.row * kChunk);
      here_.Move(kMeasureWarps, p_.all);
      Fetch();
      ChunkStats stats;
      stats.raw_greatest = stats.greatest = GreatestOf(x);
      stats.raw_sum = plan.ranked ? SumOf(x, stats.greatest, 1.0f) : 0.0f;
      stats.sum = SumOrPlaceOf(x, stats.greatest, plan);
      if (LaneIndex() == 0) p_.stats[at] = stats;
    }
  }

  const SampleParams& p_;
  const int begin_;
  const int end_;
  ChunkCursor here_;
  NextChunk next_;
};

}  // namespace lacuna::kernels::cuda
