// The folds of SelectRanges: what the logits of a tile of 128 key rows become, in the registers
// that hold them. Device code, of a warp.
//
// Fragment: a warp has 16 rows; lane l holds rows l / 4 and l / 4 + 8, and of each 8 key rows j the
// logits [4 j + 2 half + e] of key row 8 j + l % 4 * 2 + e (mma.sync and wgmma alike). Every sum is
// made in the same order whatever else the tile holds: a row's bits depend on its own product.
#pragma once

#include <cstdint>

#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/range_work.h"

namespace lacuna::kernels::cuda {

using RangeLogits = float[64];

// Below every logit; finite, so that a difference of two is 0 and not NaN.
inline constexpr float kNoLogit = -1e30f;

// The rows of a lane.
struct FoldRows final {
  int visible[2];  // last key row that is seen, or -1
  int64_t row[2];  // in the arrays of the slice, or -1
};

// Rows of a warp that begins at row `first` of the members' rows of kv head `kv`.
__device__ __forceinline__ FoldRows RowsOfWarp(const RangeWork& work, int kv, int first) {
  const int rows = work.members * work.product.rows;
  FoldRows fold;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int row = first + half * 8 + (static_cast<int>(threadIdx.x) & 31) / 4;
    fold.row[half] = row < rows ? int64_t{kv} * rows + row : -1;
    fold.visible[half] = row < rows ? work.visible[row % work.product.rows] : -1;
  }
  return fold;
}

__device__ __forceinline__ float QuadSum(float value) {
  value += __shfl_xor_sync(~0u, value, 1);
  return value + __shfl_xor_sync(~0u, value, 2);
}
__device__ __forceinline__ float QuadMax(float value) {
  value = fmaxf(value, __shfl_xor_sync(~0u, value, 1));
  return fmaxf(value, __shfl_xor_sync(~0u, value, 2));
}

// What the product is multiplied by to become logits in units of log2.
__device__ __forceinline__ float LogitFactor(const RangeWork& work) {
  return work.scale / static_cast<float>(work.product.stride) * 1.442695041f;
}

// Sums of 2^shift neighbouring key rows of one row, to sums[0], sums[1]...
__device__ __forceinline__ void StoreBlockSums(const float (&p)[32], int shift, float* sums) {
  const int quad = static_cast<int>(threadIdx.x) & 3;
  if (shift >= 3) {
    const int last = (1 << (shift - 3)) - 1;
    float run = 0.0f;
#pragma unroll
    for (int j = 0; j < 16; ++j) {
      run += p[2 * j] + p[2 * j + 1];
      if ((j & last) != last) continue;
      const float sum = QuadSum(run);
      const int block = j >> (shift - 3);
      if ((block & 3) == quad && sums != nullptr) sums[block] = sum;
      run = 0.0f;
    }
    return;
  }
#pragma unroll
  for (int j = 0; j < 16; ++j) {
    const int column = 8 * j + 2 * quad;
    const float pair = p[2 * j] + p[2 * j + 1];
    const float four = pair + __shfl_xor_sync(~0u, pair, 1);
    if (sums == nullptr) continue;
    if (shift == 0) {
      sums[column] = p[2 * j];
      sums[column + 1] = p[2 * j + 1];
    } else if (shift == 1) {
      sums[column / 2] = pair;
    } else if ((quad & 1) == 0) {
      sums[column / 4] = four;
    }
  }
}

template <bool kBlocks, bool kMasked>
__device__ __forceinline__ void FoldRow(const RangeWork& work, const RangeLogits& logits, int half,
                                        int tile, int visible, int64_t row) {
  const int quad = static_cast<int>(threadIdx.x) & 3;
  const float factor = LogitFactor(work);
  const int last = visible - tile * kRangeTileRows - 2 * quad;  // of the lane's 8 j + e
  float p[32];
  float top = kNoLogit;
#pragma unroll
  for (int j = 0; j < 16; ++j) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float& x = p[2 * j + e];
      x = logits[4 * j + 2 * half + e] * factor;
      if (kMasked && 8 * j + e > last) x = kNoLogit;
      top = fmaxf(top, x);
    }
  }
  top = QuadMax(top);
  // Hidden key rows give 0 also to a row that sees none.
  const float base = top > kNoLogit ? top : 0.0f;
  float even = 0.0f, odd = 0.0f;
#pragma unroll
  for (int j = 0; j < 16; ++j) {
    p[2 * j] = Exp2(p[2 * j] - base);
    p[2 * j + 1] = Exp2(p[2 * j + 1] - base);
    even += p[2 * j];
    odd += p[2 * j + 1];
  }
  const float total = QuadSum(even + odd);
  if (quad == 0 && row >= 0) {
    work.tile_sums[row * work.product.key_tiles + tile] = make_float2(top, total);
  }
  if constexpr (kBlocks) {
    const int shift = work.product.sum_shift;
    float* sums = row < 0 ? nullptr
                          : work.block_sums + row * work.sums_stride +
                                static_cast<int64_t>(tile) * (kRangeTileRows >> shift);
    StoreBlockSums(p, shift, sums);
  }
}

// Writes tile_sums, and with kBlocks block_sums, of the warp's 16 rows and one tile of keys.
template <bool kBlocks>
__device__ __forceinline__ void FoldTile(const RangeWork& work, const RangeLogits& logits, int tile,
                                         const FoldRows& rows) {
  const int last_key = (tile + 1) * kRangeTileRows - 1;
  const bool whole = rows.visible[0] >= last_key && rows.visible[1] >= last_key;
  if (__all_sync(~0u, whole)) {
    FoldRow<kBlocks, false>(work, logits, 0, tile, rows.visible[0], rows.row[0]);
    FoldRow<kBlocks, false>(work, logits, 1, tile, rows.visible[1], rows.row[1]);
  } else {
    FoldRow<kBlocks, true>(work, logits, 0, tile, rows.visible[0], rows.row[0]);
    FoldRow<kBlocks, true>(work, logits, 1, tile, rows.visible[1], rows.row[1]);
  }
}

}  // namespace lacuna::kernels::cuda
