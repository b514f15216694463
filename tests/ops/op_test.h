// What the op tests share: tensors with guard bytes and NaN-filled outputs, random numbers, and a
// fixture over the backends. Single thread.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/core/checked_math.h"
#include "kernels/core/dtype.h"
#include "kernels/core/tensor_view.h"
#include "kernels/ops/ops.h"
#include "tests/ops/test_backend.h"

namespace lacuna::kernels {

// Rows of `dim` elements, `row_stride` apart, in memory that starts off the alignment of vectors
// (or on it: BackendCase.aligned) and is filled with 0xff: NaN in every float type. The gaps
// between rows must keep it. Views are of the device's side: take them anew for each op.
class TestTensor final {
 public:
  TestTensor(const TestPlace& place, DType dtype, int64_t rows, int64_t dim, int64_t row_stride = 0)
      : dtype_(dtype),
        rows_(rows),
        dim_(dim),
        stride_(row_stride == 0 ? dim
                : place.aligned ? RoundUp(row_stride, 16)
                                : row_stride),
        offset_(kGuardBytes + (place.aligned ? 0 : DTypeBytes(dtype))),
        memory_(*place.backend,
                static_cast<size_t>(rows * stride_) * DTypeBytes(dtype) + 2 * kGuardBytes, 0xff) {}

  TensorView view() { return TensorView::Rows(data(), dtype_, {rows_, dim_}, stride_); }
  TensorView view3(int64_t heads) {
    return TensorView::Rows(data(), dtype_, {rows_, heads, dim_ / heads}, stride_);
  }
  TensorView vector() { return {data(), dtype_, {rows_ * dim_}}; }
  TensorView host_view() {
    return TensorView::Rows(memory_.write() + offset_, dtype_, {rows_, dim_}, stride_);
  }
  int64_t rows() const { return rows_; }
  int64_t dim() const { return dim_; }

  float at(int64_t row, int64_t i) const {
    const uint8_t* from = memory_.read() + cell(row, i);
    if (dtype_ == DType::kF32) return Read<float>(from);
    if (dtype_ == DType::kI32) return static_cast<float>(Read<int32_t>(from));
    return dtype_ == DType::kBF16 ? ToFloat(Read<BF16>(from)) : ToFloat(Read<F16>(from));
  }
  void set(int64_t row, int64_t i, float value) {
    uint8_t* to = memory_.write() + cell(row, i);
    if (dtype_ == DType::kF32) return Write(to, value);
    if (dtype_ == DType::kI32) return Write(to, static_cast<int32_t>(value));
    dtype_ == DType::kBF16 ? Write(to, ToBF16(value)) : Write(to, ToF16(value));
  }
  void Fill(std::mt19937& random, float scale = 1.0f) {
    std::normal_distribution<float> normal(0.0f, scale);
    for (int64_t r = 0; r < rows_; ++r) {
      for (int64_t i = 0; i < dim_; ++i) set(r, i, normal(random));
    }
  }
  std::vector<uint8_t> RowBytes(int64_t row) const {
    const uint8_t* from = memory_.read() + cell(row, 0);
    return {from, from + static_cast<size_t>(dim_) * DTypeBytes(dtype_)};
  }
  bool RowUntouched(int64_t row) const {
    const uint8_t* from = memory_.read() + cell(row, 0);
    return std::all_of(from, from + static_cast<size_t>(dim_) * DTypeBytes(dtype_),
                       [](uint8_t byte) { return byte == 0xff; });
  }
  // Everything outside the rows still holds the fill.
  void ExpectGuards() const {
    std::vector<uint8_t> copy(memory_.read(), memory_.read() + memory_.size());
    for (int64_t r = 0; r < rows_; ++r) {
      std::memset(copy.data() + cell(r, 0), 0xff, static_cast<size_t>(dim_) * DTypeBytes(dtype_));
    }
    EXPECT_TRUE(std::ranges::all_of(copy, [](uint8_t byte) { return byte == 0xff; }))
        << "a byte outside the tensor was written";
  }

 private:
  static constexpr size_t kGuardBytes = 256;

  template <typename T>
  static T Read(const uint8_t* from) {
    T value;
    std::memcpy(&value, from, sizeof(value));
    return value;
  }
  template <typename T>
  static void Write(uint8_t* to, T value) {
    std::memcpy(to, &value, sizeof(value));
  }
  size_t cell(int64_t row, int64_t i) const {
    return offset_ + static_cast<size_t>(row * stride_ + i) * DTypeBytes(dtype_);
  }
  void* data() { return memory_.device() + offset_; }

  DType dtype_;
  int64_t rows_;
  int64_t dim_;
  int64_t stride_;
  size_t offset_;
  TestMemory memory_;
};

// What a value becomes in memory of this type.
inline float Rounded(float value, DType dtype) {
  if (dtype == DType::kBF16) return ToFloat(ToBF16(value));
  return dtype == DType::kF16 ? ToFloat(ToF16(value)) : value;
}

// Half a unit in the last place of the output type.
inline double RoundingOf(double want, DType out) {
  if (out == DType::kBF16) return std::abs(want) * 0x1p-8;
  return out == DType::kF16 ? std::abs(want) * 0x1p-11 + 0x1p-25 : 0.0;
}

// Half a unit in the last place of the output type, plus the error that the op itself is allowed.
inline void ExpectNear(double got, double want, DType out, double relative, double absolute,
                       const std::string& where) {
  const double limit = RoundingOf(want, out) + relative * std::abs(want) + absolute;
  ASSERT_TRUE(std::abs(got - want) <= limit)
      << where << ": got " << got << ", want " << want << " +- " << limit;
}

// A fixture over every backend and precision of this machine.
class OpTest : public testing::TestWithParam<BackendCase> {
 protected:
  void SetUp() override {
    auto backend = MakeTestBackend(GetParam());
    if (SkipsOrFails(backend)) return;
    backend_ = std::move(backend).value();
  }
  Backend& backend() { return *backend_; }
  TestPlace place() { return {backend_.get(), GetParam().aligned}; }
  DType act() const { return GetParam().precision; }
  Stream& stream() { return stream_; }
  std::mt19937& random() { return random_; }

 private:
  std::shared_ptr<Backend> backend_;
  Stream stream_;
  std::mt19937 random_{12345};
};

#define LACUNA_INSTANTIATE_OP_TEST(suite) \
  INSTANTIATE_TEST_SUITE_P(Every, suite, testing::ValuesIn(BackendCases()), CaseName)
#define LACUNA_INSTANTIATE_EMULATED_OP_TEST(suite) \
  INSTANTIATE_TEST_SUITE_P(Emulated, suite, testing::ValuesIn(EmulatedCases()), CaseName)

}  // namespace lacuna::kernels
