// Requests to bring memory to L2, which read nothing: a kernel may make them before the kernels
// that write that memory have ended. Device code.
#pragma once

namespace lacuna::kernels::cuda {

#ifdef __CUDACC__
// Brings the 32 bytes at `address`, in device memory, to L2.
__device__ inline void PrefetchL2([[maybe_unused]] const void* address) {
#ifdef __CUDA_ARCH__
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
#endif
}
#endif

}  // namespace lacuna::kernels::cuda
