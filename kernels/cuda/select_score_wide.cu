// Scoring by metadata of bf16 and by the keys themselves.
#include "kernels/cuda/select_score_launch.cuh"

namespace lacuna::kernels::cuda {

Status ScoreWide(const SelectKeysCall& call, const ScoreShape& shape, cudaStream_t stream) {
  return call.scores_keys && call.pool.dtype == DType::kF16
             ? LaunchScore<16, __half>(call, shape, stream)
             : LaunchScore<16, __nv_bfloat16>(call, shape, stream);
}

}  // namespace lacuna::kernels::cuda
