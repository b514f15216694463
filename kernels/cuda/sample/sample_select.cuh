// Finds, without a sort, the last token that a top_k or top_p keeps in a row spread over a team.
//
// The chunks' greatest values bound the cutoff first. A histogram of the scaled values finds the
// bins that it lies in: of counts for a top_k; for a top_p of masses in units of 2^-30 of all,
// whose rounding is accounted for. The tokens of these bins go to a list that all blocks hold and
// rank, comparing all pairs; the exact mass of the tokens before them is summed on the way. Should
// the list be too short for them, histograms over ranges of keys narrow the bins first.
#pragma once

#include <cstdint>

#include "kernels/cuda/sample/sample_gather.cuh"

namespace lacuna::kernels::cuda {

constexpr int kTotalBits = 30;  // of all mass, in a histogram of scaled values
constexpr int kSlack = 8192;    // what exponentials and totals are rounded to

// Scaled values to `count` bins: those of the likeliest token to bin 0, behind the last all others.
class Bins final {
 public:
  __device__ Bins(float floor, int count) : last_(count - 1) {
    constexpr float kNatsMax = 21.3f;
    const float nats = fminf(fmaxf(-floor, 1e-3f), kNatsMax);
    per_nat_ = static_cast<float>(last_) / nats;
  }
  __device__ int last() const { return last_; }
  // Floats from 2^23 on are integers.
  __device__ uint32_t Of(float scaled) const {
    const float last = kBase + static_cast<float>(last_);
    return __float_as_uint(fminf(fmaf(scaled, -per_nat_, kBase), last)) - kBaseBits;
  }
  // The least value of the bins up to this one, which is not the last; by whole warps.
  __device__ float Least(uint32_t bin) const {
    const float about = (static_cast<float>(bin) + 0.5f) / -per_nat_;
    const float value = FromAscending(Ascending(about) + static_cast<uint32_t>(LaneIndex()) - 16u);
    const uint32_t inside = __ballot_sync(~0u, Of(value) <= bin);
    return __shfl_sync(~0u, value, __ffs(static_cast<int>(inside)) - 1);
  }

 private:
  static constexpr float kBase = 8388608.0f;
  static constexpr uint32_t kBaseBits = 0x4b000000u;
  int last_;
  float per_nat_;
};

// Tokens that lie together in the order: those from `least` on, scaled, which are below `above`
// (not less than `least`) and have a key in [low, high].
struct Range final {
  float above;
  float least;
  uint64_t low = 0;
  uint64_t high = kLastKey;

  // Of these bins, by whole warps.
  __device__ void Take(const Bins& bins, uint32_t first, uint32_t last) {
    if (first > 0) above = bins.Least(first - 1);
    if (static_cast<int>(last) < bins.last()) least = fmaxf(least, bins.Least(last));
  }
};

// What a selection looks for.
struct Goal final {
  uint32_t rank = 0;    // the so-manieth token; 0: by mass
  uint64_t wanted = 0;  // the first token with which this mass is reached
  uint64_t total = 0;   // of the domain

