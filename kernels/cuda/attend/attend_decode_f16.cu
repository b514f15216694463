#include <cuda_fp16.h>

#include "kernels/cuda/attend/attend_decode_kernel.cuh"

namespace lacuna::kernels::cuda {

Status LaunchDecodeF16(const DecodeParams& params, int64_t head_dim, const DecodeLaunch& launch,
                       cudaStream_t stream) {
  return LaunchDecodeOf<__half>(params, head_dim, launch, stream);
}

}  // namespace lacuna::kernels::cuda
