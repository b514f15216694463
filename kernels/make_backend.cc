#include "kernels/make_backend.h"

#include "kernels/cpu/cpu_backend.h"

namespace lacuna::kernels {

Result<std::unique_ptr<Backend>> MakeBackend(DeviceKind kind, const BackendOptions& options) {
  switch (kind) {
    case DeviceKind::kCpu:
      return cpu::MakeCpuBackend(options);
    case DeviceKind::kCuda:
      break;
  }
  return Status(StatusCode::kUnavailable, "device: this program was built without CUDA");
}

}  // namespace lacuna::kernels
