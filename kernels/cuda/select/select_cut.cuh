// Where a ranking of units is cut, by one thread block: best score first, equal scores by the older
// unit (smaller id), NaN last. Device code.
//
// A histogram over the range of the keys finds the bin of the cut; further ones divide that bin,
// units of equal keys by their ids, until it is taken whole or short enough to compare all its
// units with each other. Masses are integers (2^-42), so that sums depend on no order: a walk ends
// where one in double precision does, within a rounding of single scores to 2^-43.
#pragma once

#include <cstdint>

#include "kernels/cuda/select/select_choice_block.cuh"

namespace lacuna::kernels::cuda {

// Orders as the scores do; 0 and -0 are equal, NaN is below everything.
__device__ inline uint32_t OrderKey(float score) {
  const uint32_t bits = __float_as_uint(score + 0.0f);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return 0;
  return bits ^ (bits >> 31 != 0 ? 0xffffffffu : 0x80000000u);
}
__device__ inline float ScoreOfKey(uint32_t key) {
  return __uint_as_float(key ^ (key >> 31 != 0 ? 0x80000000u : 0xffffffffu));
}
// Ranks units: a larger one is better.
__device__ inline uint64_t RankOf(uint32_t key, int unit) {
  return static_cast<uint64_t>(key) << 32 | static_cast<uint32_t>(~unit);
}
inline constexpr uint64_t kCutNone = ~uint64_t{0};  // above every rank

// Masses are at most 1024 heads' probabilities; negative scores hold none.
__device__ inline uint64_t MassOf(float score) {
  return __float2ull_rn(fmaxf(score, 0.0f) * 4398046511104.0f);
}

// The keys of ids [0, count), in shared memory as far as they fit.
class KeyRow final {
 public:
  enum class Source {
    kScores,  // floats
    kTurns,   // u32, the least is best
    kKeys,    // u32
  };

  // The first `cached` keys lie in ChooseMemory() from word `cache_at` on.
  __device__ KeyRow(Source source, const void* data, int cache_at, int cached)
      : source_(source), data_(data), cache_at_(cache_at), cached_(cached) {}

  __device__ uint32_t Fetch(int id) const {
    if (source_ == Source::kScores) return OrderKey(static_cast<const float*>(data_)[id]);
    const uint32_t value = static_cast<const uint32_t*>(data_)[id];
    return source_ == Source::kTurns ? ~value : value;
  }
  __device__ uint32_t Key(int id) const {
    return id < cached_ ? ChooseMemory()[cache_at_ + id] : Fetch(id);
  }

  // Calls f(key, id) for all ids of [first, end), full warps at a time; on its way key 0 stands for
  // ids out of range, of which f is told by `valid`: f(key, id, valid).
  template <typename F>
  __device__ void ForEach(int first, int end, F&& f) const {
    Walk<4>(
        first, end, [&](int id) { return Key(id); }, f);
  }
  // The same, and fills the shared memory.
  template <typename F>
  __device__ void Load(int end, F&& f) const {
    const auto fetch = [&](int id) {
      const uint32_t key = Fetch(id);
      if (id < cached_) ChooseMemory()[cache_at_ + id] = key;
      return key;
    };
    Walk<8>(0, end, fetch, f);
  }

 private:
  // kTogether: loads of a thread in flight.
  template <int kTogether, typename Get, typename F>
  __device__ void Walk(int first, int end, Get&& get, F&& f) const {
    constexpr int kStep = 32 * kTogether;
    for (int base = first / 32 * 32 + WarpId() * kStep; base < end; base += kStep * BlockWarps()) {
      uint32_t keys[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const int id = base + i * 32 + LaneId();
        keys[i] = id >= first && id < end ? get(id) : 0;
      }
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const int id = base + i * 32 + LaneId();
        f(keys[i], id, id >= first && id < end);
      }
    }
  }

  Source source_;
  const void* data_;
  int cache_at_, cached_;
};

// Ids that compete, and the extremes of their keys.
struct CutDomain final {
  int first = 0, end = 0;
  uint32_t key_min = 0, key_max = 0;

  __device__ int count() const { return end - first; }
};

// The unit at which a walk from the best on reaches what it wants; `before`: units that are better.
struct CutReach final {
  uint64_t rank;
  uint32_t before;
};

// kThreads: of the block. kMasses: it can walk down masses.
template <int kThreads, bool kMasses>
class CutterOf final {
 public:
  static constexpr int kBinBits = kThreads < 512 ? 10 : 11;
  static constexpr int kBins = 1 << kBinBits;
  static constexpr int kListMax = 256;
  static constexpr int kThreadBins = kBins / kThreads;  // neighbours, of one thread
  static_assert(kThreadBins % 2 == 0 && kThreads % kListMax == 0);

