// Launches of the scoring kernels that know their shape.
#include <algorithm>

#include "kernels/core/checked_math.h"
#include "kernels/cuda/resident_blocks.h"
#include "kernels/cuda/select/select_score_fast.cuh"

namespace lacuna::kernels::cuda {
namespace {

template <int kBits, int kVectors, int kSteps, int kEntries, int kHeads>
Status LaunchFast(const SelectKeysCall& call, const ScoreShape& shape, cudaStream_t stream) {
  using Fast = FastScore<kBits, kVectors, kSteps, kEntries, kHeads>;
  constexpr int kSharedBytes = kFastWarps * Fast::kWarpBytes;
  const auto kernel = FastScoreKernel<Fast>;
  const int chunk_entries =
      std::max({Fast::kTileEntries, 1 << shape.page_shift, shape.unit_entries});
  LACUNA_CUDA_RETURN_IF_ERROR(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
  const int64_t chunks = CeilDiv(int64_t{call.pages_max} * call.page_tokens,
                                 int64_t{chunk_entries} * call.entry_tokens) *
                         call.kv_heads * call.group_rows;
  LACUNA_ASSIGN_OR_RETURN(
      const int64_t blocks,
      ResidentBlocks(kernel, CeilDiv(chunks, int64_t{kFastWarps}), 32 * kFastWarps, kSharedBytes));
  return Launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(32 * kFastWarps), kSharedBytes,
                stream, call, shape.page_shift, chunk_entries);
}

// Keys or labels of 4 bits, less than 128.
template <int kEntries>
Status LaunchNarrow(const SelectKeysCall& call, const ScoreShape& shape, cudaStream_t stream) {
  return call.heads <= 4 ? LaunchFast<4, 1, 1, kEntries, 4>(call, shape, stream)
                         : LaunchFast<4, 1, 1, kEntries, 8>(call, shape, stream);
}

}  // namespace

Status ScoreFast(const SelectKeysCall& call, const ScoreShape& shape, cudaStream_t stream) {
  if (shape.bits == 8) {
    const bool wide = shape.width == 128;
    if (shape.vectors == 2) {
      return wide ? LaunchFast<8, 2, 2, 1, 8>(call, shape, stream)
                  : LaunchFast<8, 2, 1, 1, 8>(call, shape, stream);
    }
    return wide ? LaunchFast<8, 1, 2, 1, 8>(call, shape, stream)
                : LaunchFast<8, 1, 1, 1, 8>(call, shape, stream);
  }
  switch (shape.width) {
    case 128:
      return LaunchFast<4, 1, 1, 1, 8>(call, shape, stream);
    case 64:
      return LaunchNarrow<2>(call, shape, stream);
    case 32:
      return LaunchNarrow<4>(call, shape, stream);
    default:
      return LaunchNarrow<8>(call, shape, stream);
  }
}

}  // namespace lacuna::kernels::cuda
