// The selectors of SelectRanges: which items (columns, distances, blocks of a row or of a map) are
// kept. Device code, of a whole block of threads.
//
// Forced items come first in every order and count; of the others the larger score, then the
// smaller id. A NaN ranks below everything. The search walks down the bits of the scores, so that
// nothing is sorted and any number of items fits. Masses are added in fixed point, 2^-36: in any
// order the same.
#pragma once

#include <cstdint>

#include "kernels/cuda/ranges/range_work.h"

namespace lacuna::kernels::cuda {

inline constexpr int64_t kNoLimit = int64_t{1} << 62;

struct ChoiceRule final {
  int64_t forced_head = 0;  // units [0, forced_head) and [forced_tail, ...) are forced
  int64_t forced_tail = kNoLimit;
  int64_t count_min = 0;
  int64_t count_max = kNoLimit;  // of all items; forced ones stay
  double mass_share = 0;         // of the scores' sum; from 1 on everything. Negative: counts only
  // With it the item that reaches the mass is kept, else dropped; the best is always kept.
  bool inclusive = true;
  __device__ bool Forces(int64_t unit) const { return unit < forced_head || unit >= forced_tail; }
};

// Ascending: the larger score.
__device__ __forceinline__ uint32_t RankOf(float score) {
  const uint32_t bits = isnan(score) ? 0xff800000u : __float_as_uint(score + 0.0f);  // no -0
  return (bits >> 31) != 0 ? bits : ~(bits | 0x80000000u);
}

// No item has this rank, which is behind all others.
inline constexpr uint32_t kNoRank = ~0u;

__device__ __forceinline__ uint64_t MassOf(float score) {
  const uint32_t bits = __float_as_uint(score);
  const int shift = static_cast<int>(bits >> 23) - (127 + 23 - 36);
  if (shift <= -24 || shift > 24) return 0;  // too small; negative, infinite or no number
  const uint64_t mantissa = (bits & 0x7fffffu) | 0x800000u;
  return shift >= 0 ? mantissa << shift : mantissa >> -shift;
}

__device__ __forceinline__ uint64_t MassOfRank(uint32_t rank) {
  return (rank >> 31) != 0 ? 0 : MassOf(__uint_as_float(~rank & 0x7fffffffu));
}
// The same of ranks that share sign and exponent: a mass is their part of it, moved to the left.
struct SharedExponent final {
  int left, right;
  bool none;  // all masses are 0
  __device__ explicit SharedExponent(uint32_t rank) {
    const int shift = static_cast<int>(~rank >> 23 & 255) - (127 + 23 - 36);
    left = max(shift, 0);
    right = max(-shift, 0);
    none = (rank >> 31) != 0 || shift <= -24 || shift > 24;
  }
  __device__ uint32_t Part(uint32_t rank) const {
    return ((~rank & 0x7fffffu) | 0x800000u) >> right;
  }
  __device__ uint64_t Mass(uint64_t parts) const { return none ? 0 : parts << left; }
};

// The items that are kept besides the forced ones: ranks below `rank` (both without their low
// `shift` bits), and of equal ones the ids below `id_end`.
struct ChoiceCut final {
  uint32_t rank = 0;
  int shift = 0;
  int64_t id_end = 0;
  __device__ bool Keeps(uint32_t rank_of_item, uint32_t id) const {
    const uint32_t upper = rank_of_item >> shift;
    return upper < rank || (upper == rank && id < id_end);
  }
  __device__ static ChoiceCut All() { return {0xffffffffu, 0, kNoLimit}; }
};

struct ChoiceShared final {
  uint32_t counts[2][16];
  uint64_t masses[2][32];
  uint32_t warp_counts[2][32];
  uint32_t lows[32], highs[32];
};

// What a search has found out: `want` of the `equal` keys whose upper bits are `prefix` belong to
// the first ones, and all keys below.
struct ChoiceBin final {
  uint32_t prefix = 0;
  int shift = 32;
  int64_t want = 0, equal = 0;
};

template <int kThreads>
class Chooser final {
 public:
  __device__ explicit Chooser(ChoiceShared& shared) : shared_(shared) {}

