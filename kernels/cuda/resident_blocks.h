// How many blocks of a kernel run at once: the grid of a kernel whose blocks loop over their work.
// Host code, any thread.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/core/status.h"
#include "kernels/cuda/launch.cuh"

namespace lacuna::kernels::cuda {

// `wanted` blocks, or as many as are resident at once when that is fewer.
template <typename Kernel>
Result<int64_t> ResidentBlocks(Kernel kernel, int64_t wanted, int threads, size_t shared_bytes) {
  constexpr int64_t kSmsMin = 64;  // one block to each SM: no device of ours has fewer
  if (wanted <= kSmsMin) return wanted;
  int device = 0;
  int sms = 0;
  int per_sm = 0;
  LACUNA_CUDA_RETURN_IF_ERROR(cudaGetDevice(&device));
  LACUNA_CUDA_RETURN_IF_ERROR(cudaDeviceGetAttribute(&sms, cudaDevAttrMultiProcessorCount, device));
  LACUNA_CUDA_RETURN_IF_ERROR(
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_sm, kernel, threads, shared_bytes));
  return std::min<int64_t>(wanted, int64_t{sms} * std::max(per_sm, 1));
}

}  // namespace lacuna::kernels::cuda
