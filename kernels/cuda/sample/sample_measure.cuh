// How the first of two launches measures a chunk of the logits: its greatest value, and its mass or
// where that value is.
#pragma once

#include <cstdint>

#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/sample/sample_call.cuh"
#include "kernels/cuda/sample/sample_order.cuh"

namespace lacuna::kernels::cuda {

constexpr int kMeasureThreads = 512;
constexpr int kMeasureWarps = kMeasureThreads / 32;
constexpr int kMeasureBlocks = 2;  // on a multiprocessor

__device__ inline float GreatestOf(const LaneChunk& x) {
  float most[4] = {x.values[0], x.values[1], x.values[2], x.values[3]};
#pragma unroll
  for (int i = 4; i < kLaneValues; ++i) most[i % 4] = MaxNan(most[i % 4], x.values[i]);
  const float greatest = MaxNan(MaxNan(most[0], most[1]), MaxNan(most[2], most[3]));
  return FromAscending(
      __reduce_max_sync(~0u, Ascending(greatest <= -kLowest ? greatest : INFINITY)));
}
__device__ inline float SumOf(const LaneChunk& x, float greatest, float inverse) {
  if (!isfinite(greatest)) return 0.0f;
  const float scale = inverse * kLog2E;
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kLaneValues; ++i) sum += Exp2((x.values[i] - greatest) * scale);
  return WarpSum(sum);
}
__device__ inline float PlaceOf(const LaneChunk& x, float greatest) {
  auto place = static_cast<uint32_t>(kChunk);
#pragma unroll
  for (int i = kLaneValues - 1; i >= 0; --i) {
    if (x.values[i] == greatest) place = static_cast<uint32_t>(LaneChunk::Token(i));
  }
  return __uint_as_float(__reduce_min_sync(~0u, place));
}

// ChunkStats::sum, of what the choice is from.
__device__ inline float SumOrPlaceOf(const LaneChunk& x, float greatest, const RowPlan& plan) {
  return plan.draws ? SumOf(x, greatest, plan.inverse) : PlaceOf(x, greatest);
}

}  // namespace lacuna::kernels::cuda
