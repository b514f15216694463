// The matrix product kernels of ours, which matmul.cc chooses from. Stateless; engine thread.
//
// All compute out = alpha * (x * weight^T + bias), or out += ... when `accumulate`, with f32
// accumulation. SkinnyMatmul (whole-k) and TileMatmul run the same chain of tensor core
// instructions for an output, so that its bits do not depend on which of them did it.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/core/dtype.h"
#include "kernels/core/status.h"

namespace lacuna::kernels::cuda {

struct MatmulTask final {
  const void* x = nullptr;       // [m, k], rows x_stride elements apart
  const void* weight = nullptr;  // [n, k], contiguous, the dtype of x
  const float* bias = nullptr;   // [n] or null
  void* out = nullptr;           // [m, n], rows out_stride elements apart
  int64_t x_stride = 0;
  int64_t out_stride = 0;
  int64_t m = 0;
  int64_t n = 0;
  int64_t k = 0;
  DType dtype = DType::kBF16;
  DType out_dtype = DType::kF32;
  float alpha = 1.0f;
  bool accumulate = false;  // out is f32
};

// How SkinnyMatmul runs; the defaults are what measured best on an H200.
struct SkinnyTuning final {
  int tile_groups = 4;          // of 8 weight rows: 1, 2, 4 or 8
  int chunk = 512;              // k of a ring slot: 128, 256 or 512
  int ring_bytes = 190 * 1024;  // at most; more than half an SM's, or two blocks may share one
};

// m <= kSkinnyRowsMax, bf16 or f16, sm_90, k a multiple of 8, rows of x aligned to 16 bytes.
// whole_k: one warp accumulates an output over all of k (deterministic mode).
constexpr int64_t kSkinnyRowsMax = 16;
Status SkinnyMatmul(const MatmulTask& task, int sm_count, bool whole_k, const SkinnyTuning& tuning,
                    cudaStream_t stream);

// Any m; bf16 or f16, k a multiple of 8, rows of x aligned to 16 bytes.
Status TileMatmul(const MatmulTask& task, cudaStream_t stream);

// Every shape, alignment and dtype; k in ascending order, plain f32 arithmetic.
Status SimpleMatmul(const MatmulTask& task, cudaStream_t stream);

// out = alpha * (sums + bias), or out += ...; sums [m, n] f32 contiguous; the rest as in `task`.
Status MatmulEpilogue(const MatmulTask& task, const float* sums, cudaStream_t stream);

// count numbers of `dtype`, uniform in +- scale, each a function of (seed, its index).
Status FillRandom(void* out, DType dtype, int64_t count, uint64_t seed, float scale,
                  cudaStream_t stream);

}  // namespace lacuna::kernels::cuda
