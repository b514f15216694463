// The first choice of one (row, owner), by one thread block: which units rank above the cut, kept
// as masks of pages, and the share of the mass that they hold. Device code.
#pragma once

#include <cstdint>

#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/select/select_choice_block.cuh"
#include "kernels/cuda/select/select_cut.cuh"
#include "kernels/cuda/select/select_keys.h"
#include "kernels/cuda/select/select_lists.cuh"

namespace lacuna::kernels::cuda {

// exp(x) for x <= 0.
__device__ inline float ExpOf(float x) { return Exp2(x * 1.4426950408889634f); }

// A walk down a ranking until a share of all mass is reached; forced units come first.
struct MassWalk final {
  uint64_t forced_mass, mass;  // of forced units, of those that compete
  float p;
  bool inclusive;   // the unit that reaches it is kept
  bool keep_first;  // the best unit is kept in any case
};
// How many units the walk keeps. Returns whether it has found the cut as well.
__device__ inline bool CutOfMass(const KeyRow& row, const CutDomain& domain, Cutter& cutter,
                                 const MassWalk& walk, int& count, uint64_t& cut) {
  const uint64_t target = __double2ull_rn(static_cast<double>(walk.p) *
                                          static_cast<double>(walk.forced_mass + walk.mass));
  if (walk.forced_mass >= target || walk.mass == 0) {
    count = walk.keep_first ? 1 : 0;
    return false;
  }
  const uint64_t wanted = min(target - walk.forced_mass, walk.mass);
  const CutReach reach = cutter.ReachMass(row, domain, wanted);
  const bool keeps = walk.inclusive || (reach.before == 0 && walk.keep_first);
  count = static_cast<int>(reach.before) + (keeps ? 1 : 0);
  cut = keeps ? reach.rank : reach.rank + 1;
  return true;
}

// What is known of a row of unit scores once it has been read.
struct UnitSummary final {
  CutDomain between;  // units that are not forced
  uint32_t key_top = 0;
  uint64_t forced_mass = 0, mass = 0;  // of all forced units, of those between
  int at_least = 0;                    // units between that reach the threshold
};

// Cuts one row of unit scores as the path says.
class UnitCutter final {
 public:
  __device__ UnitCutter(const SelectKeysCall& call, const SelectRow& what)
      : path_(call.path), what_(what) {}

  // Reads the row into shared memory.
  __device__ UnitSummary Load(const KeyRow& row, ChooseBlock& block) const {
    const DecodeCounts& counts = what_.counts;
    UnitSummary summary;
    summary.between.first = counts.sink_units;
    summary.between.end = counts.units - counts.local_units;
    const bool weighs = path_.select == SelectKind::kTopP;
    const float threshold = Threshold();
    uint32_t extremes[3] = {0, 0, 0};  // of those between: ~least, greatest; greatest of all
    uint64_t sums[3] = {0, 0, 0};
    row.Load(counts.units, [&](uint32_t key, int unit, bool valid) {
      if (!valid) return;
      const bool between = unit >= summary.between.first && unit < summary.between.end;
      extremes[2] = max(extremes[2], key);
      if (between) {
        extremes[0] = max(extremes[0], ~key);
        extremes[1] = max(extremes[1], key);
        sums[2] += ScoreOfKey(key) >= threshold ? 1 : 0;
      }
      if (!weighs) return;
      const uint64_t mass = MassOf(ScoreOfKey(key));
      sums[0] += between ? 0 : mass;
      sums[1] += between ? mass : 0;
    });
    block.Max(extremes);
    if (path_.select != SelectKind::kTopK) block.Sum(sums);
    summary.between.key_min = ~extremes[0];
    summary.between.key_max = extremes[1];
    summary.key_top = extremes[2];
    summary.forced_mass = sums[0];
    summary.mass = sums[1];
    summary.at_least = static_cast<int>(sums[2]);
    return summary;
  }

  // What ranks at or above it is taken.
  __device__ uint64_t Cut(const KeyRow& row, const UnitSummary& summary, Cutter& cutter) const {
    int count = what_.counts.ranked_units_max;
    uint64_t cut = 0;
    bool cuts = false;  // `cut` is that of `count`
    if (path_.select == SelectKind::kTopP) {
      const bool keep_first =
          summary.between.count() == what_.counts.units && what_.counts.units > 0;
      const MassWalk walk{summary.forced_mass, summary.mass, what_.p, path_.inclusive, keep_first};
      cuts = CutOfMass(row, summary.between, cutter, walk, count, cut);
    } else if (path_.select == SelectKind::kThreshold) {
      count = summary.at_least;
      cut = count == 0 ? kCutNone : static_cast<uint64_t>(OrderKey(Threshold())) << 32;
      cuts = true;
    }
    const int limited =
        min(max(count, what_.counts.ranked_units_min), what_.counts.ranked_units_max);
    if (cuts && limited == count) return cut;
    return cutter.CutOfCount(row, summary.between, limited);
  }

