#include "kernels/core/tensor_view.h"

#include <gtest/gtest.h>

namespace lacuna {
namespace {

TEST(TensorView, SlicesKeepStrides) {
  float data[24] = {};
  const TensorView view(data, DType::kF32, {4, 3, 2});
  EXPECT_EQ(view.elements(), 24);
  EXPECT_EQ(view.stride(0), 6);
  const TensorView slice = view.Slice(1, 2);
  EXPECT_EQ(slice.as<float>(), data + 6);
  EXPECT_EQ(slice.dim(0), 2);
  const TensorView row = view.Row(3);
  EXPECT_EQ(row.rank(), 2);
  EXPECT_EQ(row.as<float>(), data + 18);
  EXPECT_EQ(row.ShapeString(), "[3, 2] f32");
}

TEST(TensorView, RowsOfAWiderMatrixAreNotContiguous) {
  float data[24] = {};
  const TensorView view = TensorView::Rows(data, DType::kF32, {4, 3}, 6);
  EXPECT_FALSE(view.contiguous());
  EXPECT_EQ(view.Row(2).as<float>(), data + 12);
}

}  // namespace
}  // namespace lacuna
