#include <cuda_bf16.h>

#include "kernels/cuda/attend/attend_decode_kernel.cuh"

namespace lacuna::kernels::cuda {

Status LaunchDecodeBf16(const DecodeParams& params, int64_t head_dim, const DecodeLaunch& launch,
                        cudaStream_t stream) {
  return LaunchDecodeOf<__nv_bfloat16>(params, head_dim, launch, stream);
}

}  // namespace lacuna::kernels::cuda
