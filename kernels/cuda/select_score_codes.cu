// Scoring by metadata of 8, 4 and 2 bits: codes become f16, exactly. With kernels of their own:
// bounds and means of 8 bits of 128 and 64 channels, keys of 4 bits of 128.
#include "kernels/cuda/select_score_launch.cuh"

namespace lacuna::kernels::cuda {

Status ScoreCodes(const SelectKeysCall& call, const ScoreShape& shape, cudaStream_t stream) {
  if (shape.bits == 8) {
    if (IsExact(shape, 2, 2)) return LaunchScore<8, __half, false, 2, 2>(call, shape, stream);
    if (IsExact(shape, 2, 1)) return LaunchScore<8, __half, false, 2, 1>(call, shape, stream);
    if (IsExact(shape, 1, 2)) return LaunchScore<8, __half, false, 1, 2>(call, shape, stream);
    return LaunchScore<8, __half, false>(call, shape, stream);
  }
  if (shape.bits == 4) {
    if (IsExact(shape, 1, 1)) return LaunchScore<4, __half, false, 1, 1>(call, shape, stream);
    return LaunchScore<4, __half, false>(call, shape, stream);
  }
  return LaunchScore<2, __half, false>(call, shape, stream);
}

}  // namespace lacuna::kernels::cuda
