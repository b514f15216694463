// Finds, without a sort, the last token that a top_k or top_p keeps in a row spread over a team.
//
// A histogram over steps of 1/48 nat below the greatest finds the bin of the cutoff, further ones
// over key ranges narrow it while it holds too many tokens, and the rest is ranked by comparing all
// pairs.
#pragma once

#include <cstdint>

#include "kernels/cuda/sample_order.cuh"
#include "kernels/cuda/sample_team.cuh"

namespace lacuna::kernels::cuda {

constexpr int kCandidatesMax = 512;
static_assert(kBins == 2 * kSampleThreads);

struct Candidate final {
  uint64_t key;
  uint64_t mass;
};

struct Pick final {
  uint64_t mass_before;
  uint32_t count_before;
  uint32_t count;
  int bin;
};

struct SelectScratch final {
  uint64_t loaded[kSampleWarps];  // barriers
  TeamScratch team;
  Pick pick;
  uint64_t found;
  int cursor;
  uint32_t count[kBins];  // this block's histogram; the mass in two halves
  uint32_t mass_low[kBins];
  uint32_t mass_high[kBins];
  uint32_t team_count[kBins];  // the team's
  uint64_t team_mass[kBins];
  Candidate list[kCandidatesMax];
};

template <bool kCluster>
class Selector final {
 public:
  __device__ Selector(const Team<kCluster>& team, SelectScratch& scratch, const Slice& slice,
                      const Domain& domain, int& turn)
      : team_(team), s_(scratch), slice_(slice), domain_(domain), turn_(turn) {}

  // The first token at which `rank` tokens (if > 0), else at least `mass`, are reached. Keeps all
  // when the domain has fewer.
  __device__ Cutoff Select(uint32_t rank, uint64_t mass) {
    BuildCoarse();
    Pick pick;
    if (!Find(rank, mass, pick)) return domain_.limit;
    bin_ = pick.bin;
    if (pick.count > kCandidatesMax) {
      BoundBin();
      while (pick.count > kCandidatesMax) {
        const int bits = 64 - __clzll(static_cast<long long>(high_ - low_));
        shift_ = max(0, bits - 10);
        BuildFine();
        Pick inner;
        Find(rank > 0 ? rank - pick.count_before : 0, mass - pick.mass_before, inner);
        pick.count_before += inner.count_before;
        pick.mass_before += inner.mass_before;
        pick.count = inner.count;
        pick.bin = inner.bin;
        low_ += static_cast<uint64_t>(inner.bin) << shift_;
        high_ = min(high_, low_ + ((uint64_t{1} << shift_) - 1));
      }
    }
    Collect(pick);
    Rank(pick, rank, mass);
    return {ValueOf(s_.found), TokenOf(s_.found)};
  }

