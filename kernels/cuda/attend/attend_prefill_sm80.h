// Paged prefill attention with mma.sync: for sm_80 and newer, and on sm_90 for the head sizes that
// the wgmma kernel leaves out. FlashAttention-2 (Dao 2023) over a page list and key ranges.
#pragma once

#include <cuda_runtime.h>

#include "kernels/core/status.h"
#include "kernels/cuda/ops.h"
#include "kernels/ops/attention.h"

namespace lacuna::kernels::cuda {

// Whether AttendPrefillSm80 serves these arguments: bf16 or f16, head_dim 16, 32, 64, 80, 96, 128
// or 256, scale > 0, rows of q and out that start at multiples of 16 bytes, enough shared memory.
bool ServesSm80(const AttendPrefillArgs& args, const DeviceTraits& traits);

// Asynchronous; not for capture, since chunks are host memory. The bits of a row depend on its
// query, position, list and ranges only.
Status AttendPrefillSm80(const AttendPrefillArgs& args, const DeviceTraits& traits,
                         cudaStream_t stream);

}  // namespace lacuna::kernels::cuda