  // Masses times 2^this are units of 2^-kTotalBits of all.
  __device__ float Shift() const {
    return static_cast<float>(kTotalBits) - __log2f(static_cast<float>(total) / kMassUnits);
  }
  // The mass wanted in these units.
  __device__ int WantedPart() const {
    return static_cast<int>(__fdividef(static_cast<float>(wanted), static_cast<float>(total)) *
                            (1 << kTotalBits));
  }
  // Scaled: the tokens of the row below this have together less than what is left out.
  __device__ float FloorOfMass(int vocab) const {
    const float spare = static_cast<float>(total - wanted) / kMassUnits;
    return fminf(__logf(spare / static_cast<float>(vocab)) - 0.01f, 0.0f);
  }
};

// The mass that a top_p keeps of `mass`.
__device__ inline uint64_t WantedOf(uint64_t mass, float top_p) {
  const double part = ceil(static_cast<double>(top_p) * static_cast<double>(mass));
  return min(max(static_cast<uint64_t>(part), uint64_t{1}), mass);
}

__device__ inline void ClearCounts() {
  SelectScratch& s = SharedSelect();
  s.count[threadIdx.x] = 0;
  if (threadIdx.x == 0) {
    s.total = 0;
    s.low = kBins;
    s.high = kBins;
  }
  __syncthreads();
}
// The sum over this thread's and the lower bins; a barrier has to follow before the next one.
__device__ inline uint32_t BlockPrefix(uint32_t value) {
  uint32_t(&sums)[kSampleWarps] = SharedSelect().sums;
  const uint32_t prefix = WarpPrefix(value);
  if (LaneIndex() == 31) sums[WarpIndex()] = prefix;
  __syncthreads();
  return prefix + __reduce_add_sync(~0u, LaneIndex() < WarpIndex() ? sums[LaneIndex()] : 0u);
}
// The bin, each thread with the count of its own, in which `rank` is reached; kBins: none.
__device__ inline void PickRank(uint32_t count, uint32_t rank) {
  SelectScratch& s = SharedSelect();
  const uint32_t before = BlockPrefix(count) - count;
  if (before < rank && rank <= before + count) {
    s.low = threadIdx.x;
    s.before = before;
    s.through = before + count;
  }
  __syncthreads();
}
// The range of the tokens among which a mass is reached, each thread with the masses of its own
// bins in units of Goal::Shift; false when they are too many for a list. The masses of the bins are
// too small: by less than one for each of the `tokens`, and by what exponentials and the total are
// rounded to.
template <int kEach>
__device__ __forceinline__ bool PickMassBins(const Goal& goal, const Bins& bins,
                                             const uint32_t (&of_bins)[kEach], uint32_t tokens,
                                             Range& range) {
  SelectScratch& s = SharedSelect();
  const int wanted = goal.WantedPart();
  const int missing = static_cast<int>(tokens) + kSlack;
  uint32_t mine = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) mine += of_bins[i];
  int before = static_cast<int>(BlockPrefix(mine) - mine);
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const auto mass = static_cast<int>(of_bins[i]);
    const int through = before + mass;
    const int bin = static_cast<int>(threadIdx.x) * kEach + i;
    const bool last = bin == bins.last();
    if (bin == 0 ? wanted <= through + missing
                 : before + missing < wanted && (wanted <= through + missing || last)) {
      s.low = static_cast<uint32_t>(bin);
      s.before = static_cast<uint32_t>(before);
    }
    if (before - kSlack < wanted && (last || wanted <= through - kSlack)) {
      s.high = static_cast<uint32_t>(bin);
      s.through = static_cast<uint32_t>(through);
    }
    before = through;
  }
  __syncthreads();
  range.Take(bins, s.low, s.high);
  const float least = fmaxf(Exp2(fmaf(range.least, kLog2E, goal.Shift())), 1.0f);
  return static_cast<float>(s.through - s.before) < least * kListMax;
}
// Calls f(index in the list, tokens before it in the list, their mass), by one thread each.
template <typename F>
__device__ __forceinline__ void Compare(int count, const F& f) {
  constexpr int kHelpers = 4;  // threads for one token
  const Candidate* const list = SharedSelect().list;
  const int helper = static_cast<int>(threadIdx.x) % kHelpers;
#pragma unroll 1
  for (int base = 0; base + WarpIndex() * (32 / kHelpers) < count;
       base += kSampleThreads / kHelpers) {
    const int i = base + static_cast<int>(threadIdx.x) / kHelpers;
    const uint64_t key = i < count ? list[i].key : 0;
    uint32_t tokens = 0;
    uint64_t mass = 0;
#pragma unroll 4
    for (int j = helper; j < count; j += kHelpers) {
      const Candidate other = list[j];
      tokens += other.key < key ? 1 : 0;
      mass += other.key < key ? other.mass : 0;
    }
#pragma unroll
    for (int step = 1; step < kHelpers; step *= 2) {
      tokens += __shfl_xor_sync(~0u, tokens, step);
      mass += __shfl_xor_sync(~0u, mass, step);
    }
    if (helper == 0 && i < count) f(i, tokens, mass);
  }
}

