// Products of packed tiles for SelectRanges: logits of a warp's 16 rows and 128 key rows, as
// range_fold.cuh lays them out; mma.sync for 16-bit types, FMA for f32. Device code.
#pragma once

#include <cstdint>

#include "kernels/core/dtype.h"
#include "kernels/core/status.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/ranges/range_fold.cuh"
#include "kernels/cuda/ranges/range_work.h"

namespace lacuna::kernels::cuda {

// Calls fn with a value of the C++ type of `dtype`.
template <typename Fn>
Status WithProductType(DType dtype, Fn&& fn) {
  if (dtype == DType::kF32) return fn(float{});
  return dtype == DType::kF16 ? fn(__half{}) : fn(__nv_bfloat16{});
}

template <typename T>
inline constexpr int kRangeTileBytes =
    kRangeTileRows* kRangeTileColumns* static_cast<int>(sizeof(T));

// Copies rows [0, rows) of one step's tile, all threads of the block; the rest becomes zeros. Rows
// keep their place modulo 8.
template <typename T, int kThreads, int kRows>
__device__ __forceinline__ void CopyTileRows(const T* from, int rows, uint32_t to) {
  constexpr int kRowBytes = kRangeTileColumns * static_cast<int>(sizeof(T));
  const auto* bytes = reinterpret_cast<const std::byte*>(from);
#pragma unroll 4
  for (int at = static_cast<int>(threadIdx.x) * 16; at < kRows * kRowBytes; at += kThreads * 16) {
    AsyncCopy16(to + static_cast<uint32_t>(at), bytes + at, at < rows * kRowBytes);
  }
}

// logits += rows [row, row + 16) of tile `a` times all of tile `b`, both of one step.
template <typename T>
__device__ __forceinline__ void AddProduct(const std::byte* a, int row, const std::byte* b,
                                           RangeLogits& logits) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  if constexpr (sizeof(T) == 4) {
    const auto* x = reinterpret_cast<const float*>(a) + (row + lane / 4) * kRangeTileColumns;
    const auto* y = reinterpret_cast<const float*>(b) + (lane & 3) * 2 * kRangeTileColumns;
    for (int k = 0; k < kRangeTileColumns; ++k) {
      const float upper = x[k], lower = x[8 * kRangeTileColumns + k];
#pragma unroll
      for (int j = 0; j < 16; ++j) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const float key = y[(8 * j + e) * kRangeTileColumns + k];
          logits[4 * j + e] = fmaf(upper, key, logits[4 * j + e]);
          logits[4 * j + 2 + e] = fmaf(lower, key, logits[4 * j + 2 + e]);
        }
      }
    }
  } else {
    const int a_row = row + (lane & 15);
    const int b_row = (lane & 7) + ((lane >> 4) << 3);
    const uint32_t a_at = SharedAddress(a) + static_cast<uint32_t>(a_row * 128);
    const uint32_t b_at = SharedAddress(b) + static_cast<uint32_t>(b_row * 128);
#pragma unroll
    for (int k = 0; k < kRangeTileColumns / 16; ++k) {
      uint32_t left[4];
      LoadMatrix4(left, a_at + static_cast<uint32_t>(((2 * k + (lane >> 4)) ^ (a_row & 7)) << 4));
      const uint32_t chunk =
          static_cast<uint32_t>(((2 * k + ((lane >> 3) & 1)) ^ (b_row & 7)) << 4);
#pragma unroll
      for (int j = 0; j < 16; j += 2) {
        uint32_t right[4];
        LoadMatrix4(right, b_at + static_cast<uint32_t>(j * 8 * 128) + chunk);
        float d[2][4];
#pragma unroll
        for (int i = 0; i < 8; ++i) d[i / 4][i % 4] = logits[4 * j + i];
        MmaM16N8K16<T>(d[0], left, right[0], right[1]);
        MmaM16N8K16<T>(d[1], left, right[2], right[3]);
#pragma unroll
        for (int i = 0; i < 8; ++i) logits[4 * j + i] = d[i / 4][i % 4];
      }
    }
  }
}

}  // namespace lacuna::kernels::cuda
