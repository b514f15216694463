#include "kernels/cpu/select_cut.h"

#include <algorithm>
#include <functional>

namespace lacuna::kernels::cpu {
namespace {

// Bins of a first look at all scores: sign, exponent and two bits of the fraction.
constexpr int kBinShift = 21;
constexpr size_t kBins = size_t{1} << (32 - kBinShift);

size_t BinOf(float score) { return OrderKey(score) >> kBinShift; }

void TakeBin(std::span<const float> scores, int64_t first, size_t bin,
             std::vector<uint64_t>* ranks) {
  ranks->clear();
  for (size_t i = 0; i < scores.size(); ++i) {
    if (BinOf(scores[i]) != bin) continue;
    ranks->push_back(RankOf(scores[i], first + static_cast<int64_t>(i)));
  }
}

float ScoreOf(uint64_t rank) {
  const auto key = static_cast<uint32_t>(rank >> 32);
  return std::bit_cast<float>(key ^ (key >> 31 != 0 ? 0x80000000u : 0xffffffffu));
}

}  // namespace

uint64_t CutOfCount(std::span<const float> scores, int64_t first, int64_t count,
                    CutScratch& scratch) {
  if (count <= 0) return kCutNone;
  if (count >= static_cast<int64_t>(scores.size())) return 0;
  scratch.counts.assign(kBins, 0);
  for (const float score : scores) ++scratch.counts[BinOf(score)];
  size_t bin = kBins - 1;
  int64_t left = count;  // to take from this bin and those below
  for (; scratch.counts[bin] < left; --bin) left -= scratch.counts[bin];
  TakeBin(scores, first, bin, &scratch.ranks);
  const auto nth = scratch.ranks.begin() + (left - 1);
  std::nth_element(scratch.ranks.begin(), nth, scratch.ranks.end(), std::greater<>());
  return *nth;
}

int64_t CountOfMass(std::span<const float> scores, const MassWalk& walk, CutScratch& scratch) {
  int64_t kept = 0;
  double mass = walk.mass;
  if (mass >= walk.target || scores.empty()) {
    return walk.keep_first && !scores.empty() ? 1 : 0;
  }
  scratch.counts.assign(kBins, 0);
  scratch.masses.assign(kBins, 0.0);
  for (const float score : scores) {
    const size_t bin = BinOf(score);
    ++scratch.counts[bin];
    scratch.masses[bin] += score;
  }
  for (size_t bin = kBins; bin-- > 0;) {
    if (scratch.counts[bin] == 0) continue;
    if (mass + scratch.masses[bin] < walk.target) {
      mass += scratch.masses[bin];
      kept += scratch.counts[bin];
      continue;
    }
    TakeBin(scores, 0, bin, &scratch.ranks);
    std::ranges::sort(scratch.ranks, std::greater<>());
    for (const uint64_t rank : scratch.ranks) {
      mass += ScoreOf(rank);
      if (mass >= walk.target) {
        const bool keeps = walk.inclusive || (kept == 0 && walk.keep_first);
        return kept + (keeps ? 1 : 0);
      }
      ++kept;
    }
    // The same numbers in another order stayed a rounding below: the bin's last unit reaches it.
    return kept;
  }
  return kept;
}

int64_t CountOfThreshold(std::span<const float> scores, float threshold) {
  return std::ranges::count_if(scores, [&](float score) { return score >= threshold; });
}

}  // namespace lacuna::kernels::cpu
