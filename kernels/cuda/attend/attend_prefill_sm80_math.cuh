// What a warp of attend_prefill_sm80.cu computes: scores, masks, the running softmax and the
// output, all in registers.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cuda/attend/attend_prefill_sm80.cuh"
#include "kernels/cuda/ptx.cuh"

namespace lacuna::kernels::cuda::sm80 {

inline constexpr int kKeyColumns = kKeyTile / 8;
template <int kMmaRows>
using TileScores = float[kMmaRows][kKeyColumns][4];

// scores = Q K^T for the warp's rows and the keys of a tile.
template <typename T, typename Tile>
__device__ __forceinline__ void Scores(uint32_t q, int warp_row, uint32_t k,
                                       TileScores<Tile::kMmaRows>& scores) {
  constexpr int kDim = Tile::kDim;
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int q_row = warp_row + (lane & 15);  // matrices 0, 1 of a load: the upper, lower 8 rows
  const int k_row = (lane & 7) + ((lane >> 4) << 3);
#pragma unroll
  for (int m = 0; m < Tile::kMmaRows; ++m) {
#pragma unroll
    for (int n = 0; n < kKeyColumns; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[m][n][i] = 0.0f;
    }
  }
#pragma unroll
  for (int step = 0; step < kDim / 16; ++step) {
    const int row_bytes = StripeWidth<kDim>(step * 16) * 2;
    const uint32_t q_at = q + StepOffset<kDim, Tile::kRows>(step, q_row, lane >> 4);
    const uint32_t k_at = k + StepOffset<kDim, kKeyTile>(step, k_row, (lane >> 3) & 1);
    uint32_t a[Tile::kMmaRows][4];
#pragma unroll
    for (int m = 0; m < Tile::kMmaRows; ++m) {
      LoadMatrix4(a[m], q_at + static_cast<uint32_t>(m * 16 * row_bytes));
    }
#pragma unroll
    for (int n = 0; n < kKeyColumns; n += 2) {
      uint32_t b[4];
      LoadMatrix4(b, k_at + static_cast<uint32_t>(n * 8 * row_bytes));
#pragma unroll
      for (int m = 0; m < Tile::kMmaRows; ++m) {
        MmaM16N8K16<T>(scores[m][n], a[m], b[0], b[1]);
        MmaM16N8K16<T>(scores[m][n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

// out += P V, P being the probabilities in `scores` rounded to T.
template <typename T, typename Tile>
__device__ __forceinline__ void AddValues(uint32_t v, const TileScores<Tile::kMmaRows>& scores,
                                          float (&out)[Tile::kMmaRows][Tile::kDim / 8][4]) {
  constexpr int kDim = Tile::kDim;
  const int lane = static_cast<int>(threadIdx.x) & 31;
#pragma unroll
  for (int keys = 0; keys < kKeyTile / 16; ++keys) {
    uint32_t a[Tile::kMmaRows][4];
#pragma unroll
    for (int m = 0; m < Tile::kMmaRows; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* pair = &scores[m][2 * keys + i / 2][i % 2 * 2];
        a[m][i] = PackPair<T>(pair[0], pair[1]);
      }
    }
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      const int row_bytes = StripeWidth<kDim>(step * 16) * 2;
      uint32_t b[4];
      LoadMatrix4Transposed(b, v + StepOffset<kDim, kKeyTile>(step, lane & 15, lane >> 4) +
                                   static_cast<uint32_t>(keys * 16 * row_bytes));
#pragma unroll
      for (int m = 0; m < Tile::kMmaRows; ++m) {
        MmaM16N8K16<T>(out[m][2 * step], a[m], b[0], b[1]);
        MmaM16N8K16<T>(out[m][2 * step + 1], a[m], b[2], b[3]);
      }
    }
  }
}

template <int kMmaRows>
__device__ __forceinline__ void Mask(const WarpRows& rows, int first_key, int groups,
                                     const StaticShape& shape, TileScores<kMmaRows>& scores) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
#pragma unroll
  for (int m = 0; m < kMmaRows; ++m) {
#pragma unroll
    for (int n = 0; n < kKeyColumns; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int key = first_key + n * 8 + (lane & 3) * 2 + (i & 1);
        const int position = rows.first + m * 16 + (i >> 1) * 8 + (lane >> 2);
        const bool visible = key <= position && ((groups >> (n >> 1)) & 1) != 0 &&
                             (shape.window_tokens == 0 || key > position - shape.window_tokens ||
                              key < shape.sink_tokens);
        if (!visible) scores[m][n][i] = -INFINITY;
      }
    }
  }
}

// x -> cap * tanh(scale * x / cap), by tanh(y) = 1 - 2 / (1 + e^2y).
template <int kMmaRows>
__device__ __forceinline__ void CapScores(const AttentionParams& params,
                                          TileScores<kMmaRows>& scores) {
  const float inner = params.scale / params.softcap * 2.885390082f;  // 2 log2(e)
#pragma unroll
  for (int m = 0; m < kMmaRows; ++m) {
#pragma unroll
    for (int n = 0; n < kKeyColumns; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float e = Exp2(scores[m][n][i] * inner);
        scores[m][n][i] = params.softcap * (1.0f - __fdividef(2.0f, 1.0f + e));
      }
    }
  }
}

// Running softmax of the rows of a lane: row m * 16 + half * 8 + lane / 4. Maxima are of scores
// times the exponent scale. A row's four lanes agree on the maximum; each has the sum over its own
// columns.
inline constexpr float kNoMaximum = -1e30f;  // finite, so that differences of maxima are numbers
template <int kMmaRows>
struct Running final {
  float max[kMmaRows][2];
  float sum[kMmaRows][2];
};

// Scores become probabilities relative to the new maxima; `keep` is what older sums shrink by.
template <int kMmaRows>
__device__ __forceinline__ void Softmax(float exponent_scale, TileScores<kMmaRows>& scores,
                                        Running<kMmaRows>* running, float (&keep)[kMmaRows][2]) {
#pragma unroll
  for (int m = 0; m < kMmaRows; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float max = scores[m][0][2 * half];
#pragma unroll
      for (int n = 0; n < kKeyColumns; ++n) {
        max = fmaxf(max, fmaxf(scores[m][n][2 * half], scores[m][n][2 * half + 1]));
      }
      max = fmaxf(max, __shfl_xor_sync(~0u, max, 1));
      max = fmaxf(max, __shfl_xor_sync(~0u, max, 2));
      max = fmaxf(running->max[m][half], max * exponent_scale);
      keep[m][half] = Exp2(running->max[m][half] - max);
      running->max[m][half] = max;
      float even = 0.0f, odd = 0.0f;
#pragma unroll
      for (int n = 0; n < kKeyColumns; ++n) {
        float& low = scores[m][n][2 * half];
        float& high = scores[m][n][2 * half + 1];
        low = Exp2(fmaf(low, exponent_scale, -max));
        high = Exp2(fmaf(high, exponent_scale, -max));
        even += low;
        odd += high;
      }
      running->sum[m][half] = fmaf(running->sum[m][half], keep[m][half], even + odd);
    }
  }
}

// Skipped when no row of the warp has a new maximum: times 1 changes nothing.
template <int kMmaRows, int kTiles>
__device__ __forceinline__ void Rescale(const float (&keep)[kMmaRows][2],
                                        float (&out)[kMmaRows][kTiles][4]) {
  bool same = true;
#pragma unroll
  for (int m = 0; m < kMmaRows; ++m) same &= keep[m][0] == 1.0f && keep[m][1] == 1.0f;
  if (__all_sync(~0u, same)) return;
#pragma unroll
  for (int m = 0; m < kMmaRows; ++m) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) out[m][n][i] *= keep[m][i >> 1];
    }
  }
}

}  // namespace lacuna::kernels::cuda::sm80
