// Scoring by metadata of bf16 and by the keys themselves. With kernels of their own: bounds of 128
// channels, keys of 128 and 64.
#include "kernels/cuda/select/select_score_launch.cuh"

namespace lacuna::kernels::cuda {
namespace {

template <typename T>
Status ScoreKeys(const SelectKeysCall& call, const ScoreShape& shape, cudaStream_t stream) {
  if (IsExact(shape, 1, 4)) return LaunchScore<16, T, true, 1, 4>(call, shape, stream);
  if (IsExact(shape, 1, 2)) return LaunchScore<16, T, true, 1, 2>(call, shape, stream);
  return LaunchScore<16, T, true>(call, shape, stream);
}

}  // namespace

Status ScoreWide(const SelectKeysCall& call, const ScoreShape& shape, cudaStream_t stream) {
  if (call.scores_keys) {
    return call.pool.dtype == DType::kF16 ? ScoreKeys<__half>(call, shape, stream)
                                          : ScoreKeys<__nv_bfloat16>(call, shape, stream);
  }
  if (IsExact(shape, 2, 4)) {
    return LaunchScore<16, __nv_bfloat16, false, 2, 4>(call, shape, stream);
  }
  return LaunchScore<16, __nv_bfloat16, false>(call, shape, stream);
}

}  // namespace lacuna::kernels::cuda
