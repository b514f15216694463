// Scoring by metadata of 8, 4 and 2 bits of any shape: codes become f16, exactly.
#include "kernels/cuda/select/select_score_launch.cuh"

namespace lacuna::kernels::cuda {

Status ScoreCodes(const SelectKeysCall& call, const ScoreShape& shape, cudaStream_t stream) {
  if (shape.bits == 8) return LaunchScore<8, __half, false>(call, shape, stream);
  if (shape.bits == 4) return LaunchScore<4, __half, false>(call, shape, stream);
  return LaunchScore<2, __half, false>(call, shape, stream);
}

}  // namespace lacuna::kernels::cuda
