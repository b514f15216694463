#include "kernels/core/status.h"

#include <gtest/gtest.h>

#include <memory>

namespace lacuna {
namespace {

Result<std::unique_ptr<int>> Half(int value) {
  if (value % 2 != 0) return InvalidArgument("odd");
  return std::make_unique<int>(value / 2);
}

Result<int> Quarter(int value) {
  LACUNA_ASSIGN_OR_RETURN(auto half, Half(value));
  LACUNA_ASSIGN_OR_RETURN(auto quarter, Half(*half));
  return *quarter;
}

TEST(Status, PropagatesThroughResult) {
  EXPECT_EQ(*Quarter(8), 2);
  EXPECT_EQ(Quarter(6).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(Quarter(6).status().ToString(), "invalid_argument: odd");
  EXPECT_TRUE(Quarter(8).status().ok());
}

TEST(StatusDeathTest, AnErrorHasNoValue) {
  Result<int> result = InvalidArgument("x");
  EXPECT_DEATH(result.value(), "broken invariant");
}

}  // namespace
}  // namespace lacuna
