// Device: memory and copies of one processor; the floor that both backends stand on. SEAM.
//
// One engine thread uses a Device. A Stream orders work; on the CPU every call is done when it
// returns.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "kernels/core/status.h"

namespace lacuna::kernels {

enum class DeviceKind { kCpu, kCuda };

// Owns bytes on a device (or host staging bytes); freed with the buffer. 64-byte aligned at least.
class Buffer final {
 public:
  Buffer() = default;
  Buffer(void* data, int64_t bytes, void (*free)(void*)) : data_(data, free), bytes_(bytes) {}

  std::byte* data() const { return static_cast<std::byte*>(data_.get()); }
  int64_t bytes() const { return bytes_; }

 private:
  std::unique_ptr<void, void (*)(void*)> data_{nullptr, [](void*) {}};
  int64_t bytes_ = 0;
};

// Ordered queue of work; `native` is the backend's own handle (unused on the CPU).
struct Stream final {
  void* native = nullptr;
};

// A recorded run of work that is launched as one (a CUDA graph). Launched on the engine thread.
class Graph {
 public:
  virtual ~Graph() = default;
  virtual Status Launch(Stream& stream) = 0;
};

// A mark in a stream's work that the host can wait for.
class Event {
 public:
  virtual ~Event() = default;
  virtual Status Record(Stream& stream) = 0;
  // Returns when the work before the last Record is done; its errors come out here.
  virtual Status Wait() = 0;
};

class Device {
 public:
  virtual ~Device() = default;
  virtual DeviceKind kind() const = 0;
  // Zero-filled memory of the device; kExhausted names what was asked and what is free.
  virtual Result<Buffer> Allocate(int64_t bytes) = 0;
  // Zero-filled host memory that copies to the device fast (pinned for CUDA).
  virtual Result<Buffer> AllocateHost(int64_t bytes) = 0;
  // Between any two of host and device; ordered on `stream`.
  virtual Status Copy(void* to, const void* from, int64_t bytes, Stream& stream) = 0;
  virtual Status Synchronize(Stream& stream) = 0;
  virtual Result<std::unique_ptr<Event>> MakeEvent() = 0;

  // Bytes of free memory, for sizing; on the CPU what the machine could still give.
  virtual int64_t FreeBytes() const = 0;
  // Whether BeginCapture records the work of a stream instead of doing it.
  virtual bool captures() const = 0;
  virtual Status BeginCapture(Stream& stream) = 0;
  virtual Result<std::unique_ptr<Graph>> EndCapture(Stream& stream) = 0;
};

}  // namespace lacuna::kernels
