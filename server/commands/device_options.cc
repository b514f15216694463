#include "server/commands/device_options.h"

#include <spdlog/spdlog.h>

#include <utility>

#include "kernels/make_backend.h"

namespace lacuna::server {

using kernels::DeviceKind;

Result<DType> ParsePrecision(const std::string& precision) {
  if (precision == "bf16") return DType::kBF16;
  if (precision == "f16") return DType::kF16;
  if (precision == "fp32") return DType::kF32;
  return InvalidArgument("precision: got " + precision + ", need bf16, f16 or fp32");
}

Result<std::unique_ptr<kernels::Backend>> MakeBackendFor(const DeviceOptions& device,
                                                         kernels::BackendOptions options) {
  LACUNA_ASSIGN_OR_RETURN(options.precision, ParsePrecision(device.precision));
  if (device.threads != 0) options.threads = device.threads;
  if (device.device == "cpu") return kernels::MakeBackend(DeviceKind::kCpu, options);
  if (device.device != "cuda" && device.device != "auto") {
    return InvalidArgument("device: got " + device.device + ", need auto, cpu or cuda");
  }
  auto backend = kernels::MakeBackend(DeviceKind::kCuda, options);
  if (backend.ok() || device.device == "cuda" ||
      backend.status().code() != StatusCode::kUnavailable) {
    return backend;
  }
  spdlog::info("{}: running on the CPU", backend.status().message());
  return kernels::MakeBackend(DeviceKind::kCpu, options);
}

}  // namespace lacuna::server
