// MakeBackend: the one place that knows which backends this program was built with.
#pragma once

#include <memory>

#include "kernels/core/status.h"
#include "kernels/device/device.h"
#include "kernels/ops/backend.h"

namespace lacuna::kernels {

// kInvalidArgument for bad options; kUnavailable when the device or its code is missing.
Result<std::unique_ptr<Backend>> MakeBackend(DeviceKind kind, const BackendOptions& options);

}  // namespace lacuna::kernels
