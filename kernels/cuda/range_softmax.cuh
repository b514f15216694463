// Softmax of a row by one warp, in an order that depends on the row's length only. Device code.
#pragma once

#include <cmath>
#include <cstdint>

namespace lacuna::kernels::cuda {

__device__ __forceinline__ void WarpSoftmax(float* row, int count) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  float top = -INFINITY;
  for (int i = lane; i < count; i += 32) top = fmaxf(top, row[i]);
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    top = fmaxf(top, __shfl_xor_sync(~0u, top, lanes));
  }
  float sum = 0.0f;
  for (int i = lane; i < count; i += 32) {
    row[i] = expf(row[i] - top);
    sum += row[i];
  }
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
  const float share = 1.0f / sum;
  for (int i = lane; i < count; i += 32) row[i] *= share;
}

}  // namespace lacuna::kernels::cuda
