// What a consumer warpgroup of the Hopper prefill kernel does with its registers between matrix
// products: masks and online softmax (sm_90a).
//
// A thread holds two rows of the warpgroup's 64 (see wgmma.cuh): "row 0" and "row 1" below. Every
// decision that changes bits is per row, so the bits of a row depend only on its own query, keys
// and visible set; tiles with nothing visible leave them as they were.
#pragma once

#include <climits>
#include <cmath>
#include <cstdint>

#include "kernels/cuda/attend/attend_prefill_sm90_tiles.cuh"
#include "kernels/cuda/ptx.cuh"

namespace lacuna::kernels::cuda {

inline constexpr float kLog2E = 1.4426950408889634f;

// Running maximum (of unscaled scores) and sum; the sum is over this thread's columns only.
struct SoftmaxState final {
  float max[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0.0f, 0.0f};
};

// tanh with an absolute error near 1e-7; tanh.approx has 5e-4, too much under a cap of 50.
__device__ inline float Tanh(float x) {
  return 1.0f - __fdividef(2.0f, 1.0f + Exp2(fminf(2.0f * kLog2E * x, 126.0f)));
}

// What hides keys of a tile from rows of the half.
enum class Hiding { kNone, kCausalOnly, kAll };

__device__ inline Hiding HowHidden(const HalfItem& item, const StaticShape& shape, uint32_t mask,
                                   int first_key) {
  const int end = item.first_position + item.rows;
  const bool windowed = shape.window_tokens > 0 && first_key < end - shape.window_tokens &&
                        first_key + kTileKeys > shape.sink_tokens;
  // Granules after the last row are hidden by causality too.
  const bool listed = (mask | ~GranulesBefore(end + kGranuleKeys - 1, first_key)) == ~0u;
  if (windowed || !listed) return Hiding::kAll;
  return first_key + kTileKeys - 1 > item.first_position ? Hiding::kCausalOnly : Hiding::kNone;
}

__device__ inline void MaskCausal(float (&s)[64], int first_key, int position, int column) {
  const int last = position - first_key - column;
#pragma unroll
  for (int i = 0; i < 64; ++i) {
    if (i / 4 * 8 + i % 2 > last + i / 2 % 2 * 8) s[i] = -INFINITY;
  }
}

__device__ inline void MaskScores(float (&s)[64], const StaticShape& shape, uint32_t mask,
                                  int first_key, int position, int column) {
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    const int origin = first_key + column;
    const int last = position + 8 * row - origin;
    const int before = shape.window_tokens > 0 ? last - shape.window_tokens : INT_MIN;
    const int sink = shape.sink_tokens - origin;
#pragma unroll
    for (int j = 0; j < 16; ++j) {
      const bool listed = (mask >> (j / 2) & 1) != 0;
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int key = 8 * j + e;
        const bool seen = listed && key <= last && (key > before || key < sink);
        if (!seen) s[4 * j + 2 * row + e] = -INFINITY;
      }
    }
  }
}

// Scores to probabilities relative to the running maximum; `rescale` is what all that was
// accumulated before has to be multiplied with.
__device__ inline void UpdateSoftmax(float (&s)[64], SoftmaxState* state, float scale_log2,
                                     float (&rescale)[2]) {
  float top[2] = {state->max[0], state->max[1]};
#pragma unroll
  for (int i = 0; i < 64; i += 4) {
    top[0] = fmaxf(top[0], fmaxf(s[i], s[i + 1]));
    top[1] = fmaxf(top[1], fmaxf(s[i + 2], s[i + 3]));
  }
#pragma unroll
  for (int lanes = 1; lanes <= 2; lanes *= 2) {
    const float other[2] = {__shfl_xor_sync(kAllLanes, top[0], lanes),
                            __shfl_xor_sync(kAllLanes, top[1], lanes)};
    top[0] = fmaxf(top[0], other[0]);
    top[1] = fmaxf(top[1], other[1]);
  }
  float base[2];
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    // Rounded before the difference, which is then 0 where the maximum stays: a tile of which a row
    // sees nothing, and which another cut of the prompt would not have visited, must change
    // nothing.
    base[row] = top[row] == -INFINITY ? 0.0f : __fmul_rn(top[row], scale_log2);
    rescale[row] = Exp2(__fmul_rn(state->max[row], scale_log2) - base[row]);
    state->max[row] = top[row];
  }
  float sums[4] = {};  // of row 0 and row 1, even and odd columns
#pragma unroll
  for (int i = 0; i < 64; i += 4) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      s[i + e] = Exp2(fmaf(s[i + e], scale_log2, -base[e / 2]));
      sums[e] += s[i + e];
    }
  }
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    state->sum[row] = fmaf(state->sum[row], rescale[row], sums[2 * row] + sums[2 * row + 1]);
  }
}

template <typename T>
__device__ inline void PackScores(const float (&s)[64], uint32_t (&p)[32]) {
#pragma unroll
  for (int i = 0; i < 32; ++i) p[i] = PackPair<T>(s[2 * i], s[2 * i + 1]);
}

template <int kCount>
__device__ inline void Rescale(float (&o)[kCount], const float (&rescale)[2]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) o[i] *= rescale[i / 2 % 2];
}

template <int kCount>
__device__ inline void Clear(float (&o)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) o[i] = 0.0f;
}

}  // namespace lacuna::kernels::cuda
