// Host memory of the CPU backend: zero-filled, page aligned and in huge pages when large. Any
// thread.
#pragma once

#include <cstdint>

#include "kernels/core/status.h"
#include "kernels/device/device.h"

namespace lacuna::kernels::cpu {

// kInvalidArgument for a negative size; kExhausted names what was asked and what is free.
Result<Buffer> AllocateZeroed(int64_t bytes);

// What the machine could still give, page cache included; -1 when unknown.
int64_t AvailableBytes();

}  // namespace lacuna::kernels::cpu
