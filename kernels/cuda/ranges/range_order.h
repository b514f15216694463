// In which order probes of single columns and distances are packed for the products of
// SelectRanges, so that a thread has neighbouring rows and keys of what tensor cores leave it
// (range_spread.cuh).
#pragma once

#include <cuda_runtime.h>

#include "kernels/ops/range_limits.h"

namespace lacuna::kernels::cuda {

inline constexpr int kRangePieceRows = kProbePieceRows;  // that lie one after another
inline constexpr int kRangeChunkKeys = 256;  // keys that are packed in an order of their own

// Packed row `n` of a piece holds its row PieceRow(n), so that the lane that has columns
// 8 j + l % 4 * 2 + {0, 1} of a product has 16 neighbouring rows: l % 4 * 16 + 2 j + {0, 1}.
__host__ __device__ constexpr int PieceRow(int n) {
  return (n & ~63) + ((n >> 1) & 3) * 16 + ((n >> 3) & 7) * 2 + (n & 1);
}
// Packed key `n` is key ChunkKey(n), so that the lane that has rows l / 4 and l / 4 + 8 of warp w's
// 16 rows in each of the chunk's four tiles of 64 has 8 neighbouring keys: 64 w + l / 4 * 8 + ...
__host__ __device__ constexpr int ChunkKey(int n) {
  return (n & ~255) + ((n >> 4) & 3) * 64 + (n & 7) * 8 + ((n >> 6) & 3) * 2 + ((n >> 3) & 1);
}

}  // namespace lacuna::kernels::cuda