// The key of the listed token that a selection ends with; before the list are so many tokens of so
// much mass. By mass the list is known to hold it, so masses that another rounding puts outside end
// with its first or last token.
__device__ __forceinline__ uint64_t Ranked(const Goal& goal, int count, uint32_t tokens_before,
                                           uint64_t mass_before) {
  SelectScratch& s = SharedSelect();
  if (threadIdx.x == 0) s.found = kLastKey;
  __syncthreads();
  Compare(count, [&](int i, uint32_t tokens, uint64_t mass) {
    mass += mass_before;
    const bool begins = tokens == 0 || mass < goal.wanted;
    const bool ends = static_cast<int>(tokens) + 1 == count || goal.wanted <= mass + s.list[i].mass;
    const bool here = goal.rank > 0 ? tokens_before + tokens + 1 == goal.rank : begins && ends;
    if (here) s.found = s.list[i].key;
  });
  __syncthreads();
  return s.found;
}

// Its functions that are not inlined work on a copy in registers: as it is, it lies in local
// memory, which for all threads is as much as the logits themselves, and shared memory leaves
// hardly any L1 for it. They find the block's part of the row in shared memory.
template <bool kCluster>
class Selector final {
 public:
  __device__ Selector(const Team<kCluster>& team, const Exchange<kCluster>& exchange,
                      const Domain& domain)
      : team_(team), exchange_(exchange), domain_(domain) {}

  // The key of the last token that is kept; kLastKey when the domain has fewer than `rank`. Those
  // before the list are known to be kept.
  __device__ __attribute__((noinline)) uint64_t Select(const Goal& goal) {
    Selector here = *this;
    const uint64_t last = here.Find(goal);
    TakeOver(here);
    return last;
  }

  // All of the domain is kept.
  __device__ __attribute__((noinline)) void KeepAll() {
    Selector here = *this;
    Gather(here.domain_);
    here.Collect({domain_.floor, domain_.floor});
    TakeOver(here);
  }

  // Whether the whole domain is listed; then among the listed tokens up to `last`:
  __device__ bool ListIsAll() const { return static_cast<uint32_t>(list_count_) == domain_count_; }
  __device__ uint64_t ListMass(uint64_t last) {
    const Candidate* const list = SharedSelect().list;
    const int i = static_cast<int>(threadIdx.x);
    const uint64_t mine = i < list_count_ && list[i].key <= last ? list[i].mass : 0;
    const uint64_t sum = BlockSum(WarpSum(mine));
    __syncthreads();
    return sum;
  }
  __device__ uint64_t SelectListed(uint64_t wanted) {
    goal_ = {0, wanted, 0};
    return RankList();
  }

  // Calls f(candidate, tokens before it) for each listed token, by one thread.
  template <typename F>
  __device__ __forceinline__ void ForEachListed(const F& f) {
    Compare(list_count_,
            [&](int i, uint32_t tokens, uint64_t /*mass*/) { f(SharedSelect().list[i], tokens); });
  }
  // The tokens up to `last` to the list.
  __device__ __attribute__((noinline)) void ListUpTo(uint64_t last) {
    Selector here = *this;
    here.Collect({INFINITY, ScaledOf(last), 0, last});
    here.before_count_ = 0;
    TakeOver(here);
  }

  __device__ const Share& above() const { return above_; }  // kept for sure, not listed
  __device__ int list_count() const { return list_count_; }
  __device__ float floor() const { return domain_.floor; }
  // With its turn: whoever posts next goes on from here.
  __device__ const Exchange<kCluster>& exchange() const { return exchange_; }

