// AlignedArray<T>: memory of plain values on a cache line that grows to the largest use and forgets
// its contents then. One owner, one thread at a time.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>
#include <type_traits>

#include "kernels/core/checked_math.h"
#include "kernels/core/status.h"

namespace lacuna::kernels::cpu {

template <typename T>
class AlignedArray final {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  // Room for `count` values at least, of any content. kExhausted when memory is short.
  Status Fit(int64_t count) {
    if (count <= capacity_) return OkStatus();
    const auto bytes = CheckedMul<int64_t>(count, sizeof(T));
    memory_.reset();
    capacity_ = 0;
    if (bytes.has_value()) {
      void* memory = std::aligned_alloc(kLine, static_cast<size_t>(RoundUp(*bytes, kLine)));
      memory_.reset(static_cast<T*>(memory));
    }
    if (memory_ == nullptr) {
      return Exhausted("memory: no room for " + std::to_string(count) + " values of scratch");
    }
    capacity_ = count;
    return OkStatus();
  }
  T* data() const { return memory_.get(); }

 private:
  static constexpr int64_t kLine = 64;
  struct Free final {
    void operator()(T* memory) const { std::free(memory); }
  };
  std::unique_ptr<T, Free> memory_;
  int64_t capacity_ = 0;
};

}  // namespace lacuna::kernels::cpu