  // Clears the histograms; the caller's next barrier makes that known.
  __device__ CutterOf() {
#pragma unroll
    for (int bin = static_cast<int>(threadIdx.x); bin < kBins; bin += kThreads) {
      ClearBin<kMasses>(bin);
    }
    if (threadIdx.x == 0) Memory().listed = 0;
  }

  __device__ ChooseBlock& block() { return block_; }

  // The steps of a search by bins of the caller's: Count() for each unit, a barrier, FindBin();
  // List() for at most kListMax units, a barrier, listed() and Rank().
  struct Bin final {
    uint32_t bin, before, inside;  // units of better bins; of this one
  };
  __device__ void Count(uint32_t bin) { atomicAdd(&Memory().counts[bin], 1u); }
  __device__ Bin FindBin(uint32_t count) {
    FindBin<false>(count, 0);
    return {static_cast<uint32_t>(Memory().pick_bin), Memory().pick_before, Memory().pick_count};
  }
  __device__ void List(uint64_t rank) { Memory().ranks[atomicAdd(&Memory().listed, 1)] = rank; }
  __device__ int listed() const { return Memory().listed; }
  __device__ uint64_t Rank(int i) const { return Memory().ranks[i]; }

  // The cut below the `count` best: what ranks at or above it is taken.
  __device__ uint64_t CutOfCount(const KeyRow& row, const CutDomain& domain, int count) {
    if (count <= 0) return kCutNone;
    if (count >= domain.count()) return 0;
    return Find<false>(row, domain, static_cast<uint32_t>(count), 0).rank;
  }
  // Where the mass reaches `wanted`: more than 0, and no more than all of it.
  __device__ CutReach ReachMass(const KeyRow& row, const CutDomain& domain, uint64_t wanted) {
    return Find<true>(row, domain, 0, wanted);
  }

 private:
  struct Shared final {
    alignas(16) uint32_t counts[kBins];
    uint32_t mass_low[kMasses ? kBins : 1];  // masses in two halves
    uint32_t mass_high[kMasses ? kBins : 1];
    uint64_t ranks[kListMax];
    uint64_t masses[kMasses ? kListMax : 1];
    uint64_t pick_mass_before;
    uint32_t pick_before, pick_count;
    int pick_bin;
    int listed;
    CutReach found;
  };
  __device__ static Shared& Memory() {
    __shared__ Shared shared;
    return shared;
  }

  // Distances from the best possible, of keys, then of the ids of equal keys.
  struct Range final {
    bool ties;
    uint32_t tied_key;
    uint32_t best, span;

    __device__ bool Has(uint32_t key, int id, uint32_t& distance) const {
      distance = ties ? static_cast<uint32_t>(id) - best : best - key;
      return distance <= span && (!ties || key == tied_key);
    }
    __device__ int Shift() const { return max(0, 32 - __clz(static_cast<int>(span)) - kBinBits); }
    __device__ void Narrow(int bin, int shift) {
      const uint32_t step = static_cast<uint32_t>(bin) << shift;
      best = ties ? best + step : best - step;
      span = min(span - step, (1u << shift) - 1);
    }
    // No rank of the range is below it, none of a worse range at or above.
    __device__ uint64_t Lowest() const {
      return ties ? RankOf(tied_key, static_cast<int>(best + span))
                  : static_cast<uint64_t>(best - span) << 32;
    }
  };

  template <bool kMass>
  __device__ void ClearBin(int bin) {
    Memory().counts[bin] = 0;
    if constexpr (kMass) {
      Memory().mass_low[bin] = 0;
      Memory().mass_high[bin] = 0;
    }
  }

  template <bool kMass>
  __device__ CutReach Find(const KeyRow& row, const CutDomain& domain, uint32_t count,
                           uint64_t wanted) {
    const auto tie = [&](uint32_t key) {
      return Range{true, key, static_cast<uint32_t>(domain.first),
                   static_cast<uint32_t>(domain.count() - 1)};
    };
    Range range{false, 0, domain.key_max, domain.key_max - domain.key_min};
    if (range.span == 0) range = tie(range.best);
    uint32_t before = 0;
    uint64_t mass_before = 0;
    for (;;) {
      const int shift = range.Shift();
      row.ForEach(domain.first, domain.end, [&](uint32_t key, int id, bool valid) {
        uint32_t distance;
        if (range.Has(key, id, distance) && valid) Add<kMass>(distance >> shift, key);
      });
      __syncthreads();
      FindBin<kMass>(count - before, wanted - mass_before);
      const uint32_t inside = Memory().pick_count;
      if (inside == 0) return {0, before};  // masses beyond all bounds: never reached
      before += Memory().pick_before;
      mass_before += Memory().pick_mass_before;
      range.Narrow(Memory().pick_bin, shift);
      if (!kMass && inside == count - before) return {range.Lowest(), before};
      if (inside <= kListMax) break;
      if (!range.ties && range.span == 0) range = tie(range.best);
    }
    Collect<kMass>(row, domain, range);
    return FindInList<kMass>(before, count, mass_before, wanted);
  }

