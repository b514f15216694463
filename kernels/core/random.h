// Random: numbers that are the same for a seed on any machine; no std:: distribution, whose results
// the standard leaves open. For tools and tests, not for sampling. One thread. And what it mixes
// by, for fingerprints of values that nobody chooses in order to collide.
#pragma once

#include <cmath>
#include <cstdint>
#include <numbers>

namespace lacuna {

// splitmix64 (Steele, Lea, Flood 2014): the state after `value` was folded in.
constexpr uint64_t MixIn(uint64_t state, uint64_t value) {
  state += 0x9e3779b97f4a7c15 + value;
  state = (state ^ (state >> 30)) * 0xbf58476d1ce4e5b9;
  state = (state ^ (state >> 27)) * 0x94d049bb133111eb;
  return state ^ (state >> 31);
}

// The same as a sequence.
class Random final {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t Next() {
    const uint64_t mixed = MixIn(state_, 0);
    state_ += 0x9e3779b97f4a7c15;
    return mixed;
  }
  // [0, 1)
  double Uniform() { return static_cast<double>(Next() >> 11) * 0x1.0p-53; }
  // [0, count), count > 0; the bias of at most count / 2^53 does not matter here.
  int64_t Below(int64_t count) {
    return static_cast<int64_t>(Uniform() * static_cast<double>(count));
  }
  // Mean 0, variance 1 (Box and Muller).
  double Normal() {
    const double radius = std::sqrt(-2.0 * std::log(1.0 - Uniform()));
    return radius * std::cos(2.0 * std::numbers::pi * Uniform());
  }

 private:
  uint64_t state_;
};

}  // namespace lacuna