 private:
  __device__ bool InBin(float value, int i) const {
    return domain_.Has(value, slice_.first + i) && domain_.Bin(value) == bin_;
  }
  __device__ bool InRange(float value, int i, uint64_t& key) const {
    if (!InBin(value, i)) return false;
    key = KeyOf(value, slice_.first + i);
    return key >= low_ && key <= high_;
  }
  __device__ void Clear() {
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.x); i < kBins; i += kSampleThreads) {
      s_.count[i] = 0;
      s_.mass_low[i] = 0;
      s_.mass_high[i] = 0;
    }
    __syncthreads();
  }
  __device__ void Add(int bin, uint32_t count, uint64_t mass) {
    atomicAdd(&s_.count[bin], count);
    const auto low = static_cast<uint32_t>(mass);
    if (mass == 0) return;
    const uint32_t before = atomicAdd(&s_.mass_low[bin], low);
    const uint32_t high = static_cast<uint32_t>(mass >> 32) + (before + low < before ? 1 : 0);
    if (high != 0) atomicAdd(&s_.mass_high[bin], high);
  }

  __device__ void BuildCoarse() {
    Clear();
    uint64_t last_count = 0;  // many tokens share the last bin: not one by one
    uint64_t last_mass = 0;
    slice_.ForEach([&](float value, int i) {
      if (!domain_.Has(value, slice_.first + i)) return;
      const int bin = domain_.Bin(value);
      if (bin < kBins - 1) {
        Add(bin, 1, domain_.Mass(value));
      } else {
        ++last_count;
        last_mass += domain_.Mass(value);
      }
    });
    last_count = WarpSum(last_count);
    last_mass = WarpSum(last_mass);
    if (threadIdx.x % 32 == 0 && last_count > 0) {
      Add(kBins - 1, static_cast<uint32_t>(last_count), last_mass);
    }
    Merge();
  }
  __device__ void BuildFine() {
    Clear();
    slice_.ForEach([&](float value, int i) {
      uint64_t key;
      if (!InRange(value, i, key)) return;
      Add(static_cast<int>((key - low_) >> shift_), 1, domain_.Mass(value));
    });
    Merge();
  }
  // The least and greatest key of the bin.
  __device__ void BoundBin() {
    uint64_t least = kLastKey;
    uint64_t greatest = 0;
    slice_.ForEach([&](float value, int i) {
      if (!InBin(value, i)) return;
      const uint64_t key = KeyOf(value, slice_.first + i);
      least = min(least, key);
      greatest = max(greatest, key);
    });
    TeamMinMax(team_, s_.team, turn_, least, greatest);
    low_ = least;
    high_ = greatest;
  }

  // Adds up the blocks' histograms: each block some bins, for all.
  __device__ void Merge() {
    team_.Barrier();
    const int share = kBins / team_.size;
    for (int i = static_cast<int>(threadIdx.x); i < share; i += kSampleThreads) {
      const int bin = team_.rank * share + i;
      uint32_t count = 0;
      uint64_t mass = 0;
      for (int r = 0; r < team_.size; ++r) {
        count += *team_.Remote(&s_.count[bin], r);
        if (!domain_.with_mass) continue;
        mass += (static_cast<uint64_t>(*team_.Remote(&s_.mass_high[bin], r)) << 32) +
                *team_.Remote(&s_.mass_low[bin], r);
      }
      for (int r = 0; r < team_.size; ++r) {
        *team_.Remote(&s_.team_count[bin], r) = count;
        *team_.Remote(&s_.team_mass[bin], r) = mass;
      }
    }
    team_.Barrier();
  }

  // The bin in which `rank` tokens (if > 0), else `wanted` mass, are reached; false if none.
  __device__ bool Find(uint32_t rank, uint64_t wanted, Pick& pick) {
    const int bin = static_cast<int>(threadIdx.x) * 2;
    const int warp = static_cast<int>(threadIdx.x) / 32;
    const uint64_t counts[2] = {s_.team_count[bin], s_.team_count[bin + 1]};
    const uint64_t masses[2] = {s_.team_mass[bin], s_.team_mass[bin + 1]};
    const uint64_t count_here = counts[0] + counts[1];
    const uint64_t mass_here = masses[0] + masses[1];
    uint64_t count = WarpPrefix(count_here);
    uint64_t mass = WarpPrefix(mass_here);
    if (threadIdx.x == 0) s_.pick.count = 0;
    if (threadIdx.x % 32 == 31) {
      s_.team.warps[0][warp] = count;
      s_.team.warps[1][warp] = mass;
    }
    __syncthreads();
    count -= count_here;
    mass -= mass_here;
    for (int i = 0; i < warp; ++i) {
      count += s_.team.warps[0][i];
      mass += s_.team.warps[1][i];
    }
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const bool here = rank > 0 ? count < rank && rank <= count + counts[j]
                                 : mass < wanted && wanted <= mass + masses[j];
      if (here) {
        s_.pick = {mass, static_cast<uint32_t>(count), static_cast<uint32_t>(counts[j]), bin + j};
      }
      count += counts[j];
      mass += masses[j];
    }
    __syncthreads();
    pick = s_.pick;
    return pick.count > 0;
  }

  // The tokens of the picked bin to the lists of all blocks.
  __device__ void Collect(const Pick& pick) {
    if (threadIdx.x == 0) {
      int before = 0;
      for (int r = 0; r < team_.rank; ++r) {
        before += static_cast<int>(*team_.Remote(&s_.count[pick.bin], r));
      }
      s_.cursor = before;
    }
    __syncthreads();
    slice_.ForEach([&](float value, int i) {
      Candidate candidate;
      if (!InRange(value, i, candidate.key)) return;
      candidate.mass = domain_.Mass(value);
      const int at = atomicAdd(&s_.cursor, 1);
      for (int r = 0; r < team_.size; ++r) *team_.Remote(&s_.list[at], r) = candidate;
    });
    team_.Barrier();
  }

  // Each block ranks its share of the list; the one that holds the cutoff tells all.
  __device__ void Rank(const Pick& pick, uint32_t rank, uint64_t wanted) {
    constexpr int kHelpers = 4;  // threads for one token
    const int count = static_cast<int>(pick.count);
    const int begin = count * team_.rank / team_.size;
    const int end = count * (team_.rank + 1) / team_.size;
    const int helper = static_cast<int>(threadIdx.x) % kHelpers;
    for (int base = begin; base < end; base += kSampleThreads / kHelpers) {
      const int i = base + static_cast<int>(threadIdx.x) / kHelpers;
      const Candidate mine = i < end ? s_.list[i] : Candidate{0, 0};
      uint32_t tokens = 0;
      uint64_t mass = 0;
      for (int j = helper; j < count; j += kHelpers) {
        const Candidate other = s_.list[j];
        if (other.key < mine.key) {
          ++tokens;
          mass += other.mass;
        }
      }
#pragma unroll
      for (int step = 1; step < kHelpers; step *= 2) {
        tokens += __shfl_xor_sync(~0u, tokens, step);
        mass += __shfl_xor_sync(~0u, mass, step);
      }
      tokens += pick.count_before;
      mass += pick.mass_before;
      const bool here = rank > 0 ? tokens + 1 == rank : mass < wanted && wanted <= mass + mine.mass;
      if (i < end && here && helper == 0) {
        for (int r = 0; r < team_.size; ++r) {
          *team_.Remote(&s_.found, r) = mine.key;
        }
      }
    }
    team_.Barrier();
  }

  const Team<kCluster>& team_;
  SelectScratch& s_;
  const Slice& slice_;
  const Domain domain_;
  int& turn_;
  int bin_ = 0;
  int shift_ = 0;
  uint64_t low_ = 0;
  uint64_t high_ = kLastKey;
};

}  // namespace lacuna::kernels::cuda
