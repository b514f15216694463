// Matrix product for what the fast kernels do not take: f32, odd sizes, unaligned rows. Plain f32
// arithmetic in ascending k, so it is deterministic; also the bias epilogue and random weights.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>

#include "kernels/core/checked_math.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/matmul/matmul_epilogue.cuh"
#include "kernels/cuda/matmul/matmul_kernels.h"

namespace lacuna::kernels::cuda {
namespace {

constexpr int kTile = 64;  // of rows and of columns; 16 x 16 threads with 4 x 4 outputs each
constexpr int kDepth = 16;

__device__ inline float ToF32(float value) { return value; }
__device__ inline float ToF32(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ inline float ToF32(__half value) { return __half2float(value); }

template <typename T>
__device__ void LoadTile(float (&tile)[kDepth][kTile + 1], const T* from, int64_t stride,
                         int64_t first, int64_t rows, int64_t k0, int64_t k) {
  for (int i = threadIdx.x; i < kTile * kDepth; i += 256) {
    const int64_t row = first + i / kDepth;
    const int64_t column = k0 + i % kDepth;
    tile[i % kDepth][i / kDepth] =
        row < rows && column < k ? ToF32(from[row * stride + column]) : 0.0f;
  }
}

template <typename T>
__global__ void __launch_bounds__(256)
    SimpleKernel(const T* x, const T* weight, MatmulSink sink, int64_t x_stride, int64_t m,
                 int64_t n, int64_t k) {
  __shared__ float a[kDepth][kTile + 1];
  __shared__ float b[kDepth][kTile + 1];
  const int64_t row0 = static_cast<int64_t>(blockIdx.y) * kTile;
  const int64_t column0 = static_cast<int64_t>(blockIdx.x) * kTile;
  const int ty = static_cast<int>(threadIdx.x) / 16;
  const int tx = static_cast<int>(threadIdx.x) % 16;
  float sum[4][4] = {};
  LetNextStart();
  WaitForPrevious();
  for (int64_t k0 = 0; k0 < k; k0 += kDepth) {
    LoadTile(a, x, x_stride, row0, m, k0, k);
    LoadTile(b, weight, k, column0, n, k0, k);
    __syncthreads();
    const int depth = static_cast<int>(min(static_cast<int64_t>(kDepth), k - k0));
    for (int d = 0; d < depth; ++d) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          sum[i][j] = __fmaf_rn(a[d][ty + 16 * i], b[d][tx + 16 * j], sum[i][j]);
        }
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t row = row0 + ty + 16 * i;
      const int64_t column = column0 + tx + 16 * j;
      if (row < m && column < n) StoreResult(sink, row, column, sum[i][j]);
    }
  }
}

template <typename T>
Status RunSimple(const MatmulTask& task, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(CeilDiv(task.n, kTile)),
                  static_cast<unsigned>(CeilDiv(task.m, kTile)));
  return Launch(SimpleKernel<T>, grid, dim3(256), 0, stream, static_cast<const T*>(task.x),
                static_cast<const T*>(task.weight), SinkOf(task), task.x_stride, task.m, task.n,
                task.k);
}

__global__ void __launch_bounds__(256)
    EpilogueKernel(const float* sums, MatmulSink sink, int64_t m, int64_t n) {
  LetNextStart();
  WaitForPrevious();
  const int64_t step = static_cast<int64_t>(gridDim.x) * 256;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x; i < m * n; i += step) {
    StoreResult(sink, i / n, i % n, sums[i]);
  }
}

// SplitMix64 (Steele et al. 2014) as a counter-based generator.
__device__ inline uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

__global__ void __launch_bounds__(256)
    RandomKernel(MatmulSink sink, int64_t count, uint64_t seed, float scale) {
  WaitForPrevious();
  const int64_t step = static_cast<int64_t>(gridDim.x) * 256;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * 256 + threadIdx.x; i < count; i += step) {
    const uint64_t bits = Mix(Mix(seed) ^ static_cast<uint64_t>(i));
    const float unit = static_cast<float>(static_cast<int64_t>(bits) >> 40) * 0x1.0p-23f;
    StoreResult(sink, 0, i, unit * scale);
  }
}

}  // namespace

Status SimpleMatmul(const MatmulTask& task, cudaStream_t stream) {
  if (task.m == 0 || task.n == 0) return OkStatus();
  if (task.dtype == DType::kF32) return RunSimple<float>(task, stream);
  if (task.dtype == DType::kBF16) return RunSimple<__nv_bfloat16>(task, stream);
  return RunSimple<__half>(task, stream);
}

Status MatmulEpilogue(const MatmulTask& task, const float* sums, cudaStream_t stream) {
  const int64_t count = task.m * task.n;
  if (count == 0) return OkStatus();
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(CeilDiv(count, 1024), 2048));
  return Launch(EpilogueKernel, dim3(blocks), dim3(256), 0, stream, sums, SinkOf(task), task.m,
                task.n);
}

Status FillRandom(void* out, DType dtype, int64_t count, uint64_t seed, float scale,
                  cudaStream_t stream) {
  if (count == 0) return OkStatus();
  const MatmulSink sink{out, nullptr, count, 1.0f, dtype, false};
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(CeilDiv(count, 2048), 4096));
  return Launch(RandomKernel, dim3(blocks), dim3(256), 0, stream, sink, count, seed, scale);
}

}  // namespace lacuna::kernels::cuda