  template <bool kMass>
  __device__ void Add(uint32_t bin, uint32_t key) {
    Count(bin);
    if constexpr (kMass) {
      const uint64_t mass = MassOf(ScoreOfKey(key));
      const auto low = static_cast<uint32_t>(mass);
      auto high = static_cast<uint32_t>(mass >> 32);
      if (low != 0 && atomicAdd(&Memory().mass_low[bin], low) + low < low) ++high;
      if (high != 0) atomicAdd(&Memory().mass_high[bin], high);
    }
  }

  // Picks the bin in which `count` units (kMass: the mass `wanted`) are reached; clears all bins.
  template <bool kMass>
  __device__ void FindBin(uint32_t count, uint64_t wanted) {
    const int first = static_cast<int>(threadIdx.x) * kThreadBins;
    if (threadIdx.x == 0) {
      Memory().pick_count = 0;
      Memory().listed = 0;
    }
    uint32_t counts[kThreadBins], count_here = 0;
    uint64_t masses[kThreadBins] = {}, mass_here = 0;
#pragma unroll
    for (int i = 0; i < kThreadBins; ++i) {
      counts[i] = Memory().counts[first + i];
      if constexpr (kMass) {
        masses[i] = (static_cast<uint64_t>(Memory().mass_high[first + i]) << 32) +
                    Memory().mass_low[first + i];
        mass_here += masses[i];
      }
      count_here += counts[i];
      ClearBin<kMass>(first + i);
    }
    const uint32_t inclusive = WarpInclusive(count_here);
    uint32_t before = block_.PrefixOfWarps(inclusive).before + inclusive - count_here;
    uint64_t mass_before = 0;
    if constexpr (kMass) {
      const uint64_t mass_inclusive = WarpInclusive(mass_here);
      mass_before = block_.PrefixOfWarps(mass_inclusive).before + mass_inclusive - mass_here;
    }
    const auto reaches = [&](uint32_t units, uint64_t mass) {
      return kMass ? mass_before < wanted && wanted <= mass_before + mass
                   : before < count && count <= before + units;
    };
    if (reaches(count_here, mass_here)) {
#pragma unroll
      for (int i = 0; i < kThreadBins; ++i) {
        if (reaches(counts[i], masses[i])) {
          Memory().pick_mass_before = mass_before;
          Memory().pick_before = before;
          Memory().pick_count = counts[i];
          Memory().pick_bin = first + i;
        }
        before += counts[i];
        mass_before += masses[i];
      }
    }
    __syncthreads();
  }

  template <bool kMass>
  __device__ void Collect(const KeyRow& row, const CutDomain& domain, const Range& range) {
    row.ForEach(domain.first, domain.end, [&](uint32_t key, int id, bool valid) {
      uint32_t distance;
      if (!range.Has(key, id, distance) || !valid) return;
      const int at = atomicAdd(&Memory().listed, 1);
      Memory().ranks[at] = RankOf(key, id);
      if constexpr (kMass) Memory().masses[at] = MassOf(ScoreOfKey(key));
    });
    __syncthreads();
  }

  // Compares each unit of the list with all of them, by a few threads each.
  template <bool kMass>
  __device__ CutReach FindInList(uint32_t before, uint32_t count, uint64_t mass_before,
                                 uint64_t wanted) {
    constexpr int kHelpers = kThreads / kListMax;
    const int listed = Memory().listed;
    const int mine = static_cast<int>(threadIdx.x) / kHelpers;
    const int helper = static_cast<int>(threadIdx.x) % kHelpers;
    const uint64_t rank = mine < listed ? Memory().ranks[mine] : 0;
    uint32_t better = 0;
    uint64_t mass = 0;
    for (int i = mine < listed ? helper : listed; i < listed; i += kHelpers) {
      if (Memory().ranks[i] <= rank) continue;
      ++better;
      if constexpr (kMass) mass += Memory().masses[i];
    }
#pragma unroll
    for (int step = 1; step < kHelpers; step *= 2) {
      better += __shfl_xor_sync(kAllLanes, better, step);
      if constexpr (kMass) mass += __shfl_xor_sync(kAllLanes, mass, step);
    }
    better += before;
    mass += mass_before;
    if (mine < listed && helper == 0) {
      const bool here =
          kMass ? mass < wanted && wanted <= mass + Memory().masses[mine] : better + 1 == count;
      if (here) Memory().found = {rank, better};
    }
    __syncthreads();
    return Memory().found;
  }

  ChooseBlock block_;
};
using Cutter = CutterOf<kChooseThreads, true>;

}  // namespace lacuna::kernels::cuda