 private:
  // A head's own threshold has been taken from its scores.
  __device__ float Threshold() const { return path_.head_thresholds ? 0.0f : what_.threshold; }

  const DecodePath& path_;
  const SelectRow what_;
};

// Shares of masses; sums are exact, so their order does not matter.
struct MassShare final {
  uint64_t held = 0, all = 0;

  __device__ void Add(float weight, bool is_held) {
    const uint64_t mass = MassOf(weight);
    all += mass;
    held += is_held ? mass : 0;
  }
  __device__ float Of(ChooseBlock& block) const {
    uint64_t sums[2] = {held, all};
    block.Sum(sums);
    return Ratio(sums[0], sums[1]);
  }
  // Of the lanes of a full warp.
  __device__ float OfWarp() const { return Ratio(WarpTotal(held), WarpTotal(all)); }

 private:
  __device__ static float Ratio(uint64_t part, uint64_t whole) {
    return whole == 0 ? 0.0f : static_cast<float>(part) / static_cast<float>(whole);
  }
};

// A later step may read more pages than there are now; what is chosen at each step is not read.
__device__ inline void ClearBehind(const SelectKeysCall& call, const RowPlan& plan,
                                   uint64_t* masks) {
  if (call.path.refresh == RefreshKind::kEveryStep) return;
#pragma unroll 1
  for (int64_t page = plan.pages + static_cast<int>(threadIdx.x); page < call.choices.pages_max;
       page += BlockThreads()) {
    masks[page] = 0;
  }
}

// The choice that a cut makes, page by page, as a source of lists. Going over the pages for the
// first time writes or adds it to `masks`, and weighs the units.
class CutChoice final {
 public:
  __device__ CutChoice(const SelectKeysCall& call, const RowPlan& plan, const SelectRow& what,
                       const KeyRow& row, uint64_t cut, uint64_t* masks)
      : row_(row),
        first_(what.counts.sink_units),
        end_(what.counts.units - what.counts.local_units),
        units_(plan.units),
        pages_(plan.pages),
        unit_tokens_(call.path.unit_tokens),
        page_tokens_(call.page_tokens),
        normalises_(call.normalises),
        cut_(cut),
        masks_(masks) {}

  bool adds = false;    // to what other heads chose
  bool weighs = false;  // adds up `share`, by scores whose greatest is `top`
  float top = 0;
  MassShare share;

  template <bool kFirst>
  __device__ uint64_t Pages(int first) {
    uint64_t mask =
        unit_tokens_ >= page_tokens_ ? WideUnits<kFirst>(first) : NarrowUnits<kFirst>(first);
    const int page = first + LaneId();
    if (kFirst && page < pages_) {
      if (adds) mask |= masks_[page];
      masks_[page] = mask;
    }
    return mask;
  }

 private:
  template <bool kFirst>
  __device__ bool Take(int unit, bool weighed) {
    if (unit >= units_) return false;
    const uint32_t key = row_.Key(unit);
    const bool between = unit >= first_ && unit < end_;
    const bool taken = between && cut_ != kCutNone && RankOf(key, unit) >= cut_;
    if (kFirst && weighs && weighed) {
      const float score = ScoreOfKey(key);
      share.Add(normalises_ ? score : ExpOf(score - top), taken || !between);
    }
    return taken;
  }

  // A page lies in one unit.
  template <bool kFirst>
  __device__ uint64_t WideUnits(int first) {
    const int each = unit_tokens_ / page_tokens_, page = first + LaneId();
    return Take<kFirst>(page / each, page % each == 0) ? MaskBits(0, page_tokens_) : 0;
  }

  // A page holds 4, 16 or 64 units. Lanes look at 32 units at once; each keeps its page's.
  template <bool kFirst>
  __device__ uint64_t NarrowUnits(int first) {
    const int each = page_tokens_ / unit_tokens_;
    uint64_t bits = 0;
    for (int i = 0; i < each; ++i) {
      const uint64_t taken =
          __ballot_sync(kAllLanes, Take<kFirst>(first * each + i * 32 + LaneId(), true));
      if (each == 64) {
        if (i / 2 == LaneId()) bits |= taken << i % 2 * 32;
      } else if (LaneId() * each / 32 == i) {
        bits = taken >> LaneId() * each % 32 & ((1u << each) - 1);
      }
    }
    if (unit_tokens_ == 1) return bits;
    uint64_t mask = 0;
    for (int i = 0; i < each; ++i) {
      if ((bits >> i & 1) != 0) mask |= MaskBits(i * unit_tokens_, (i + 1) * unit_tokens_);
    }
    return mask;
  }

  KeyRow row_;
  int first_, end_, units_, pages_, unit_tokens_, page_tokens_;
  bool normalises_;
  uint64_t cut_;
  uint64_t* masks_;
};

}  // namespace lacuna::kernels::cuda
