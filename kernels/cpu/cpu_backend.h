// The CPU backend: every op for x86-64, the instruction set picked when it is made. One engine
// thread uses it; the work spreads over a pool of its own.
#pragma once

#include <memory>

#include "kernels/core/status.h"
#include "kernels/ops/backend.h"

namespace lacuna::kernels::cpu {

// kInvalidArgument for options out of range, with the key's name.
Result<std::unique_ptr<Backend>> MakeCpuBackend(const BackendOptions& options);

}  // namespace lacuna::kernels::cpu
