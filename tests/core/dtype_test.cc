#include "kernels/core/dtype.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace lacuna {
namespace {

TEST(DType, EveryBF16SurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 0x10000u; ++bits) {
    const BF16 value{static_cast<uint16_t>(bits)};
    const float wide = ToFloat(value);
    if (std::isnan(wide)) {
      EXPECT_TRUE(std::isnan(ToFloat(ToBF16(wide))));
    } else {
      ASSERT_EQ(ToBF16(wide).bits, value.bits);
    }
  }
}

TEST(DType, EveryF16SurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 0x10000u; ++bits) {
    const F16 value{static_cast<uint16_t>(bits)};
    const float wide = ToFloat(value);
    if (std::isnan(wide)) {
      EXPECT_TRUE(std::isnan(ToFloat(ToF16(wide))));
    } else {
      ASSERT_EQ(ToF16(wide).bits, value.bits) << bits;
    }
  }
}

TEST(DType, RoundsToNearestEven) {
  EXPECT_EQ(ToBF16(1.0f + 0x1p-8f).bits, ToBF16(1.0f).bits);  // tie, to even
  EXPECT_EQ(ToBF16(1.0f + 0x1p-7f + 0x1p-8f).bits, 0x3f82);   // tie, to even upwards
  EXPECT_EQ(ToF16(1.0f + 0x1p-11f).bits, 0x3c00);
  EXPECT_EQ(ToF16(65519.0f).bits, 0x7bff);
  EXPECT_EQ(ToF16(65520.0f).bits, 0x7c00);
  EXPECT_EQ(ToF16(0x1p-24f).bits, 1);
  EXPECT_EQ(ToF16(-0x1p-26f).bits, 0x8000);
}

}  // namespace
}  // namespace lacuna
