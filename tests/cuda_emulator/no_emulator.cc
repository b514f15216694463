// MakeEmulatedBackend of builds without the emulator.
#include "tests/cuda_emulator/emulated_backend.h"

namespace lacuna::kernels {

Result<std::unique_ptr<Backend>> MakeEmulatedBackend(const BackendOptions& /*options*/) {
  return Status{
      StatusCode::kUnavailable,
      "the CUDA emulator needs the headers of the CUDA toolkit (12.4 or newer), an x86-64 "
      "machine and a build without sanitizers"};
}

int64_t EmulatedLaunches() { return 0; }

}  // namespace lacuna::kernels
