// Frequencies against figures worked out by hand from the papers' formulas.
#include "engine/loader/rope_config.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

namespace lacuna::engine {
namespace {

constexpr double kPi = std::numbers::pi;

TEST(RopeConfig, DefaultAndLinear) {
  RopeConfig config{.rotary_dim = 4};
  EXPECT_DOUBLE_EQ(ComputeRopeFrequencies(config, 100).inverse[0], 1.0);
  EXPECT_DOUBLE_EQ(ComputeRopeFrequencies(config, 100).inverse[1], 0.01);
  config.type = RopeType::kLinear;
  config.factor = 4.0;
  EXPECT_DOUBLE_EQ(ComputeRopeFrequencies(config, 100).inverse[1], 0.0025);
  EXPECT_EQ(ComputeRopeFrequencies(config, 100).attention_factor, 1.0);
}

TEST(RopeConfig, Llama3BlendsByWavelength) {
  // theta^(-i/4) for rotary_dim 8: 1, 0.1, 0.01, 0.001; wavelengths 6.3, 63, 628, 6283.
  const RopeConfig config{.type = RopeType::kLlama3,
                          .rotary_dim = 8,
                          .factor = 8.0,
                          .original_context_tokens = 1000,
                          .low_freq_factor = 1.0,
                          .high_freq_factor = 4.0};
  const RopeFrequencies out = ComputeRopeFrequencies(config, 1000);
  EXPECT_DOUBLE_EQ(out.inverse[0], 1.0);
  EXPECT_DOUBLE_EQ(out.inverse[1], 0.1);
  const double smooth = (1000.0 / (2.0 * kPi / 0.01) - 1.0) / 3.0;
  EXPECT_NEAR(out.inverse[2], (1.0 - smooth) * 0.01 / 8.0 + smooth * 0.01, 1e-15);
  EXPECT_DOUBLE_EQ(out.inverse[3], 0.001 / 8.0);
}

TEST(RopeConfig, YarnRampsBetweenTwoChannels) {
  RopeConfig config{.type = RopeType::kYarn,
                    .rotary_dim = 8,
                    .factor = 4.0,
                    .original_context_tokens = 1000,
                    .beta_fast = 32.0,
                    .beta_slow = 1.0};
  const auto channel = [](double rotations) {
    return 8.0 * std::log(1000.0 / (rotations * 2.0 * kPi)) / (2.0 * std::log(10000.0));
  };
  const RopeFrequencies whole = ComputeRopeFrequencies(config, 4000);
  const double low = std::floor(channel(32.0)), high = std::ceil(channel(1.0));
  ASSERT_EQ(low, 0.0);
  ASSERT_EQ(high, 3.0);
  EXPECT_DOUBLE_EQ(whole.inverse[0], 1.0);
  EXPECT_NEAR(whole.inverse[1], 0.1 * (1.0 / 3.0 / 4.0 + 2.0 / 3.0), 1e-15);
  EXPECT_NEAR(whole.inverse[3], 0.001 / 4.0, 1e-15);
  EXPECT_DOUBLE_EQ(whole.attention_factor, 0.1 * std::log(4.0) + 1.0);

  config.truncate = false;
  const double ramp = (1.0 - channel(32.0)) / (channel(1.0) - channel(32.0));
  EXPECT_NEAR(ComputeRopeFrequencies(config, 4000).inverse[1], 0.1 * (ramp / 4.0 + 1.0 - ramp),
              1e-15);
  config.mscale = 0.5;
  config.mscale_all_dim = 2.0;
  EXPECT_DOUBLE_EQ(ComputeRopeFrequencies(config, 4000).attention_factor,
                   (0.05 * std::log(4.0) + 1.0) / (0.2 * std::log(4.0) + 1.0));
  config.attention_factor = 1.25;
  EXPECT_EQ(ComputeRopeFrequencies(config, 4000).attention_factor, 1.25);
}

TEST(RopeConfig, LongRopePicksItsFactorsByTheContext) {
  RopeConfig config{.type = RopeType::kLongRope,
                    .rotary_dim = 4,
                    .factor = 32.0,
                    .original_context_tokens = 4096,
                    .short_factor = {1.0, 2.0},
                    .long_factor = {4.0, 8.0}};
  EXPECT_DOUBLE_EQ(ComputeRopeFrequencies(config, 4096).inverse[1], 0.01 / 2.0);
  EXPECT_DOUBLE_EQ(ComputeRopeFrequencies(config, 4097).inverse[1], 0.01 / 8.0);
  EXPECT_DOUBLE_EQ(ComputeRopeFrequencies(config, 4096).attention_factor,
                   std::sqrt(1.0 + std::log(32.0) / std::log(4096.0)));
  config.factor = 1.0;
  EXPECT_EQ(ComputeRopeFrequencies(config, 4096).attention_factor, 1.0);
}

}  // namespace
}  // namespace lacuna::engine
