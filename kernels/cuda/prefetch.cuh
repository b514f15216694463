// Requests to bring memory to L2, which read nothing: a kernel may make them before the kernels
// that write that memory have ended. Device code.
#pragma once

#include <cstdint>

namespace lacuna::kernels::cuda {

#ifdef __CUDACC__
// Brings the 32 bytes at `address`, in device memory, to L2.
__device__ inline void PrefetchL2([[maybe_unused]] const void* address) {
#ifdef __CUDA_ARCH__
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
#endif
}
// The same for `bytes`, a multiple of 16, at a multiple of 16, by one thread; where a kernel may
// start before the previous one has ended.
__device__ inline void PrefetchBulkL2([[maybe_unused]] const void* address,
                                      [[maybe_unused]] uint32_t bytes) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(address), "r"(bytes) : "memory");
#endif
}
#endif

}  // namespace lacuna::kernels::cuda
