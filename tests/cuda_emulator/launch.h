// What cudaLaunchKernelEx is in the emulator: the kernel runs at once, or is recorded when the
// stream is being captured.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <tuple>
#include <utility>

#include "tests/cuda_emulator/block.h"

namespace cuda_emulator {

// runtime.cc. What the device would refuse is refused: sizes, clusters, too much shared memory.
cudaError_t CheckLaunch(const cudaLaunchConfig_t& config, const void* kernel);
unsigned ClusterOf(const cudaLaunchConfig_t& config);
inline int64_t launches = 0;          // that were not refused
inline int64_t cluster_launches = 0;  // of them, those of clusters of more than one block
void RunOrRecord(cudaStream_t stream, std::function<void()> work);

template <typename... Params, typename... Args>
cudaError_t LaunchKernel(const cudaLaunchConfig_t* config, void (*kernel)(Params...),
                         Args&&... args) {
  const void* address = reinterpret_cast<const void*>(kernel);
  if (const cudaError_t error = CheckLaunch(*config, address); error != cudaSuccess) return error;
  ++launches;
  cluster_launches += ClusterOf(*config) > 1 ? 1 : 0;
  const LaunchShape shape{config->gridDim, config->blockDim, config->dynamicSmemBytes,
                          ClusterOf(*config), address};
  RunOrRecord(
      config->stream,
      [shape, kernel, params = std::tuple<std::decay_t<Params>...>(std::forward<Args>(args)...)] {
        RunGrid(shape, [&] { std::apply(kernel, params); });
      });
  return cudaSuccess;
}

}  // namespace cuda_emulator

// The toolkit has these for nvcc alone.
template <typename... Params>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Params...), cudaFuncAttribute attribute,
                                 int value) {
  return cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), attribute, value);
}
template <typename... Params>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void (*kernel)(Params...),
                                                          int threads, size_t shared_bytes) {
  return cudaOccupancyMaxActiveBlocksPerMultiprocessor(
      blocks, reinterpret_cast<const void*>(kernel), threads, shared_bytes);
}
