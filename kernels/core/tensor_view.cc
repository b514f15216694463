#include "kernels/core/tensor_view.h"

#include <cstddef>

namespace lacuna {

TensorView::TensorView(void* data, DType dtype, std::initializer_list<int64_t> shape)
    : data_(data), dtype_(dtype), rank_(static_cast<int>(shape.size())) {
  LACUNA_CHECK(rank_ >= 1 && rank_ <= kRankMax);
  size_t axis = 0;
  for (int64_t extent : shape) shape_[axis++] = extent;
  int64_t stride = 1;
  for (size_t i = shape.size(); i-- > 0;) {
    strides_[i] = stride;
    stride *= shape_[i];
  }
}

TensorView TensorView::Rows(void* data, DType dtype, std::initializer_list<int64_t> shape,
                            int64_t row_stride) {
  TensorView view(data, dtype, shape);
  view.strides_[0] = row_stride;
  return view;
}

int64_t TensorView::elements() const {
  int64_t count = rank_ == 0 ? 0 : 1;
  for (int i = 0; i < rank_; ++i) count *= shape_[static_cast<size_t>(i)];
  return count;
}

bool TensorView::contiguous() const {
  int64_t stride = 1;
  for (size_t i = static_cast<size_t>(rank_); i-- > 0;) {
    if (strides_[i] != stride) return false;
    stride *= shape_[i];
  }
  return true;
}

TensorView TensorView::Slice(int64_t first, int64_t count) const {
  LACUNA_CHECK(rank_ >= 1 && first >= 0 && count >= 0 && first + count <= shape_[0]);
  TensorView view = *this;
  view.shape_[0] = count;
  view.data_ = static_cast<std::byte*>(data_) +
               first * strides_[0] * static_cast<int64_t>(DTypeBytes(dtype_));
  return view;
}

TensorView TensorView::Row(int64_t index) const {
  LACUNA_CHECK(rank_ >= 2);
  TensorView row = Slice(index, 1);
  for (int i = 1; i < rank_; ++i) {
    row.shape_[static_cast<size_t>(i - 1)] = row.shape_[static_cast<size_t>(i)];
    row.strides_[static_cast<size_t>(i - 1)] = row.strides_[static_cast<size_t>(i)];
  }
  row.rank_ = rank_ - 1;
  return row;
}

std::string TensorView::ShapeString() const {
  std::string text = "[";
  for (int i = 0; i < rank_; ++i) {
    if (i > 0) text += ", ";
    text += std::to_string(shape_[static_cast<size_t>(i)]);
  }
  return text + "] " + std::string(DTypeName(dtype_));
}

}  // namespace lacuna
