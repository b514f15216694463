// The launch of the tensor-core scoring kernel. Host code of the .cu files that instantiate it.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/core/checked_math.h"
#include "kernels/cuda/resident_blocks.h"
#include "kernels/cuda/select/select_score_kernel.cuh"

namespace lacuna::kernels::cuda {

// Chunks of the longest rows that there can be.
inline int64_t ChunksMax(const SelectKeysCall& call, int64_t chunk_tokens, int64_t heads) {
  return CeilDiv(int64_t{call.pages_max} * call.page_tokens, chunk_tokens) * heads *
         call.group_rows;
}

template <int kBits, typename T, bool kKeys, int kVectors = 0, int kSteps = 0>
Status LaunchScore(const SelectKeysCall& call, const ScoreShape& shape, cudaStream_t stream) {
  const auto kernel = ScoreKernel<kBits, T, kKeys, kVectors, kSteps>;
  const auto shared_bytes = static_cast<size_t>(shape.shared_bytes);
  LACUNA_CUDA_RETURN_IF_ERROR(cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shape.shared_bytes));
  LACUNA_ASSIGN_OR_RETURN(const int64_t blocks,
                          ResidentBlocks(kernel, ChunksMax(call, shape.chunk_tokens, call.kv_heads),
                                         32 * kScoreWarps, shared_bytes));
  return Launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(32 * kScoreWarps), shared_bytes,
                stream, call, shape);
}

inline bool IsExact(const ScoreShape& shape, int vectors, int steps) {
  return shape.vectors == vectors && shape.row_bytes == 64 * steps;
}

}  // namespace lacuna::kernels::cuda
