// The backends that the op tests run over, and memory that a test sees on the host and an op on the
// backend's device. Single thread.
//
// CUDA cases are always listed: without a GPU they are skipped with the reason, and they fail when
// LACUNA_REQUIRE_CUDA=1. Emulated ones run the kernels of CUDA on the CPU (tests/cuda_emulator).
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "kernels/core/dtype.h"
#include "kernels/device/device.h"
#include "kernels/ops/backend.h"

namespace lacuna::kernels {

struct BackendCase final {
  std::string isa;  // of the CPU; "cuda"; "emulated"
  DType precision = DType::kBF16;
  // Tensors start, and their rows lie, where 16-byte accesses may go; else off it. CPU kernels do
  // not tell these apart.
  bool aligned = false;

  bool cuda() const { return isa == "cuda"; }
  bool emulated() const { return isa == "emulated"; }
  std::string Name() const;
};

// Every instruction set of this machine in bf16 and f32, and CUDA in bf16, f16 and f32; for ops
// whose tensors the engine always aligns, `aligned_only` on CUDA.
std::vector<BackendCase> BackendCases(bool aligned_only = false);
// CUDA's kernels in the emulator; for tests that are small enough.
std::vector<BackendCase> EmulatedCases(bool aligned_only = false,
                                       const std::vector<DType>& precisions = {
                                           DType::kBF16, DType::kF16, DType::kF32});
std::string CaseName(const testing::TestParamInfo<BackendCase>& which);

// With LACUNA_TEST_BRIEF=1 the longest tests keep to what launches each kernel: for
// compute-sanitizer, under which a launch takes 50 ms (bench/gpu/sanitize.sh).
bool TestsAreBrief();

// kUnavailable when there is no GPU. CUDA and emulated backends are made once and shared.
Result<std::shared_ptr<Backend>> MakeTestBackend(const BackendCase& which, int threads = 2,
                                                 bool deterministic = false);

// True when the running test must stop here: it has been skipped, or has failed.
bool SkipsOrFails(const Result<std::shared_ptr<Backend>>& backend);

// Where the tensors of a test lie.
struct TestPlace final {
  Backend* backend = nullptr;
  bool aligned = false;
  bool on_host() const { return backend->device().kind() == DeviceKind::kCpu; }
};

// Bytes with a host side and a device side; on the CPU both are one. Each side is brought up to
// date when it is asked for, so take device() anew for every call of an op.
class TestMemory final {
 public:
  TestMemory(Backend& backend, size_t bytes, uint8_t fill)
      : backend_(&backend), size_(bytes), host_(new (kAlignment) uint8_t[bytes]) {
    std::memset(host_.get(), fill, bytes);
  }
  TestMemory(const TestMemory& other) : TestMemory(*other.backend_, other.size_, 0) {
    std::memcpy(host_.get(), other.read(), size_);
  }
  TestMemory(TestMemory&&) = default;
  TestMemory& operator=(const TestMemory&) = delete;

  size_t size() const { return size_; }
  const uint8_t* read() const {
    if (newer_ == Side::kDevice) Fetch();
    newer_ = newer_ == Side::kDevice ? Side::kNone : newer_;
    return host_.get();
  }
  uint8_t* write() {
    read();
    newer_ = Side::kHost;
    return host_.get();
  }
  uint8_t* device() {
    if (backend_->device().kind() == DeviceKind::kCpu) return host_.get();
    if (newer_ == Side::kHost) Send();
    newer_ = Side::kDevice;
    return reinterpret_cast<uint8_t*>(device_.data());
  }

 private:
  enum class Side { kNone, kHost, kDevice };
  static constexpr std::align_val_t kAlignment{256};
  struct Delete final {
    void operator()(uint8_t* bytes) const { operator delete[](bytes, kAlignment); }
  };

  void Send();
  void Fetch() const;

  Backend* backend_;
  size_t size_;
  std::unique_ptr<uint8_t[], Delete> host_;
  Buffer device_;
  mutable Side newer_ = Side::kHost;
};

// An array for ops; most only read it.
template <typename T>
class TestArray final {
 public:
  TestArray(Backend& backend, const std::vector<T>& values)
      : memory_(backend, values.size() * sizeof(T), 0) {
    if (!values.empty()) std::memcpy(memory_.write(), values.data(), values.size() * sizeof(T));
  }
  T* device() { return reinterpret_cast<T*>(memory_.device()); }
  std::vector<T> Read() const {
    std::vector<T> values(memory_.size() / sizeof(T));
    if (!values.empty()) std::memcpy(values.data(), memory_.read(), memory_.size());
    return values;
  }

 private:
  TestMemory memory_;
};

}  // namespace lacuna::kernels
