// The CUDA backend on the CPU: kernels/cuda compiled for the emulator. Its device says that it is a
// CUDA device of generation 8.0; memory is the host's. One thread in the process uses it at a time.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/core/status.h"
#include "kernels/ops/backend.h"

namespace lacuna::kernels {

// kUnavailable, with the reason, in builds without the emulator.
Result<std::unique_ptr<Backend>> MakeEmulatedBackend(const BackendOptions& options);

// Kernels that were launched so far, by all emulated backends; 0 without the emulator.
int64_t EmulatedLaunches();

}  // namespace lacuna::kernels
