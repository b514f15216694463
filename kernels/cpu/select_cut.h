// Where a ranking of units is cut: best score first, equal scores by the older unit (smaller id),
// NaN last. Deterministic: a function of the scores alone. The scratch is one worker's.
#pragma once

#include <bit>
#include <cstdint>
#include <span>
#include <vector>

namespace lacuna::kernels::cpu {

// Orders as the scores do; 0 and -0 are equal, NaN is below everything.
inline uint32_t OrderKey(float score) {
  const uint32_t bits = std::bit_cast<uint32_t>(score + 0.0f);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0;
  return bits ^ (bits >> 31 != 0 ? 0xffffffffu : 0x80000000u);
}
// Ranks units: a larger one is better.
inline uint64_t RankOf(float score, int64_t unit) {
  return static_cast<uint64_t>(OrderKey(score)) << 32 | static_cast<uint32_t>(~unit);
}

struct CutScratch final {
  std::vector<uint32_t> counts;
  std::vector<double> masses;
  std::vector<uint64_t> ranks;
};

inline constexpr uint64_t kCutNone = UINT64_MAX;  // above every rank

// The rank of the count-th best unit; units are numbered from `first` on. Selected is what ranks at
// or above it.
uint64_t CutOfCount(std::span<const float> scores, int64_t first, int64_t count,
                    CutScratch& scratch);

// How many of the best units it takes until their mass and `mass` reach `target`: the unit that
// does so included, or not. All of them when it is never reached.
struct MassWalk final {
  double mass = 0, target = 0;
  bool inclusive = true;
  bool keep_first = false;  // the best is kept in any case
};
int64_t CountOfMass(std::span<const float> scores, const MassWalk& walk, CutScratch& scratch);

// Units that score at least `threshold`.
int64_t CountOfThreshold(std::span<const float> scores, float threshold);

}  // namespace lacuna::kernels::cpu
