// Kernel launches with programmatic dependent launch, and error mapping. SEAM.
//
// Every kernel of the step calls WaitForPrevious() before its first access to memory that an
// earlier kernel writes or reads (weights and other constants may be fetched before it), in every
// thread block, and LetNextStart() as early as its resources allow. So the launch of the next
// kernel, and its prologue, hide behind this one. A kernel that never waited could let a later one
// overtake an earlier one: always wait.
#pragma once

#include <cuda_runtime.h>

#include <string>
#include <utility>

#include "kernels/core/status.h"

namespace lacuna::kernels::cuda {

inline Status CudaStatus(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return OkStatus();
  std::string message(what);
  message.append(": ").append(cudaGetErrorString(error));
  return {error == cudaErrorMemoryAllocation ? StatusCode::kExhausted : StatusCode::kInternal,
          std::move(message)};
}

#define LACUNA_CUDA_RETURN_IF_ERROR(call)                                               \
  do {                                                                                  \
    if (const cudaError_t lacuna_cuda_error = (call); lacuna_cuda_error != cudaSuccess) \
      return ::lacuna::kernels::cuda::CudaStatus(lacuna_cuda_error, #call);             \
  } while (false)

#ifdef __CUDACC__
// The block's dynamic shared memory. tests/cuda_emulator has a definition of its own.
#ifndef LACUNA_DYNAMIC_SHARED
#define LACUNA_DYNAMIC_SHARED(alignment, type, name) \
  extern __shared__ __align__(alignment)             \
  type name[]
#endif

__device__ inline void WaitForPrevious() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ inline void LetNextStart() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Launches `kernel` on `stream` so that it may start before the previous kernel has ended.
template <typename... Params, typename... Args>
Status Launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes,
              cudaStream_t stream, Args&&... args) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  return CudaStatus(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...),
                    "kernel launch");
}
#endif

}  // namespace lacuna::kernels::cuda