 private:
  __device__ __forceinline__ uint64_t Find(const Goal& goal) {
    goal_ = goal;
    BoundDomain();
    const Bins bins(domain_.floor, kBins);
    BuildBins(bins, goal_.rank > 0 ? 0.0f : goal_.Shift());
    Range range{INFINITY, domain_.floor};
    bool few = domain_count_ <= kListMax;
    if (!few) {
      few = goal_.rank > 0 ? PickRankBins(bins, range)
                           : PickMassBins<1>(goal_, bins, {SharedSelect().team_count[threadIdx.x]},
                                             domain_count_, range);
    }
    while (!few || !Collect(range)) {
      Narrow(range);
      few = true;
    }
    return RankList();
  }
  // What changes, from the copy in registers that a selection works on.
  __device__ void TakeOver(const Selector& other) {
    exchange_ = other.exchange_;
    domain_ = other.domain_;
    goal_ = other.goal_;
    above_ = other.above_;
    before_count_ = other.before_count_;
    domain_count_ = other.domain_count_;
    list_count_ = other.list_count_;
  }
  // Raises the domain's floor as far as can be told before it is looked at.
  __device__ void BoundDomain() {
    const RowPart& part = SharedSelect().part;
    if (goal_.rank > 0) {
      BoundByRank(part, goal_.rank, domain_);
    } else {
      domain_.floor = fmaxf(domain_.floor, goal_.FloorOfMass(part.vocab));
    }
  }
  // The scaled value of the token with this key.
  __device__ float ScaledOf(uint64_t key) const {
    return domain_.raw ? domain_.Scaled(ValueOf(key)) : ValueOf(key);
  }

  // The range of the tokens that the list has to hold; false when they are too many for it.
  __device__ bool PickRankBins(const Bins& bins, Range& range) {
    const SelectScratch& s = SharedSelect();
    PickRank(s.team_count[threadIdx.x], goal_.rank);
    if (s.low == kBins) {
      range.above = domain_.floor;  // none: all are kept
      return true;
    }
    before_count_ = s.before;
    range.Take(bins, s.low, s.low);
    return s.through - s.before <= kListMax;
  }
  // The team's histogram of scaled values: of counts, or of masses times 2^shift (not 0).
  __device__ __forceinline__ void BuildBins(const Bins bins, float shift) {
    SelectScratch& s = SharedSelect();
    const RowPart part = SharedSelect().part;
    const Domain domain = domain_;
    ClearCounts();
    uint32_t tokens = 0;
    uint32_t last = 0;  // many may share the last bin: not one by one
    Gather(domain);
    ForGathered(
        part,
        [&](float value, int /*token*/) {
          const float scaled = domain.Scaled(value);
          if (!(scaled >= domain.floor)) return;
          const uint32_t bin = bins.Of(scaled);
          const auto mass = static_cast<uint32_t>(Exp2(fmaf(scaled, kLog2E, shift)));
          const uint32_t add = shift != 0.0f ? mass : 1;
          ++tokens;
          if (bin == kBins - 1) {
            last += add;
          } else {
            atomicAdd(&s.count[bin], add);
          }
        },
        [](int /*chunk*/) {});
    tokens = __reduce_add_sync(~0u, tokens);
    last = __reduce_add_sync(~0u, last);
    if (LaneIndex() == 0 && tokens > 0) {
      atomicAdd(&s.total, tokens);
      atomicAdd(&s.count[kBins - 1], last);
    }
    __syncthreads();
    MergeBins();
  }
  // Each block adds up its share of the bins, for all.
  __device__ void MergeBins() {
    SelectScratch& s = SharedSelect();
    const int bin = static_cast<int>(threadIdx.x);
    const int share = kBins / team_.size;
    const int to = bin / share;
    *team_.Remote(&s.mass_low[team_.rank * share + bin % share], to) = s.count[bin];
    exchange_.Post(s.total, 0);
    team_.Barrier();
    uint32_t sum = 0;
#pragma unroll 4
    for (int r = 0; r < team_.size; ++r) sum += s.mass_low[r * share + bin % share];
    *team_.Remote(&s.team_count[team_.rank * share + bin % share], to) = sum;
    domain_count_ = static_cast<uint32_t>(exchange_.Of(0).total);
    team_.Barrier();
  }

