// TensorView: a typed, strided window on memory that somebody else owns. Rank 1 to 4.
// Strides are in elements; the innermost stride is always 1.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "kernels/core/check.h"
#include "kernels/core/dtype.h"

namespace lacuna {

class TensorView final {
 public:
  static constexpr int kRankMax = 4;

  TensorView() = default;
  // Contiguous, row-major.
  TensorView(void* data, DType dtype, std::initializer_list<int64_t> shape);
  // With the stride of the outermost dimension given (rows of a wider matrix); the rest contiguous.
  static TensorView Rows(void* data, DType dtype, std::initializer_list<int64_t> shape,
                         int64_t row_stride);

  bool empty() const { return rank_ == 0 || elements() == 0; }
  int rank() const { return rank_; }
  DType dtype() const { return dtype_; }
  int64_t dim(int axis) const {
    LACUNA_DCHECK(axis < rank_);
    return shape_[static_cast<size_t>(axis)];
  }
  int64_t stride(int axis) const {
    LACUNA_DCHECK(axis < rank_);
    return strides_[static_cast<size_t>(axis)];
  }
  int64_t elements() const;
  bool contiguous() const;
  void* data() const { return data_; }

  template <typename T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  // The same tensor limited to rows [first, first + count) of the outermost dimension.
  TensorView Slice(int64_t first, int64_t count) const;
  // The outermost row `index` with its axis dropped.
  TensorView Row(int64_t index) const;
  std::string ShapeString() const;  // "[3, 64] bf16"

 private:
  void* data_ = nullptr;
  DType dtype_ = DType::kF32;
  int rank_ = 0;
  std::array<int64_t, kRankMax> shape_{};
  std::array<int64_t, kRankMax> strides_{};
};

}  // namespace lacuna