  // The cut of `items`, by all threads. Items have count() and Get(i, &item); an item that does not
  // exist gives false. Up to kHeld items a thread stay in registers while masses are searched.
  template <int kHeld = 0, typename Items>
  __device__ ChoiceCut Cut(const Items& items, const ChoiceRule& rule);

 private:
  struct Sums final {
    int64_t count = 0;
    uint64_t mass = 0;
  };
  static constexpr int kWarps = kThreads / 32;

  // Over the block, for all threads.
  __device__ Sums Add(uint32_t count, uint64_t mass);
  // The bin that holds the want-th smallest key; 1 <= want <= keys. key(i, &key) is false where
  // there is none.
  template <typename Key>
  __device__ ChoiceBin FindCount(int64_t count, int64_t want, Key&& key);
  // The same for masses, of items of which some are kept and some not; `inside` are all others,
  // whose ranks for_ranks(fn) gives. Begins with the upper bits that all of them share.
  template <typename ForRanks>
  __device__ ChoiceBin FindMass(ForRanks&& for_ranks, const ChoiceRule& rule, Sums before,
                                Sums inside, uint64_t target);
  // The bits that the block's ranks from `low` to `high` share.
  __device__ ChoiceBin SharedBits(uint32_t low, uint32_t high);
  // Counts keys whose bits above `shift` + 4 are `prefix` by the next four bits.
  template <typename Key>
  __device__ const uint32_t* CountDigits(int64_t count, uint32_t prefix, int shift, Key&& key);