  // The tokens of the range to the list of all blocks, and the masses before it to `above`. False,
  // and no list, when they are too many.
  __device__ __forceinline__ bool Collect(const Range& wanted) {
    SelectScratch& s = SharedSelect();
    const RowPart part = SharedSelect().part;
    const Domain domain = domain_;
    const Range range = wanted;
    if (threadIdx.x == 0) s.cursor = 0;
#pragma unroll 1
    for (int chunk = part.begin + static_cast<int>(threadIdx.x); chunk < part.end;
         chunk += kSampleThreads) {
      part.Mass(chunk) = 0;
    }
    __syncthreads();
    uint64_t above = 0;
    uint64_t of_chunk = 0;
    ForGathered(
        part,
        [&](float value, int token) {
          const float scaled = domain.Scaled(value);
          if (!(scaled >= range.least)) return;
          const uint64_t mass = MassUnits(MassOf(scaled));
          const uint64_t key = domain.Key(value, scaled, token);
          if (scaled >= range.above || key < range.low) {
            of_chunk += mass;
          } else if (key <= range.high) {
            const int at = atomicAdd(&s.cursor, 1);
            if (at < kListMax) s.mine[at] = {key, mass};
          }
        },
        [&](int chunk) {
          const uint64_t mass = WarpSum(of_chunk);
          if (LaneIndex() == 0) part.Mass(chunk) = mass;
          above += mass;
          of_chunk = 0;
        });
    const uint64_t of_block = BlockSum(above);
    exchange_.Post(of_block, static_cast<uint64_t>(s.cursor));
    team_.Barrier();
    above_ = exchange_.Of(0);
    const Share tokens = exchange_.Of(1);
    list_count_ = tokens.total <= kListMax ? static_cast<int>(tokens.total) : 0;
    if (tokens.total > kListMax) return false;
    const int copies = static_cast<int>(tokens.mine) * team_.size;
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < copies; i += kSampleThreads) {
      const int at = i / team_.size;
      *team_.Remote(&s.list[static_cast<int>(tokens.before) + at], i % team_.size) = s.mine[at];
    }
    team_.Barrier();
    return true;
  }

  __device__ __forceinline__ uint64_t RankList() const {
    return Ranked(goal_, list_count_, before_count_, above_.total);
  }

  // ---- The list is too short: histograms over keys. ----

  // Narrows the range to what the list can hold.
  __device__ __forceinline__ void Narrow(Range& range) {
    SelectScratch& s = SharedSelect();
    if (domain_.raw) {  // keys are not of scaled values
      range = {INFINITY, domain_.floor};
    } else {
      const bool open = range.above > 0.0f;  // from the greatest value on
      range.low = open ? 0 : KeyOf(range.above, 0x7fffffff) + 1;
      range.high = KeyOf(range.least, 0x7fffffff);
    }
    uint32_t count;
    __syncthreads();  // all have read the bins
    do {
      const int bits = 64 - __clzll(static_cast<long long>(range.high - range.low));
      const int shift = max(0, bits - kKeyBits);
      BuildKeys(range, shift);
      PickKeys();
      range.low += static_cast<uint64_t>(s.low) << shift;
      range.high = min(range.high, range.low + ((uint64_t{1} << shift) - 1));
      before_count_ += s.before;
      count = s.through - s.before;
      __syncthreads();
    } while (count > kListMax);
  }
  // The team's histogram of the keys in `range`, exact, and what lies before it.
  __device__ void BuildKeys(const Range& range, int shift) {
    SelectScratch& s = SharedSelect();
    s.mass_low[threadIdx.x] = 0;
    s.mass_high[threadIdx.x] = 0;
    ClearCounts();
    uint64_t above = 0;
    uint32_t tokens = 0;
    const RowPart part = s.part;
    const Domain domain = domain_;
    ForGathered(
        part,
        [&](float value, int token) {
          const float scaled = domain.Scaled(value);
          if (!(scaled >= domain.floor)) return;
          const uint64_t key = domain.Key(value, scaled, token);
          const uint64_t mass = MassUnits(MassOf(scaled));
          if (key < range.low) {
            above += mass;
            ++tokens;
          } else if (key <= range.high) {
            AddKey(static_cast<int>((key - range.low) >> shift), mass);
          }
        },
        [](int /*chunk*/) {});
    above = WarpSum(above);
    tokens = __reduce_add_sync(~0u, tokens);
    if (LaneIndex() == 0) atomicAdd(&s.total, tokens);
    const uint64_t of_block = BlockSum(above);
    exchange_.Post(of_block, s.total);
    team_.Barrier();
    above_ = exchange_.Of(0);
    before_count_ = static_cast<uint32_t>(exchange_.Of(1).total);
    MergeKeys();
  }
  __device__ void AddKey(int bin, uint64_t mass) {
    SelectScratch& s = SharedSelect();
    atomicAdd(&s.count[bin], 1u);
    const auto low = static_cast<uint32_t>(mass);
    const uint32_t before = atomicAdd(&s.mass_low[bin], low);
    const uint32_t high = static_cast<uint32_t>(mass >> 32) + (before + low < before ? 1 : 0);
    if (high != 0) atomicAdd(&s.mass_high[bin], high);
  }
  // Each block adds up its share of the bins, for all.
  __device__ void MergeKeys() {
    SelectScratch& s = SharedSelect();
    const int share = kBins / team_.size;
    if (static_cast<int>(threadIdx.x) < share) {
      const int bin = team_.rank * share + static_cast<int>(threadIdx.x);
      uint32_t count = 0;
      uint64_t mass = 0;
#pragma unroll 1
      for (int r = 0; r < team_.size; ++r) {
        count += *team_.Remote(&s.count[bin], r);
        mass += (static_cast<uint64_t>(*team_.Remote(&s.mass_high[bin], r)) << 32) +
                *team_.Remote(&s.mass_low[bin], r);
      }
#pragma unroll 1
      for (int r = 0; r < team_.size; ++r) {
        *team_.Remote(&s.team_count[bin], r) = count;
        *team_.Remote(&s.team_mass[bin], r) = mass;
      }
    }
    team_.Barrier();
  }
  // The bin with the token looked for; as in RankList there is one, whatever the roundings.
  __device__ void PickKeys() {
    SelectScratch& s = SharedSelect();
    const uint32_t count = s.team_count[threadIdx.x];
    if (goal_.rank > 0) return PickRank(count, goal_.rank - before_count_);
    const uint32_t through = BlockPrefix(count);
    const uint32_t all =
        __reduce_add_sync(~0u, LaneIndex() < kSampleWarps ? s.sums[LaneIndex()] : 0u);
    const uint64_t mass = s.team_mass[threadIdx.x];
    const uint64_t prefix = WarpPrefix(mass);
    if (LaneIndex() == 31) s.team.warps[WarpIndex()] = prefix;
    __syncthreads();
    const uint64_t warps =
        WarpSum(LaneIndex() < WarpIndex() ? s.team.warps[LaneIndex()] : uint64_t{0});
    const uint64_t before = above_.total + warps + prefix - mass;
    const bool begins = through == count || before < goal_.wanted;
    const bool ends = through == all || goal_.wanted <= before + mass;
    if (count > 0 && begins && ends) {
      s.low = threadIdx.x;
      s.before = through - count;
      s.through = through;
    }
    __syncthreads();
  }

  static constexpr int kKeyBits = 9;
  static_assert(1 << kKeyBits == kBins);

  const Team<kCluster> team_;
  Exchange<kCluster> exchange_;
  Domain domain_;
  Goal goal_;
  Share above_ = {};
  uint32_t before_count_ = 0;  // tokens before the list
  uint32_t domain_count_ = 0;
  int list_count_ = 0;
};

}  // namespace lacuna::kernels::cuda
