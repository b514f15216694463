// The folds of SelectRanges: what the logits of a tile of 128 key rows become, in the registers
// that hold them. Device code, of a warp.
//
// Fragment: a warp has 16 rows; lane l holds rows l / 4 and l / 4 + 8, and of each 8 key rows j the
// logits [4 j + 2 half + e] of key row 8 j + l % 4 * 2 + e (mma.sync and wgmma alike). Every sum is
// made in the same order whatever else the tile holds: a row's bits depend on its own product.
#pragma once

#include <cstdint>

#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/ranges/range_work.h"

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

// The sums over the quad of each of `values`: lane l of it is left with those of
// [l * kCount / 4, (l + 1) * kCount / 4); of fewer than four, several lanes with the same.
template <int kCount, int kLanes = 2, int kSize>
__device__ __forceinline__ void ScatterQuadSums(float (&values)[kSize]) {
  if constexpr (kLanes > 0 && kCount == 1) {
    values[0] += __shfl_xor_sync(~0u, values[0], kLanes);
    ScatterQuadSums<1, kLanes / 2>(values);
  } else if constexpr (kLanes > 0) {
    const bool upper = (threadIdx.x & kLanes) != 0;
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      const float mine = upper ? values[kCount / 2 + i] : values[i];
      const float other = upper ? values[i] : values[kCount / 2 + i];
      values[i] = mine + __shfl_xor_sync(~0u, other, kLanes);
    }
    ScatterQuadSums<kCount / 2, kLanes / 2>(values);
  }
}

// Sums of 128 / kBlocks neighbouring key rows of a row, to sums[0], sums[1]... if it exists.
// Returns the lane's part of the tile's sum.
template <int kBlocks>
__device__ __forceinline__ float StoreSums(const float (&p)[32], float* sums) {
  constexpr int kEach = 32 / kBlocks;
  constexpr int kLeft = kBlocks < 4 ? 1 : kBlocks / 4;     // sums of a lane
  constexpr int kSharers = kBlocks < 4 ? 4 / kBlocks : 1;  // lanes of a sum
  const int quad = static_cast<int>(threadIdx.x) & 3;
  float blocks[kBlocks];
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) {
    float sum[2] = {};
#pragma unroll
    for (int i = 0; i < kEach; ++i) sum[i % 2] += p[block * kEach + i];
    blocks[block] = sum[0] + sum[1];
  }
  ScatterQuadSums<kBlocks>(blocks);
  if (quad % kSharers != 0) return 0.0f;
  if (sums != nullptr) {
    if constexpr (kLeft == 4) {
      reinterpret_cast<float4*>(sums)[quad] =
          make_float4(blocks[0], blocks[1], blocks[2], blocks[3]);
    } else if constexpr (kLeft == 2) {
      reinterpret_cast<float2*>(sums)[quad] = make_float2(blocks[0], blocks[1]);
    } else {
      sums[quad / kSharers] = blocks[0];
    }
  }
  float total = blocks[0];
#pragma unroll
  for (int i = 1; i < kLeft; ++i) total += blocks[i];
  return total;
}

// The same of blocks of 2^shift < 8 key rows.
__device__ __forceinline__ float StoreShortSums(const float (&p)[32], int shift, float* sums) {
  const int quad = static_cast<int>(threadIdx.x) & 3;
  float total = 0.0f;
#pragma unroll
  for (int j = 0; j < 16; ++j) {
    const int column = 8 * j + 2 * quad;
    const float pair = p[2 * j] + p[2 * j + 1];
    const float four = pair + __shfl_xor_sync(~0u, pair, 1);
    total += pair;
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
  return total;
}

// Sums of blocks of 2^shift key rows of both rows, and both tiles' sums.
__device__ __forceinline__ void StoreBlockSums(const float (&p)[2][32], int shift,
                                               float* const (&sums)[2], float (&total)[2]) {
  const auto each = [&](auto&& store) {
#pragma unroll
    for (int half = 0; half < 2; ++half) total[half] = store(p[half], sums[half]);
  };
  using Row = const float(&)[32];
  switch (shift) {
    case 3:
      each([](Row row, float* to) { return StoreSums<16>(row, to); });
      break;
    case 4:
      each([](Row row, float* to) { return StoreSums<8>(row, to); });
      break;
    case 5:
      each([](Row row, float* to) { return StoreSums<4>(row, to); });
      break;
    case 6:
      each([](Row row, float* to) { return StoreSums<2>(row, to); });
      break;
    case 7:
      each([](Row row, float* to) { return StoreSums<1>(row, to); });
      break;
    default:
      each([&](Row row, float* to) { return StoreShortSums(row, shift, to); });
      break;
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) total[half] = QuadSum(total[half]);
}

// Sums of both parts of each block of a row at position `visible`, to sums[0], sums[1]; returns the
// tile's sum.
__device__ __forceinline__ float StorePartSums(const float (&p)[32], int shift, int visible,
                                               float2* sums) {
  const int quad = static_cast<int>(threadIdx.x) & 3;
  const int cut = (visible & ((1 << shift) - 1)) - 2 * quad;
  const int second_cut = shift == 7 ? cut - 64 : cut;
  float low[2][2] = {}, high[2][2] = {};  // of both halves of the tile, and of e
#pragma unroll
  for (int j = 0; j < 8; ++j) {
#pragma unroll
    for (int part = 0; part < 2; ++part) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const float x = p[2 * (8 * part + j) + e];
        if (8 * j + e <= (part == 0 ? cut : second_cut)) {
          low[part][e] += x;
        } else {
          high[part][e] += x;
        }
      }
    }
  }
  const float2 first = make_float2(low[0][0] + low[0][1], high[0][0] + high[0][1]);
  const float2 second = make_float2(low[1][0] + low[1][1], high[1][0] + high[1][1]);
  if (shift == 7) {
    const float2 sum = make_float2(QuadSum(first.x + second.x), QuadSum(first.y + second.y));
    if (quad == 0 && sums != nullptr) sums[0] = sum;
    return sum.x + sum.y;
  }
  const float2 one = make_float2(QuadSum(first.x), QuadSum(first.y));
  const float2 two = make_float2(QuadSum(second.x), QuadSum(second.y));
  if (quad < 2 && sums != nullptr) sums[quad] = quad == 0 ? one : two;
  return (one.x + one.y) + (two.x + two.y);
}