  ChoiceShared& shared_;
  int turn_ = 0;  // of the buffers: a buffer is written again after a barrier behind its last use
};

// ---- inside ----

// In parts whose sums fit 32 bits.
__device__ __forceinline__ uint64_t WarpSumOf(uint64_t value) {
  constexpr int kBits = 27;
  constexpr uint32_t kMask = (1u << kBits) - 1;
  uint64_t sum = 0;
#pragma unroll
  for (int shift = 0; shift < 64; shift += kBits) {
    sum += uint64_t{__reduce_add_sync(~0u, static_cast<uint32_t>(value >> shift) & kMask)} << shift;
  }
  return sum;
}

template <int kThreads>
__device__ typename Chooser<kThreads>::Sums Chooser<kThreads>::Add(uint32_t count, uint64_t mass) {
  turn_ ^= 1;
  count = __reduce_add_sync(~0u, count);
  mass = WarpSumOf(mass);
  if ((threadIdx.x & 31) == 0) {
    shared_.warp_counts[turn_][threadIdx.x / 32] = count;
    shared_.masses[turn_][threadIdx.x / 32] = mass;
  }
  __syncthreads();
  Sums sums;
  for (int warp = 0; warp < kWarps; ++warp) {
    sums.count += shared_.warp_counts[turn_][warp];
    sums.mass += shared_.masses[turn_][warp];
  }
  return sums;
}

template <int kThreads>
template <typename Key>
__device__ const uint32_t* Chooser<kThreads>::CountDigits(int64_t count, uint32_t prefix, int shift,
                                                          Key&& key) {
  turn_ ^= 1;
  uint32_t* counts = shared_.counts[turn_];
  if (threadIdx.x < 16) counts[threadIdx.x] = 0;
  __syncthreads();
  int64_t at = threadIdx.x;
  for (int64_t done = 0; done < count; done += int64_t{255} * kThreads) {
    uint64_t low = 0, high = 0;  // eight counts of eight bits each
    for (int i = 0; i < 255 && at < count; ++i, at += kThreads) {
      uint32_t value = 0;
      if (!key(at, &value) || (shift < 28 && value >> (shift + 4) != prefix)) continue;
      const uint32_t digit = (value >> shift) & 15;
      const uint64_t one = uint64_t{1} << ((digit & 7) * 8);
      low += digit < 8 ? one : 0;
      high += digit < 8 ? 0 : one;
    }
#pragma unroll
    for (int digit = 0; digit < 16; ++digit) {
      const auto mine = static_cast<uint32_t>((digit < 8 ? low : high) >> ((digit & 7) * 8)) & 255;
      const uint32_t sum = __reduce_add_sync(~0u, mine);
      if ((threadIdx.x & 31) == 0 && sum > 0) atomicAdd(counts + digit, sum);
    }
  }
  __syncthreads();
  return counts;
}

template <int kThreads>
template <typename Key>
__device__ ChoiceBin Chooser<kThreads>::FindCount(int64_t count, int64_t want, Key&& key) {
  ChoiceBin bin{0, 32, want, 0};
  while (bin.shift > 0) {
    bin.shift -= 4;
    const uint32_t* counts = CountDigits(count, bin.prefix, bin.shift, key);
    uint32_t digit = 0;
    while (digit < 15 && bin.want > counts[digit]) bin.want -= counts[digit++];
    bin.prefix = bin.prefix << 4 | digit;
    bin.equal = counts[digit];
    if (bin.want == bin.equal) break;
  }
  return bin;
}

// Whether the border lies within the first `count` items, of that mass: with `inclusive` the item
// behind them is not kept, else the last of them is not.
__device__ __forceinline__ bool Reaches(const ChoiceRule& rule, int64_t count, uint64_t mass,
                                        uint64_t target) {
  if (!rule.inclusive) --count;
  const bool fits = rule.inclusive ? mass < target : mass <= target;
  return count >= rule.count_max || !(fits || count < rule.count_min || count <= 0);
}

// How many are kept of `equal` items of the same score, of that mass, behind `count` of `mass`: up
// to the first that reaches.
__device__ __forceinline__ int64_t WantedOfEqual(const ChoiceRule& rule, int64_t count,
                                                 uint64_t mass, int64_t equal, uint64_t equal_mass,
                                                 uint64_t target) {
  const uint64_t each = equal_mass / static_cast<uint64_t>(equal);
  int64_t low = 1, high = equal;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (Reaches(rule, count + middle, mass + static_cast<uint64_t>(middle) * each, target)) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return rule.inclusive ? low : low - 1;
}

template <int kThreads>
__device__ ChoiceBin Chooser<kThreads>::SharedBits(uint32_t low, uint32_t high) {
  low = __reduce_min_sync(~0u, low);
  high = __reduce_max_sync(~0u, high);
  __syncthreads();
  if ((threadIdx.x & 31) == 0) {
    shared_.lows[threadIdx.x / 32] = low;
    shared_.highs[threadIdx.x / 32] = high;
  }
  __syncthreads();
  for (int warp = 0; warp < kWarps; ++warp) {
    low = min(low, shared_.lows[warp]);
    high = max(high, shared_.highs[warp]);
  }
  ChoiceBin bin;
  bin.shift = 32 - __clz(static_cast<int>(low ^ high));
  bin.prefix = bin.shift < 32 ? high >> bin.shift : 0;
  return bin;
}

template <int kThreads>
template <typename ForRanks>
__device__ ChoiceBin Chooser<kThreads>::FindMass(ForRanks&& for_ranks, const ChoiceRule& rule,
                                                 Sums before, Sums inside, uint64_t target) {
  uint32_t lowest = kNoRank, highest = 0;
  for_ranks([&](uint32_t rank) {
    if (rank == kNoRank) return;
    lowest = min(lowest, rank);
    highest = max(highest, rank);
  });
  ChoiceBin bin = SharedBits(lowest, highest);
  while (bin.shift > 0 && inside.count > 1) {
    --bin.shift;
    const uint32_t prefix = bin.prefix << 1;
    uint32_t count = 0;
    uint64_t mass = 0;
    if (bin.shift > 23) {
      for_ranks([&](uint32_t rank) {
        if (rank >> bin.shift != prefix || rank == kNoRank) return;
        ++count;
        mass += MassOfRank(rank);
      });
    } else {
      const SharedExponent exponent(prefix << bin.shift);
      for_ranks([&](uint32_t rank) {
        if (rank >> bin.shift != prefix || rank == kNoRank) return;
        ++count;
        mass += exponent.Part(rank);
      });
      mass = exponent.Mass(mass);
    }
    const Sums zero = Add(count, mass);  // of the keys whose next bit is 0
    if (Reaches(rule, before.count + zero.count, before.mass + zero.mass, target)) {
      bin.prefix = prefix;
      inside = zero;
    } else {
      bin.prefix = prefix | 1;
      before = {before.count + zero.count, before.mass + zero.mass};
      inside = {inside.count - zero.count, inside.mass - zero.mass};
    }
  }
  bin.equal = inside.count;
  bin.want = WantedOfEqual(rule, before.count, before.mass, inside.count, inside.mass, target);
  return bin;
}

template <int kThreads>
template <int kHeld, typename Items>
__device__ ChoiceCut Chooser<kThreads>::Cut(const Items& items, const ChoiceRule& rule) {
  using Item = typename Items::Item;
  const bool by_mass = rule.mass_share >= 0.0 && rule.mass_share < 1.0;
  uint32_t forced_count = 0, count = 0;
  uint64_t forced_mass = 0, mass = 0;
#pragma unroll 4
  for (int64_t at = threadIdx.x; at < items.count(); at += kThreads) {
    Item item;
    if (!items.Get(at, &item)) continue;
    (item.forced ? forced_count : count) += 1;
    if (by_mass) (item.forced ? forced_mass : mass) += MassOf(item.score);
  }
  const Sums forced = Add(forced_count, forced_mass);
  const Sums others = Add(count, mass);
  ChoiceBin bin;
  if (by_mass) {
    const auto target =
        static_cast<uint64_t>(static_cast<double>(forced.mass + others.mass) * rule.mass_share);
    const bool full = rule.inclusive ? forced.mass >= target : forced.mass > target;
    if (forced.count >= rule.count_max ||
        (full && forced.count >= rule.count_min && forced.count > 0)) {
      return {};
    }
    if (!Reaches(rule, forced.count + others.count, forced.mass + others.mass, target)) {
      return ChoiceCut::All();
    }
    // The rank among the items of the search, or kNoRank.
    const auto rank_of = [&](int64_t at) {
      Item item;
      return at < items.count() && items.Get(at, &item) && !item.forced ? RankOf(item.score)
                                                                        : kNoRank;
    };
    const auto for_items = [&](auto&& fn) {
      for (int64_t at = threadIdx.x; at < items.count(); at += kThreads) fn(rank_of(at));
    };
    if constexpr (kHeld == 0) {
      bin = FindMass(for_items, rule, forced, others, target);
    } else if (items.count() > int64_t{kHeld} * kThreads) {
      bin = FindMass(for_items, rule, forced, others, target);
    } else {
      uint32_t held[kHeld];
#pragma unroll
      for (int i = 0; i < kHeld; ++i) held[i] = rank_of(threadIdx.x + int64_t{i} * kThreads);
      const auto for_held = [&](auto&& fn) {
#pragma unroll
        for (int i = 0; i < kHeld; ++i) fn(held[i]);
      };
      bin = FindMass(for_held, rule, forced, others, target);
    }
  } else {
    const int64_t want = rule.count_max - forced.count;
    if (want <= 0) return {};
    if (want >= others.count) return ChoiceCut::All();
    bin = FindCount(items.count(), want, [&](int64_t at, uint32_t* key) {
      Item item;
      if (!items.Get(at, &item) || item.forced) return false;
      *key = RankOf(item.score);
      return true;
    });
  }
  ChoiceCut cut{bin.prefix, bin.shift, bin.want == bin.equal ? kNoLimit : 0};
  if (bin.want == 0 || bin.want == bin.equal) return cut;
  const ChoiceBin ids = FindCount(items.count(), bin.want, [&](int64_t at, uint32_t* key) {
    Item item;
    if (!items.Get(at, &item) || item.forced) return false;
    *key = item.id;
    return RankOf(item.score) >> bin.shift == bin.prefix;
  });
  cut.id_end = (static_cast<int64_t>(ids.prefix) + 1) << ids.shift;
  return cut;
}

}  // namespace lacuna::kernels::cuda
