// Attention on plain CUDA cores: for f32 (verification) and for sizes that the fast kernels leave
// out. One function computes a row for both, so decode gives the bits of prefill; they depend on
// the row's query, position, list and ranges only.
#pragma once

#include <cuda_runtime.h>

#include "kernels/core/status.h"
#include "kernels/ops/attention.h"

namespace lacuna::kernels::cuda {

inline constexpr int kSimpleHeadDimMax = 256;

// f32, bf16 or f16; head_dim even (2-byte types: a multiple of 8) and at most kSimpleHeadDimMax;
// page_tokens a multiple of 16. kInvalidArgument otherwise. Asynchronous; only the decode may be
// captured.
Status AttendPrefillSimple(const AttendPrefillArgs& args, cudaStream_t stream);
Status AttendDecodeSimple(const AttendDecodeArgs& args, cudaStream_t stream);

}  // namespace lacuna::kernels::cuda
