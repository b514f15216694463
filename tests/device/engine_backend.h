// The backends that tests of models and of the engine run over, by name: "cpu"; "split", the CPU
// behind a device of its own (split_backend.h); "cuda"; "emulated", CUDA's kernels on the CPU
// (tests/cuda_emulator; slow). Any thread.
#pragma once

#include <memory>
#include <string>

#include "kernels/ops/backend.h"

namespace lacuna::kernels {

// kUnavailable when the machine has no GPU, or the build no emulator.
Result<std::unique_ptr<Backend>> MakeEngineBackend(const std::string& name,
                                                   const BackendOptions& options);

// True when the running test must stop here, skipped with the reason: there is no such backend, or
// it lacks sparse attention and `sparse` asks for it. With LACUNA_REQUIRE_CUDA=1 a missing GPU
// fails instead.
bool SkipsWithout(const std::string& name, bool sparse);

}  // namespace lacuna::kernels