// Probabilities of both rows against their maxima over the tile, `top`. Chains of operations are
// kept short: few warps share a multiprocessor.
template <FoldKind kKind, bool kMasked>
__device__ __forceinline__ void FindProbabilities(const RangeWork& work, const RangeLogits& logits,
                                                  int tile, const FoldRows& rows, float (&p)[2][32],
                                                  float (&top)[2]) {
  const int quad = static_cast<int>(threadIdx.x) & 3;
  constexpr bool kPermuted = kKind == FoldKind::kTotals;
  float tops[2][4];
  int last[2];  // of the lane's 8 j + e, or of the part of ChunkKey that j and e make
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    last[half] =
        kPermuted ? rows.visible[half] - (tile >> 1) * kRangeChunkKeys - 16 * quad - 4 * (tile & 1)
                  : rows.visible[half] - tile * kRangeTileRows - 2 * quad;
#pragma unroll
    for (int i = 0; i < 4; ++i) tops[half][i] = kNoLogit;
  }
#pragma unroll
  for (int j = 0; j < 16; ++j) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int half = i / 2, e = i % 2;
      float x = logits[4 * j + i] * work.logit_factor;
      const int key = kPermuted ? ChunkKey((j >> 3) * 64 + (j & 7) * 8 + e) : 8 * j + e;
      if (kMasked && key > last[half]) x = kNoLogit;
      float& largest = tops[half][j % 2 * 2 + e];
      largest = fmaxf(largest, x);
      p[half][2 * j + e] = x;
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    top[half] =
        QuadMax(fmaxf(fmaxf(tops[half][0], tops[half][1]), fmaxf(tops[half][2], tops[half][3])));
  }
  // Hidden key rows give 0 also to a row that sees none.
  const float base[2] = {top[0] > kNoLogit ? top[0] : 0.0f, top[1] > kNoLogit ? top[1] : 0.0f};
#pragma unroll
  for (int i = 0; i < 32; ++i) {
#pragma unroll
    for (int half = 0; half < 2; ++half) p[half][i] = Exp2(p[half][i] - base[half]);
  }
}

template <FoldKind kKind, bool kMasked>
__device__ __forceinline__ void FoldBothRows(const RangeWork& work, const RangeLogits& logits,
                                             int tile, const FoldRows& rows) {
  float p[2][32], top[2], total[2];
  FindProbabilities<kKind, kMasked>(work, logits, tile, rows, p, top);
  const int shift = work.product.sum_shift;
  const auto place = [&](int half) {
    return rows.row[half] * work.sums_stride +
           static_cast<int64_t>(tile) * (kRangeTileRows >> shift);
  };
  if constexpr (kKind == FoldKind::kParts) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      total[half] = StorePartSums(p[half], shift, rows.visible[half],
                                  rows.row[half] < 0 ? nullptr : work.part_sums + place(half));
    }
  } else if constexpr (kKind == FoldKind::kBlocks) {
    float* const sums[2] = {rows.row[0] < 0 ? nullptr : work.block_sums + place(0),
                            rows.row[1] < 0 ? nullptr : work.block_sums + place(1)};
    StoreBlockSums(p, shift, sums, total);
  } else {
    float sums[2][4] = {};
#pragma unroll
    for (int i = 0; i < 32; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) sums[half][i % 4] += p[half][i];
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      total[half] = QuadSum((sums[half][0] + sums[half][1]) + (sums[half][2] + sums[half][3]));
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if ((threadIdx.x & 3) == 0 && rows.row[half] >= 0) {
      work.tile_sums[rows.row[half] * work.product.key_tiles + tile] =
          make_float2(top[half], total[half]);
    }
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
    FoldBothRows<kKind, false>(work, logits, tile, rows);
  } else {
    FoldBothRows<kKind, true>(work, logits, tile, rows);
  }
}

}  // namespace lacuna::kernels::cuda
