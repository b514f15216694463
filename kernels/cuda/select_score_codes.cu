// Scoring by metadata of 8, 4 and 2 bits: codes become f16, exactly.
#include "kernels/cuda/select_score_launch.cuh"

namespace lacuna::kernels::cuda {

Status ScoreCodes(const SelectKeysCall& call, const ScoreShape& shape, cudaStream_t stream) {
  switch (shape.bits) {
    case 8:
      return LaunchScore<8, __half>(call, shape, stream);
    case 4:
      return LaunchScore<4, __half>(call, shape, stream);
    default:
      return LaunchScore<2, __half>(call, shape, stream);
  }
}

}  // namespace lacuna::kernels::cuda
