// The likelier tokens of each chunk, which the first of the two launches leaves for the second, so
// that a row cut by a top_p is not read twice. From where on they are left is a guess; the second
// launch sees whether it was low enough.
#pragma once

#include <cstdint>

#include "kernels/cuda/sample/sample_measure.cuh"
#include "kernels/cuda/sample/sample_order.cuh"

namespace lacuna::kernels::cuda {

static_assert(kCandidatesMax * sizeof(Gathered) <= kChunk * sizeof(float));

struct CandidateScratch final {
  Gathered tokens[kMeasureWarps][kCandidatesMax];  // of a chunk, before they are written
  float sums[kMeasureWarps];
  float squares[kMeasureWarps];
  int counts[kMeasureWarps];
};

// The guess: where a top_p would cut a row of normal values with the mean and the spread of those
// that the block has first, a chunk for each warp, and a little lower. e^x weighs normal values of
// spread s as if their mean were s^2 higher, so that the cut is s - Q(top_p) spreads above the
// mean, Q being the normal quantile. Of a row with some tokens far in front, as a model's often
// has, the cut is much higher: then what there is room for is enough. By all threads of a block,
// with `has` for those of a warp that has a chunk. -inf where nothing can be said.
__device__ __forceinline__ float CandidateFloor(const LaneChunk& x, bool has, float top_p,
                                                float inverse, CandidateScratch& s) {
  constexpr float kQuantileOfLogit = 1.0f / 1.702f;  // the logistic curve as a normal one
  constexpr float kSpreadsMax = 2.0f;                // 2.3 % of normal values are above
  constexpr float kSpreadsMin = 1.15f;               // 12.5 %: more would not fit
  constexpr float kMargin = 0.1f;                    // spreads
  constexpr float kErrors = 8.0f;                    // times 1 / sqrt(values): what these err by
  float sum = 0.0f;
  float squares = 0.0f;
  int count = 0;
#pragma unroll
  for (int i = 0; i < kLaneValues; ++i) {
    const bool counts = has && x.values[i] > kLowest / 2;
    sum += counts ? x.values[i] : 0.0f;
    squares += counts ? x.values[i] * x.values[i] : 0.0f;
    count += counts ? 1 : 0;
  }
  sum = WarpSum(sum);
  squares = WarpSum(squares);
  count = __reduce_add_sync(~0u, count);
  __syncthreads();  // those of the row before have been read
  if (LaneIndex() == 0) {
    s.sums[WarpIndex()] = sum;
    s.squares[WarpIndex()] = squares;
    s.counts[WarpIndex()] = count;
  }
  __syncthreads();
  const int from = LaneIndex() % kMeasureWarps;
  constexpr float kTimes = 32.0f / kMeasureWarps;  // that all are counted
  const auto values = static_cast<float>(__reduce_add_sync(~0u, s.counts[from]));
  const float mean = WarpSum(s.sums[from]) / values;
  const float spread = sqrtf(fmaxf(WarpSum(s.squares[from]) / values - mean * mean, 0.0f));
  const float quantile = __logf(top_p / (1.0f - top_p)) * kQuantileOfLogit;
  const float margin = kMargin + kErrors * rsqrtf(values / kTimes);
  const float cut = fminf(spread * inverse - quantile, kSpreadsMax) - margin;
  const float floor = mean + spread * fmaxf(cut, kSpreadsMin);
  return isfinite(floor) ? floor : -INFINITY;
}

// Where a row's lie: in place of the row that would be changed.
struct CandidateRow final {
  Gathered* first;  // [all, kCandidates], behind the last one -inf
  Gathered* more;   // [all, kCandidatesMax - kCandidates]

  __device__ CandidateRow(const SampleParams& params, int row)
      : first(reinterpret_cast<Gathered*>(params.changed + row * params.changed_stride)),
        more(first + params.all * kCandidates) {}
  __device__ Gathered* First(int chunk) const { return first + chunk * kCandidates; }
  __device__ Gathered* More(int chunk) const {
    return more + chunk * (kCandidatesMax - kCandidates);
  }
};

// Of a chunk: all tokens above `floor`, and perhaps some at it.
struct Candidates final {
  float floor;
  int count;
};

// Writes those of a chunk, in no order that matters, by way of `staged` [kCandidatesMax], shared
// memory of the warp alone: single ones would be writes of parts of sectors. Of a chunk that has
// more than kCandidatesMax it leaves none.
__device__ __forceinline__ Candidates LeaveCandidates(const LaneChunk& x, float greatest,
                                                      float floor, int chunk,
                                                      const CandidateRow& row, Gathered* staged) {
  int mine = 0;
#pragma unroll
  for (int i = 0; i < kLaneValues; ++i) mine += x.values[i] >= floor ? 1 : 0;
  const int through = WarpPrefix(mine);
  int count = __shfl_sync(~0u, through, 31);
  if (count > kCandidatesMax) {
    count = 0;
    floor = greatest;
  } else {
    Gathered* place = staged + (through - mine);
    const int token = chunk * kChunk + LaneChunk::Token(0);
#pragma unroll
    for (int i = 0; i < kLaneValues; ++i) {
      const bool here = x.values[i] >= floor;
      SharedStoreIf(here, place, x.values[i], token + (LaneChunk::Token(i) - LaneChunk::Token(0)));
      place += here ? 1 : 0;
    }
    __syncwarp();
  }
  const int lane = LaneIndex();
  row.First(chunk)[lane] = lane < count ? staged[lane] : Gathered{-INFINITY, 0};
#pragma unroll 1
  for (int i = kCandidates + lane; i < count; i += 32) row.More(chunk)[i - kCandidates] = staged[i];
  __syncwarp();  // before the next chunk
  return {floor, count};
}

}  // namespace lacuna::kernels::cuda
