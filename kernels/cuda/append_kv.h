// How RopeAppend spreads its work over a device, for benchmarks; ops.h has the op itself.
#pragma once

#include <cuda_runtime.h>

#include "kernels/core/status.h"
#include "kernels/ops/attention.h"

namespace lacuna::kernels::cuda {

struct AppendTuning final {
  int heads_together = 0;   // that a thread loads before it works on them: 1 or 3; 0: by tokens
  int tokens_of_block = 0;  // 0: as many blocks as run at once divide the tokens
};

Status RopeAppend(const RopeAppendArgs& args, const AppendTuning& tuning, cudaStream_t stream);

}  // namespace lacuna::kernels::cuda
