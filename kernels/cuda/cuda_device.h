// CudaDevice: memory, copies and graph capture of one GPU; streams and events as RAII. The engine
// thread uses it, after Open() on any thread.
//
// Stream{} (native == nullptr) means the device's own stream, which is not CUDA's default stream:
// everything that the engine does without naming a stream is ordered on it.
#pragma once

#include <cuda_runtime.h>

#include <memory>
#include <string>
#include <utility>

#include "kernels/core/status.h"
#include "kernels/cuda/ops.h"
#include "kernels/device/device.h"

namespace lacuna::kernels::cuda {

class CudaStream final {
 public:
  static Result<CudaStream> Make();
  CudaStream() = default;
  CudaStream(CudaStream&& other) noexcept : stream_(std::exchange(other.stream_, nullptr)) {}
  CudaStream& operator=(CudaStream&& other) noexcept {
    std::swap(stream_, other.stream_);
    return *this;
  }
  ~CudaStream();
  cudaStream_t get() const { return stream_; }

 private:
  cudaStream_t stream_ = nullptr;
};

class CudaEvent final {
 public:
  static Result<CudaEvent> Make();  // without timing
  CudaEvent() = default;
  CudaEvent(CudaEvent&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  CudaEvent& operator=(CudaEvent&& other) noexcept {
    std::swap(event_, other.event_);
    return *this;
  }
  ~CudaEvent();
  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

class CudaDevice final : public Device {
 public:
  // kUnavailable without driver or device, or when the device is too old.
  static Result<std::unique_ptr<CudaDevice>> Open(int ordinal);

  const DeviceTraits& traits() const { return traits_; }
  const std::string& model() const { return model_; }  // "NVIDIA H200"
  cudaStream_t Native(const Stream& stream) const {
    return stream.native != nullptr ? static_cast<cudaStream_t>(stream.native) : stream_.get();
  }
  // Makes this device the current one of the calling thread.
  Status Enter() const;

  DeviceKind kind() const override { return DeviceKind::kCuda; }
  Result<Buffer> Allocate(int64_t bytes) override;
  Result<Buffer> AllocateHost(int64_t bytes) override;
  Status Copy(void* to, const void* from, int64_t bytes, Stream& stream) override;
  Status Synchronize(Stream& stream) override;
  Result<std::unique_ptr<Event>> MakeEvent() override;
  int64_t FreeBytes() const override;
  bool captures() const override { return true; }
  Status BeginCapture(Stream& stream) override;
  Result<std::unique_ptr<Graph>> EndCapture(Stream& stream) override;

 private:
  CudaDevice() = default;

  DeviceTraits traits_;
  std::string model_;
  CudaStream stream_;
};

}  // namespace lacuna::kernels::cuda
