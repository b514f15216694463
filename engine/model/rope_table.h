// RopeTable: cosines and sines of any position, for the rows of one step.
//
// A table of every position would be hundreds of megabytes for a context of a million tokens. Two
// small ones do: position = 256 * high + low, and the rotation by a sum of angles is the product of
// the rotations, in double precision. Immutable after construction; any thread.
#pragma once

#include <complex>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/loader/rope_config.h"
#include "kernels/core/tensor_view.h"

namespace lacuna::engine {

class RopeTable final {
 public:
  RopeTable(const RopeFrequencies& frequencies, int64_t positions_max);

  int64_t rotary_dim() const { return 2 * pairs_; }
  // out: [positions, rotary_dim] f32: half of each row cosines, then the sines.
  void Fill(std::span<const int32_t> positions, const TensorView& out) const;

 private:
  static constexpr int64_t kLow = 256;
  int64_t pairs_;
  std::vector<std::complex<double>> low_;   // [kLow, pairs]
  std::vector<std::complex<double>> high_;  // [positions_max / kLow + 1, pairs]
};

}  // namespace lacuna::engine
