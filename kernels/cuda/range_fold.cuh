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

// What a row and a tile leave, besides their maximum and sum: nothing (probes of which single
// columns are chosen, whose rows and keys are packed in orders of their own), the sums of blocks
// (antidiagonals), or those of both parts of each block (other probes).
enum class FoldKind : uint8_t { kTotals, kBlocks, kParts };

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
    const int packed = first + half * 8 + (static_cast<int>(threadIdx.x) & 31) / 4;
    const int row = work.spreads() ? PieceRow(packed) : packed;
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

// Sums of both parts of each block of a row at position `visible`, to sums[0], sums[1]; returns the
// tile's sum.
__device__ __forceinline__ float StorePartSums(const float (&p)[32], int shift, int visible,
                                               float2* sums) {
  const int quad = static_cast<int>(threadIdx.x) & 3;
  const int cut = (visible & ((1 << shift) - 1)) - 2 * quad;
  float low[2] = {}, high[2] = {};
#pragma unroll
  for (int j = 0; j < 16; ++j) {
    const int of_half = shift == 7 ? cut - j / 8 * 64 : cut;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const bool is_low = 8 * (j & 7) + e <= of_half;
      low[j / 8] += is_low ? p[2 * j + e] : 0.0f;
      high[j / 8] += is_low ? 0.0f : p[2 * j + e];
    }
  }
  if (shift == 7) {
    const float2 sum = make_float2(QuadSum(low[0] + low[1]), QuadSum(high[0] + high[1]));
    if (quad == 0 && sums != nullptr) sums[0] = sum;
    return sum.x + sum.y;
  }
  const float2 first = make_float2(QuadSum(low[0]), QuadSum(high[0]));
  const float2 second = make_float2(QuadSum(low[1]), QuadSum(high[1]));
  if (quad < 2 && sums != nullptr) sums[quad] = quad == 0 ? first : second;
  return (first.x + first.y) + (second.x + second.y);
}

template <FoldKind kKind, bool kMasked>
__device__ __forceinline__ void FoldRow(const RangeWork& work, const RangeLogits& logits, int half,
                                        int tile, int visible, int64_t row) {
  const int quad = static_cast<int>(threadIdx.x) & 3;
  const float factor = LogitFactor(work);
  constexpr bool kPermuted = kKind == FoldKind::kTotals;
  // Of the lane's 8 j + e, or of the part of ChunkKey that j and e make.
  const int last = kPermuted ? visible - (tile >> 1) * kRangeChunkKeys - 16 * quad - 4 * (tile & 1)
                             : visible - tile * kRangeTileRows - 2 * quad;
  float p[32];
  float top = kNoLogit;
#pragma unroll
  for (int j = 0; j < 16; ++j) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      float& x = p[2 * j + e];
      x = logits[4 * j + 2 * half + e] * factor;
      const int key = kPermuted ? ChunkKey((j >> 3) * 64 + (j & 7) * 8 + e) : 8 * j + e;
      if (kMasked && key > last) x = kNoLogit;
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
  const int shift = work.product.sum_shift;
  float total;
  if constexpr (kKind == FoldKind::kParts) {
    float2* sums = row < 0 ? nullptr
                           : work.part_sums + row * work.sums_stride +
                                 static_cast<int64_t>(tile) * (kRangeTileRows >> shift);
    total = StorePartSums(p, shift, visible, sums);
  } else {
    total = QuadSum(even + odd);
  }
  if (quad == 0 && row >= 0) {
    work.tile_sums[row * work.product.key_tiles + tile] = make_float2(top, total);
  }
  if constexpr (kKind == FoldKind::kBlocks) {
    float* sums = row < 0 ? nullptr
                          : work.block_sums + row * work.sums_stride +
                                static_cast<int64_t>(tile) * (kRangeTileRows >> shift);
    StoreBlockSums(p, shift, sums);
  }
}

// The last key that a tile may hold, and the first.
template <FoldKind kKind>
__device__ __forceinline__ int LastKeyOf(int tile) {
  return ((kKind == FoldKind::kTotals ? tile | 1 : tile) + 1) * kRangeTileRows - 1;
}
template <FoldKind kKind>
__device__ __forceinline__ int FirstKeyOf(int tile) {
  return (kKind == FoldKind::kTotals ? tile & ~1 : tile) * kRangeTileRows;
}

// Writes the sums of the warp's 16 rows and one tile of keys.
template <FoldKind kKind>
__device__ __forceinline__ void FoldTile(const RangeWork& work, const RangeLogits& logits, int tile,
                                         const FoldRows& rows) {
  const int last_key = LastKeyOf<kKind>(tile);
  const bool whole = rows.visible[0] >= last_key && rows.visible[1] >= last_key;
  if (__all_sync(~0u, whole)) {
    FoldRow<kKind, false>(work, logits, 0, tile, rows.visible[0], rows.row[0]);
    FoldRow<kKind, false>(work, logits, 1, tile, rows.visible[1], rows.row[1]);
  } else {
    FoldRow<kKind, true>(work, logits, 0, tile, rows.visible[0], rows.row[0]);
    FoldRow<kKind, true>(work, logits, 1, tile, rows.visible[1], rows.row[1]);
  }
}

}  // namespace lacuna::kernels::cuda
