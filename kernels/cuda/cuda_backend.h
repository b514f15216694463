// The CUDA backend: every op on one NVIDIA GPU (compute capability 8.0 or newer). One engine thread
// uses it; all work is ordered on one stream unless the caller brings its own.
#pragma once

#include <memory>

#include "kernels/core/status.h"
#include "kernels/ops/backend.h"

namespace lacuna::kernels::cuda {

// kUnavailable when the driver or the device is missing (the message says which, and what to do);
// kInvalidArgument for options out of range, with the key's name.
Result<std::unique_ptr<Backend>> MakeCudaBackend(const BackendOptions& options);

}  // namespace lacuna::kernels::cuda
