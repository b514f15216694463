// CpuDevice: host memory as a Device; every call is done when it returns. One engine thread.
#pragma once

#include <cstring>
#include <memory>

#include "kernels/cpu/memory.h"
#include "kernels/device/device.h"

namespace lacuna::kernels::cpu {

class CpuEvent final : public Event {
 public:
  Status Record(Stream&) override { return OkStatus(); }
  Status Wait() override { return OkStatus(); }
};

class CpuDevice final : public Device {
 public:
  DeviceKind kind() const override { return DeviceKind::kCpu; }
  Result<Buffer> Allocate(int64_t bytes) override { return AllocateZeroed(bytes); }
  Result<Buffer> AllocateHost(int64_t bytes) override { return AllocateZeroed(bytes); }
  Status Copy(void* to, const void* from, int64_t bytes, Stream&) override {
    if (bytes < 0) return InvalidArgument("copy: a negative size");
    if (bytes > 0) std::memmove(to, from, static_cast<size_t>(bytes));
    return OkStatus();
  }
  Status Synchronize(Stream&) override { return OkStatus(); }
  Result<std::unique_ptr<Event>> MakeEvent() override {
    return std::unique_ptr<Event>(std::make_unique<CpuEvent>());
  }
  int64_t FreeBytes() const override { return AvailableBytes(); }
  bool captures() const override { return false; }
  Status BeginCapture(Stream&) override { return InternalError("the CPU records no graphs"); }
  Result<std::unique_ptr<Graph>> EndCapture(Stream&) override {
    return InternalError("the CPU records no graphs");
  }
};

}  // namespace lacuna::kernels::cpu
