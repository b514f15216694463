#include "engine/model/rope_table.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace lacuna::engine {
namespace {

TEST(RopeTable, EveryPositionIsTheAngleInDouble) {
  constexpr int64_t kPositions = 1 << 20;
  RopeFrequencies frequencies{.inverse = {1.0, 0.1, 0.00123}, .attention_factor = 1.3};
  const RopeTable table(frequencies, kPositions);
  const std::vector<int32_t> positions = {0, 1, 255, 256, 257, 65535, 99'999, kPositions - 1};
  std::vector<float> rows(positions.size() * 6);
  table.Fill(positions,
             TensorView(rows.data(), DType::kF32, {static_cast<int64_t>(positions.size()), 6}));
  for (size_t row = 0; row < positions.size(); ++row) {
    for (size_t i = 0; i < 3; ++i) {
      const double angle = static_cast<double>(positions[row]) * frequencies.inverse[i];
      EXPECT_NEAR(rows[row * 6 + i], 1.3 * std::cos(angle), 1e-7);
      EXPECT_NEAR(rows[row * 6 + 3 + i], 1.3 * std::sin(angle), 1e-7);
    }
  }
}

}  // namespace
}  // namespace lacuna::engine
