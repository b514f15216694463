#include "engine/model/rope_table.h"

namespace lacuna::engine {

RopeTable::RopeTable(const RopeFrequencies& frequencies, int64_t positions_max)
    : pairs_(static_cast<int64_t>(frequencies.inverse.size())) {
  const auto fill = [&](std::vector<std::complex<double>>& table, int64_t rows, int64_t step,
                        double radius) {
    table.reserve(static_cast<size_t>(rows * pairs_));
    for (int64_t row = 0; row < rows; ++row) {
      for (const double frequency : frequencies.inverse) {
        table.push_back(std::polar(radius, static_cast<double>(row * step) * frequency));
      }
    }
  };
  fill(low_, kLow, 1, frequencies.attention_factor);
  fill(high_, positions_max / kLow + 1, kLow, 1.0);
}

void RopeTable::Fill(std::span<const int32_t> positions, const TensorView& out) const {
  float* row = out.as<float>();
  for (const int32_t position : positions) {
    const std::complex<double>* low = &low_[static_cast<size_t>(position % kLow * pairs_)];
    const std::complex<double>* high = &high_[static_cast<size_t>(position / kLow * pairs_)];
    for (int64_t i = 0; i < pairs_; ++i) {
      row[i] = static_cast<float>(high[i].real() * low[i].real() - high[i].imag() * low[i].imag());
      row[pairs_ + i] =
          static_cast<float>(high[i].real() * low[i].imag() + high[i].imag() * low[i].real());
    }
    row += 2 * pairs_;
  }
}

}  // namespace lacuna::engine
