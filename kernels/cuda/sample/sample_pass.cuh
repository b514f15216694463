// The first of two launches: one pass over all logits, spread over the device, which leaves of each
// chunk its greatest value and its mass. Where a row has edits or a mask it leaves the changed row
// too; where one is cut by a top_p alone its Candidates. The logits stay as they are.
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
    ForRows([&](const SampleRow& row, int /*index*/, int /*begin*/, int end) {
      const RowPlan plan(row, p_);
      changes = changes || plan.changes;
      if (plan.changes) return Skip(end);
      if (!plan.leaves) [[likely]] {
        return Measure(plan, end);
      }
      MeasureAndLeave(plan, row.top_p, end);
    });
    if (!changes) return;
    ForRows([&](const SampleRow& row, int index, int begin, int end) {
      const RowPlan plan(row, p_);
      if (plan.changes) ChangedRow(p_, plan, index).Measure(begin, end);
    });
  }

 private:
  // Calls f(row, its index, begin, end) for the block's chunks [begin, end) of each row.
  template <typename F>
  __device__ __forceinline__ void ForRows(const F& f) const {
#pragma unroll 1
    for (int at = begin_; at < end_;) {
      const int row = at / p_.all;
      const int end = min((row + 1) * p_.all, end_);
      f(LoadRow<false>(p_.rows[row]), row, at, end);
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
      Take(x);
      ChunkStats stats;
      stats.raw_greatest = stats.greatest = GreatestOf(x);
      stats.raw_sum = plan.ranked ? SumOf(x, stats.greatest, 1.0f) : 0.0f;
      stats.sum = SumOrPlaceOf(x, stats.greatest, plan);
      if (LaneIndex() == 0) p_.stats[at] = stats;
    }
  }
  // Of a row that leaves Candidates. Begins with barriers of the block.
  __device__ __forceinline__ void MeasureAndLeave(const RowPlan& plan, float top_p, int end) {
    CandidateScratch& scratch = SharedMeasure().candidates;
    float floor = 0.0f;
#pragma unroll 1
    for (bool first = true;; first = false) {
      const ChunkCursor at = here_;
      const bool has = at.at < end;
      LaneChunk x;
      if (has) Take(x);
      if (first) floor = CandidateFloor(x, has, top_p, plan.inverse, scratch);
      if (!has) return;
      const float greatest = GreatestOf(x);
      const float sum = SumOf(x, greatest, plan.inverse);
      const Candidates left = LeaveCandidates(
          x, greatest, floor, at.chunk, CandidateRow(p_, at.row), scratch.tokens[WarpIndex()]);
      const float left_floor = greatest == INFINITY ? INFINITY : left.floor;
      if (LaneIndex() == 0) {
        p_.stats[at.at] = {left_floor, __int_as_float(left.count), greatest, sum};
      }
    }
  }
  // The next chunk; the one after it is on its way then.
  __device__ __forceinline__ void Take(LaneChunk& x) {
    next_.Take(here_, x);
    if (IsCut(p_, here_)) StoreWhole(x, p_.tails + here_.row * kChunk);
    here_.Move(kMeasureWarps, p_.all);
    Fetch();
  }

  const SampleParams& p_;
  const int begin_;
  const int end_;
  ChunkCursor here_;
  NextChunk next_;
};

}  // namespace lacuna::kernels::cuda
