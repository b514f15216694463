// What the op tests share: tensors with guard bytes and NaN-filled outputs, random numbers, and
// the list of CPU backends that this machine can run. Single thread.
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

#include "kernels/core/dtype.h"
#include "kernels/core/tensor_view.h"
#include "kernels/cpu/isa.h"
#include "kernels/device/device.h"
#include "kernels/make_backend.h"
#include "kernels/ops/ops.h"

namespace lacuna::kernels {

struct BackendCase final {
  std::string isa;
  DType precision;
};

inline std::vector<BackendCase> BackendCases() {
  std::vector<BackendCase> cases;
  for (int i = 0; i <= static_cast<int>(cpu::DetectIsa()); ++i) {
    const std::string isa(cpu::IsaName(static_cast<cpu::Isa>(i)));
    cases.push_back({isa, DType::kBF16});
    cases.push_back({isa, DType::kF32});
  }
  return cases;
}

inline std::unique_ptr<Backend> MakeTestBackend(const BackendCase& which, int threads = 2,
                                                bool deterministic = false) {
  BackendOptions options;
  options.precision = which.precision;
  options.isa_max = which.isa;
  options.threads = threads;
  options.pin_threads = false;
  options.deterministic = deterministic;
  auto backend = MakeBackend(DeviceKind::kCpu, options);
  EXPECT_TRUE(backend.ok()) << backend.status().ToString();
  return std::move(backend).value();
}

// Rows of `dim` elements, `row_stride` apart, in memory that starts off the alignment of vectors
// and is filled with 0xff: NaN in every float type. The gaps between rows must keep it.
class TestTensor final {
 public:
  TestTensor(DType dtype, int64_t rows, int64_t dim, int64_t row_stride = 0)
      : dtype_(dtype), rows_(rows), dim_(dim), stride_(row_stride == 0 ? dim : row_stride) {
    const auto bytes = static_cast<size_t>(rows * stride_) * DTypeBytes(dtype);
    memory_.assign(bytes + 2 * kGuardBytes + 64, 0xff);
    const auto address = reinterpret_cast<uintptr_t>(memory_.data());
    offset_ = kGuardBytes + (64 - address % 64) % 64 + DTypeBytes(dtype);
  }

  TensorView view() { return TensorView::Rows(data(), dtype_, {rows_, dim_}, stride_); }
  TensorView view3(int64_t heads) {
    return TensorView::Rows(data(), dtype_, {rows_, heads, dim_ / heads}, stride_);
  }
  TensorView vector() { return {data(), dtype_, {rows_ * dim_}}; }
  int64_t rows() const { return rows_; }
  int64_t dim() const { return dim_; }

  float at(int64_t row, int64_t i) const {
    const uint8_t* from = cell(row, i);
    if (dtype_ == DType::kF32) return Read<float>(from);
    if (dtype_ == DType::kI32) return static_cast<float>(Read<int32_t>(from));
    return dtype_ == DType::kBF16 ? ToFloat(Read<BF16>(from)) : ToFloat(Read<F16>(from));
  }
  void set(int64_t row, int64_t i, float value) {
    uint8_t* to = const_cast<uint8_t*>(cell(row, i));
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
    const uint8_t* from = cell(row, 0);
    return {from, from + static_cast<size_t>(dim_) * DTypeBytes(dtype_)};
  }
  // Everything outside the rows still holds the fill.
  void ExpectGuards() const {
    std::vector<uint8_t> copy = memory_;
    for (int64_t r = 0; r < rows_; ++r) {
      const auto begin = copy.begin() + (cell(r, 0) - memory_.data());
      std::fill(begin, begin + dim_ * static_cast<int64_t>(DTypeBytes(dtype_)), uint8_t{0xff});
    }
    EXPECT_TRUE(std::all_of(copy.begin(), copy.end(), [](uint8_t byte) { return byte == 0xff; }))
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
  const uint8_t* cell(int64_t row, int64_t i) const {
    return memory_.data() + offset_ + static_cast<size_t>(row * stride_ + i) * DTypeBytes(dtype_);
  }
  void* data() { return memory_.data() + offset_; }

  DType dtype_;
  int64_t rows_;
  int64_t dim_;
  int64_t stride_;
  size_t offset_ = 0;
  std::vector<uint8_t> memory_;
};

// Half a unit in the last place of the output type, plus the error that the op itself is allowed.
inline void ExpectNear(double got, double want, DType out, double relative, double absolute,
                       const std::string& where) {
  const double rounding = out == DType::kBF16 ? std::abs(want) * 0x1p-8 : 0.0;
  const double limit = rounding + relative * std::abs(want) + absolute;
  ASSERT_TRUE(std::abs(got - want) <= limit)
      << where << ": got " << got << ", want " << want << " +- " << limit;
}

// A fixture over every instruction set of this machine and both precisions.
class OpTest : public testing::TestWithParam<BackendCase> {
 protected:
  void SetUp() override { backend_ = MakeTestBackend(GetParam()); }
  Backend& backend() { return *backend_; }
  DType act() const { return GetParam().precision; }
  Stream& stream() { return stream_; }
  std::mt19937& random() { return random_; }

 private:
  std::unique_ptr<Backend> backend_;
  Stream stream_;
  std::mt19937 random_{12345};
};

inline std::string CaseName(const testing::TestParamInfo<BackendCase>& which) {
  return which.param.isa + "_" + std::string(DTypeName(which.param.precision));
}

#define LACUNA_INSTANTIATE_OP_TEST(suite) \
  INSTANTIATE_TEST_SUITE_P(Cpu, suite, testing::ValuesIn(BackendCases()), CaseName)

}  // namespace lacuna::kernels
