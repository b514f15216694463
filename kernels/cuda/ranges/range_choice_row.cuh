// RowChoice: the selectors of range_choice.cuh for one row of up to 32 * kEach units, by one warp
// that keeps their scores in registers. Device code.
//
// Lane l has the units 32 i + l, i < kEach: bit i of the lane's marks.
#pragma once

#include <cstdint>

#include "kernels/cuda/ranges/range_choice.cuh"

namespace lacuna::kernels::cuda {

template <int kEach>
class RowChoice final {
  static_assert(kEach <= 32);

 public:
  __device__ RowChoice(const float* scores, int units, const ChoiceRule& rule) : rule_(rule) {
    const int lane = static_cast<int>(threadIdx.x) & 31;
    float values[kEach];  // all loads are under way at once
#pragma unroll
    for (int i = 0; i < kEach; ++i)
      values[i] = 32 * i + lane < units ? scores[32 * i + lane] : 0.0f;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int unit = 32 * i + lane;
      const bool forced = unit < units && rule.Forces(unit);
      const bool free = unit < units && !forced;
      const uint64_t mass = MassOf(values[i]);
      forced_ |= static_cast<uint32_t>(forced) << i;
      forced_mass_ += forced ? mass : 0;
      ranks_[i] = free ? RankOf(values[i]) : kNoRank;
      masses_[i] = free ? mass : 0;
    }
  }

  // The marks of what is kept.
  __device__ uint32_t Kept() const {
    const bool by_mass = rule_.mass_share >= 0.0 && rule_.mass_share < 1.0;
    Sums others;
    others.count = CountOf([](uint32_t rank) { return rank != kNoRank; });
    const int64_t forced = __reduce_add_sync(~0u, __popc(forced_));
    if (!by_mass) {
      const int64_t want = rule_.count_max - forced;
      if (want <= 0) return forced_;
      return forced_ | (want >= others.count ? All() : First(FindCount(want, others.count)));
    }
    others.mass = MassBelow(0, 32);
    const uint64_t forced_mass = WarpSumOf(forced_mass_);
    const auto target =
        static_cast<uint64_t>(static_cast<double>(forced_mass + others.mass) * rule_.mass_share);
    const bool full = rule_.inclusive ? forced_mass >= target : forced_mass > target;
    if (forced >= rule_.count_max || (full && forced >= rule_.count_min && forced > 0)) {
      return forced_;
    }
    const bool reaches = Reaches(rule_, forced + others.count, forced_mass + others.mass, target);
    if (!reaches) return forced_ | All();
    return forced_ | First(FindMass({forced, forced_mass}, others, target));
  }

 private:
  struct Sums final {
    int64_t count = 0;
    uint64_t mass = 0;
  };

  template <typename Takes>
  __device__ int CountOf(Takes&& takes) const {
    int count = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) count += takes(ranks_[i]) ? 1 : 0;
    return __reduce_add_sync(~0u, count);
  }
  // Of the units whose rank without its low `shift` bits is `prefix`; with 32 of all.
  __device__ uint64_t MassBelow(uint32_t prefix, int shift) const {
    uint64_t mass = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (shift == 32 || ranks_[i] >> shift == prefix) mass += masses_[i];
    }
    return WarpSumOf(mass);
  }
  __device__ uint32_t All() const {
    uint32_t marks = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) marks |= static_cast<uint32_t>(ranks_[i] != kNoRank) << i;
    return marks;
  }

  // The bits that all ranks share, of which there is one at least.
  __device__ ChoiceBin Shared() const {
    uint32_t any = 0, all = ~0u;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      any |= ranks_[i] != kNoRank ? ranks_[i] : 0;
      all &= ranks_[i];
    }
    any = __reduce_or_sync(~0u, any);
    all = __reduce_and_sync(~0u, all);
    ChoiceBin bin;
    bin.shift = 32 - __clz(static_cast<int>(any ^ all));
    bin.prefix = bin.shift == 32 ? 0 : all >> bin.shift;
    return bin;
  }

  __device__ ChoiceBin FindCount(int64_t want, int64_t count) const {
    ChoiceBin bin = Shared();
    bin.want = want;
    bin.equal = count;
    while (bin.shift > 0 && bin.want != bin.equal) {
      --bin.shift;
      bin.prefix <<= 1;
      const int zeros = CountOf([&](uint32_t rank) { return rank >> bin.shift == bin.prefix; });
      if (bin.want <= zeros) {
        bin.equal = zeros;
      } else {
        bin.prefix |= 1;
        bin.want -= zeros;
        bin.equal -= zeros;
      }
    }
    return bin;
  }

  // As Chooser::FindMass.
  __device__ ChoiceBin FindMass(Sums before, Sums inside, uint64_t target) const {
    ChoiceBin bin = Shared();
    while (bin.shift > 0 && inside.count > 1) {
      --bin.shift;
      bin.prefix <<= 1;
      const Sums zero{CountOf([&](uint32_t rank) { return rank >> bin.shift == bin.prefix; }),
                      MassBelow(bin.prefix, bin.shift)};
      if (Reaches(rule_, before.count + zero.count, before.mass + zero.mass, target)) {
        inside = zero;
      } else {
        bin.prefix |= 1;
        before = {before.count + zero.count, before.mass + zero.mass};
        inside = {inside.count - zero.count, inside.mass - zero.mass};
      }
    }
    bin.equal = inside.count;
    bin.want = WantedOfEqual(rule_, before.count, before.mass, inside.count, inside.mass, target);
    return bin;
  }

  // The ranks below the bin, and the bin's first ones.
  __device__ uint32_t First(const ChoiceBin& bin) const {
    const uint32_t lower_lanes = (1u << (threadIdx.x & 31)) - 1;
    uint32_t marks = 0;
    int64_t seen = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const uint32_t upper = bin.shift == 32 ? 0 : ranks_[i] >> bin.shift;
      const bool equal = ranks_[i] != kNoRank && upper == bin.prefix;
      const uint32_t equals = __ballot_sync(~0u, equal);
      const bool early = equal && seen + __popc(equals & lower_lanes) < bin.want;
      marks |= static_cast<uint32_t>(upper < bin.prefix || early) << i;
      seen += __popc(equals);
    }
    return marks;
  }

  const ChoiceRule& rule_;
  uint32_t ranks_[kEach];
  uint64_t masses_[kEach];
  uint32_t forced_ = 0;  // marks
  uint64_t forced_mass_ = 0;
};

}  // namespace lacuna::kernels::cuda
