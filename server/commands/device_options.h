// From words of a command line or a config to the backend that runs the model.
#pragma once

#include <memory>
#include <string>

#include "kernels/core/status.h"
#include "kernels/ops/backend.h"

namespace lacuna::server {

struct DeviceOptions final {
  std::string device = "auto";     // auto | cpu | cuda
  std::string precision = "bf16";  // bf16 | f16 | fp32
  int threads = 0;                 // of the CPU; 0: one per processor
};

// "bf16", "f16" or "fp32".
Result<DType> ParsePrecision(const std::string& precision);

// auto: the GPU if there is one that works, otherwise the CPU, with one log line that says why.
// `options.precision` is set from `device`. kUnavailable: cuda was asked for and is not there.
Result<std::unique_ptr<kernels::Backend>> MakeBackendFor(const DeviceOptions& device,
                                                         kernels::BackendOptions options = {});

}  // namespace lacuna::server
