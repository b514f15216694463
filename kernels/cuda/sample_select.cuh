// Finds, without a sort, the last token that a top_k or top_p keeps in a row spread over a team.
//
// A histogram of the scaled values finds the bins that the cutoff lies in: of counts for a top_k;
// for a top_p of masses in units of 2^-30 of all, whose rounding is accounted for. The tokens of
// these bins go to a list that all blocks hold and rank, comparing all pairs; the exact mass of the
// tokens before them is summed on the way. Should the list be too short for them, histograms over
// ranges of keys narrow the bins first.
#pragma once

#include <cstdint>

#include "kernels/cuda/sample_order.cuh"

namespace lacuna::kernels::cuda {

constexpr int kBins = kSampleThreads;
constexpr int kListMax = 256;
constexpr int kTotalBits = 30;  // of all mass, in a coarse histogram

struct Candidate final {
  uint64_t key;
  uint64_t mass;
};

struct SelectScratch final {
  TeamScratch team;
  Candidate list[kListMax];  // the team's
  Candidate mine[kListMax];  // this block's
  uint64_t found;
  uint64_t pick_mass;  // of the drawn chunk
  uint64_t pick_rest;  // how far into it
  int pick_chunk;
  int cursor;
  uint32_t total;    // tokens of this block in the histogram
  uint32_t low;      // the picked bin, or the first of several
  uint32_t high;     // the last of several
  uint32_t before;   // what the bins before the picked ones hold
  uint32_t through;  // and with the picked ones
  uint32_t sums[kSampleWarps];
  uint32_t count[kBins];     // this block's histogram; masses in two halves
  uint32_t mass_low[kBins];  // a coarse histogram: what the blocks send to the bins' owner
  uint32_t mass_high[kBins];
  uint32_t team_count[kBins];  // the team's
  uint64_t team_mass[kBins];
};

// Scaled values to bins: those of the likeliest token to bin 0, behind the last all others.
class Bins final {
 public:
  __device__ explicit Bins(float floor) {
    constexpr float kNatsMax = 21.3f;
    const float nats = fminf(fmaxf(-floor, 1e-3f), kNatsMax);
    per_nat_ = static_cast<float>(kBins - 1) / nats;
  }
  // Floats from 2^23 on are integers.
  __device__ uint32_t Of(float scaled) const {
    return __float_as_uint(fminf(fmaf(scaled, -per_nat_, kBase), kBase + kBins - 1)) - kBaseBits;
  }
  // No value at or above this, resp. below it, is in a bin after, resp. before the `bin`.
  __device__ float Floor(uint32_t bin) const {
    return -(static_cast<float>(bin) + 1.0f) / per_nat_;
  }
  __device__ float Ceiling(uint32_t bin) const {
    return (1.0f - static_cast<float>(bin)) / per_nat_;
  }

 private:
  static constexpr float kBase = 8388608.0f;
  static constexpr uint32_t kBaseBits = 0x4b000000u;
  float per_nat_;
};

struct BinRange final {
  Bins bins;
  uint32_t low;
  uint32_t high;
  // Negative: before the range; 0: in it.
  __device__ int Side(const Domain& /*domain*/, float /*value*/, float scaled,
                      int /*token*/) const {
    const uint32_t bin = bins.Of(scaled);
    return bin < low ? -1 : bin <= high ? 0 : 1;
  }
};
struct KeyRange final {
  uint64_t low;
  uint64_t high;
  __device__ int Side(const Domain& domain, float value, float scaled, int token) const {
    const uint64_t key = domain.Key(value, scaled, token);
    return key < low ? -1 : key <= high ? 0 : 1;
  }
};

template <bool kCluster>
class Selector final {
 public:
  __device__ Selector(const Team<kCluster>& team, SelectScratch& scratch, const RowPart& part,
                      Exchange<kCluster>& exchange, const Domain& domain)
      : team_(team), s_(scratch), part_(part), exchange_(exchange), domain_(domain) {}

  // The key of the last token kept: the `rank`-th. kLastKey when the domain has fewer.
  __device__ uint64_t SelectRank(uint32_t rank) {
    rank_ = rank;
    BoundRank();
    const Bins bins(domain_.floor);
    BuildBins(bins, [](float /*scaled*/) { return 1u; });
    if (domain_count_ <= kListMax) {
      Collect(BinRange{bins, 0, kBins - 1});
      return RankList();
    }
    const uint32_t count = s_.team_count[threadIdx.x];
    PickRank(count);
    const uint32_t bin = s_.low;
    if (bin == kBins) {
      Collect(BinRange{bins, kBins, kBins});
      return kLastKey;
    }
    before_count_ = s_.before;
    if (s_.through - s_.before > kListMax) return Narrow(bins, bin, bin);
    Collect(BinRange{bins, bin, bin});
    return RankList();
  }

  // The first token, in order, with which at least `wanted` of the domain's `total` is reached;
  // masses in units.
  __device__ uint64_t SelectMass(uint64_t wanted, uint64_t total) {
    rank_ = 0;
    wanted_ = wanted;
    const float mass = static_cast<float>(total) / kMassUnits;
    // The tokens below this have together less than what is left out.
    const float spare = static_cast<float>(total - wanted) / kMassUnits;
    const float floor = logf(spare / static_cast<float>(part_.vocab)) - 0.01f;
    domain_.floor = fmaxf(domain_.floor, fminf(floor, 0.0f));
    const Bins bins(domain_.floor);
    const float shift = static_cast<float>(kTotalBits) - log2f(mass);
    BuildBins(bins, [shift](float scaled) {
      return static_cast<uint32_t>(Exp2(fmaf(scaled, kLog2E, shift)));
    });
    if (domain_count_ <= kListMax) {
      Collect(BinRange{bins, 0, kBins - 1});
      return RankList();
    }
    PickMass(static_cast<int>(static_cast<double>(wanted) / static_cast<double>(total) *
                              (1 << kTotalBits)));
    const uint32_t first = s_.low;
    const uint32_t last = s_.high;
    const float least = fmaxf(Exp2(fmaf(bins.Floor(last), kLog2E, shift)), 1.0f);
    const bool few = static_cast<float>(s_.through - s_.before) < least * kListMax;
    if (!few || !Collect(BinRange{bins, first, last})) return Narrow(bins, first, last);
    return RankList();
  }

  // Kept masses alone: all of the domain is kept.
  __device__ void KeepAll() { Collect(BinRange{Bins(domain_.floor), kBins, kBins}); }

  // Whether the whole domain is listed; then among the listed tokens up to `last`:
  __device__ bool ListIsAll() const { return static_cast<uint32_t>(list_count_) == domain_count_; }
  __device__ uint64_t ListMass(uint64_t last) {
    const int i = static_cast<int>(threadIdx.x);
    const uint64_t mine = i < list_count_ && s_.list[i].key <= last ? s_.list[i].mass : 0;
    const uint64_t sum = BlockSum(s_.team, WarpSum(mine));
    __syncthreads();
    return sum;
  }
  __device__ uint64_t SelectListMass(uint64_t wanted) {
    rank_ = 0;
    wanted_ = wanted;
    return RankList();
  }

  // Calls f(candidate, tokens before it) for each listed token, by one thread.
  template <typename F>
  __device__ void ForEachListed(const F& f) {
    Compare([&](int i, uint32_t tokens, uint64_t /*mass*/) { f(s_.list[i], tokens); });
  }
  // The tokens up to `last` to the list.
  __device__ void ListUpTo(uint64_t last) { Collect(KeyRange{0, last}); }

  __device__ const Share& above() const { return above_; }  // kept for sure, not listed
  __device__ int list_count() const { return list_count_; }
  __device__ uint32_t domain_count() const { return domain_count_; }
  __device__ float floor() const { return domain_.floor; }

 private:
  // Raises the floor to below the rank-th of the chunks' greatest values.
  __device__ void BoundRank() {
    const Bins bins(kLowest);
    ClearCounts();
    const int all = (part_.vocab + kChunk - 1) / kChunk;
    const int share = (all + team_.size - 1) / team_.size;
    for (int chunk = static_cast<int>(threadIdx.x); chunk < all; chunk += kSampleThreads) {
      const float greatest = *team_.Remote(&part_.greatest[chunk % share], chunk / share);
      const uint32_t bin = bins.Of(domain_.Scaled(greatest));
      if (greatest > -INFINITY && bin < kBins - 1) atomicAdd(&s_.count[bin], 1u);
    }
    __syncthreads();
    PickRank(s_.count[threadIdx.x]);
    if (s_.low < kBins) domain_.floor = fmaxf(domain_.floor, bins.Floor(s_.low));
    __syncthreads();
  }

  __device__ void ClearCounts() {
    s_.count[threadIdx.x] = 0;
    if (threadIdx.x == 0) {
      s_.total = 0;
      s_.low = kBins;
      s_.high = kBins;
    }
    __syncthreads();
  }
  // The sum over this thread's and the lower bins; a barrier has to follow before the next one.
  __device__ uint32_t BlockPrefix(uint32_t value) {
    const uint32_t prefix = WarpPrefix(value);
    if (LaneIndex() == 31) s_.sums[WarpIndex()] = prefix;
    __syncthreads();
    const uint32_t warps = WarpPrefix(LaneIndex() < kSampleWarps ? s_.sums[LaneIndex()] : 0u);
    const uint32_t before = __shfl_sync(~0u, warps, max(WarpIndex() - 1, 0));
    return prefix + (WarpIndex() > 0 ? before : 0);
  }
  // The bin, each thread with the count of its own, in which rank_ is reached; kBins: none.
  __device__ void PickRank(uint32_t count) {
    const uint32_t before = BlockPrefix(count) - count;
    if (before < rank_ && rank_ <= before + count) {
      s_.low = threadIdx.x;
      s_.before = before;
      s_.through = before + count;
    }
    __syncthreads();
  }
  // The bins in which the mass `wanted` may be reached. The masses of the bins are too small: by
  // less than one for each token, and by what exponentials and the total are rounded to.
  __device__ void PickMass(int wanted) {
    constexpr int kSlack = 8192;
    const int missing = static_cast<int>(domain_count_) + kSlack;
    const auto mass = static_cast<int>(s_.team_count[threadIdx.x]);
    const int through = static_cast<int>(BlockPrefix(s_.team_count[threadIdx.x]));
    const int before = through - mass;
    const auto bin = threadIdx.x;
    if (bin == 0 ? wanted <= through + missing
                 : before + missing < wanted && (wanted <= through + missing || bin == kBins - 1)) {
      s_.low = bin;
      s_.before = static_cast<uint32_t>(before);
    }
    if (bin == kBins - 1 ? before - kSlack < wanted
                         : before - kSlack < wanted && wanted <= through - kSlack) {
      s_.high = bin;
      s_.through = static_cast<uint32_t>(through);
    }
    __syncthreads();
  }

  // The team's histogram; f(scaled) is what a token adds to its bin.
  template <typename F>
  __device__ void BuildBins(const Bins& bins, const F& f) {
    ClearCounts();
    uint32_t tokens = 0;
    uint32_t last = 0;  // many may share the last bin: not one by one
    part_.Visit([&](float greatest) { return domain_.Scaled(greatest) >= domain_.floor; },
                [&](int /*chunk*/, const LaneChunk& x) {
#pragma unroll
                  for (int i = 0; i < kLaneValues; ++i) {
                    const float scaled = domain_.Scaled(x.values[i]);
                    const uint32_t bin = bins.Of(scaled);
                    const bool in = scaled >= domain_.floor;
                    const uint32_t add = f(scaled);
                    tokens += in ? 1 : 0;
                    if (in && bin == kBins - 1) last += add;
                    if (in && bin != kBins - 1) atomicAdd(&s_.count[bin], add);
                  }
                });
    tokens = __reduce_add_sync(~0u, tokens);
    last = __reduce_add_sync(~0u, last);
    if (LaneIndex() == 0 && tokens > 0) {
      atomicAdd(&s_.total, tokens);
      atomicAdd(&s_.count[kBins - 1], last);
    }
    __syncthreads();
    MergeBins();
  }
  // Each block adds up its share of the bins, for all.
  __device__ void MergeBins() {
    const int bin = static_cast<int>(threadIdx.x);
    const int share = kBins / team_.size;
    const int to = bin / share;
    *team_.Remote(&s_.mass_low[team_.rank * share + bin % share], to) = s_.count[bin];
    exchange_.Post(s_.total, 0);
    team_.Barrier();
    uint32_t sum = 0;
#pragma unroll 4
    for (int r = 0; r < team_.size; ++r) sum += s_.mass_low[r * share + bin % share];
    *team_.Remote(&s_.team_count[team_.rank * share + bin % share], to) = sum;
    domain_count_ = static_cast<uint32_t>(exchange_.Of(0).total);
    team_.Barrier();
  }

  // The tokens of the range to the list of all blocks, and the masses before it to `above`. False,
  // and no list, when they are too many.
  template <typename Range>
  __device__ bool Collect(const Range& range) {
    if (threadIdx.x == 0) s_.cursor = 0;
    part_.ForEachChunk([&](int chunk) { part_.mass[chunk] = 0; });
    __syncthreads();
    uint64_t above = 0;
    part_.Visit([&](float greatest) { return domain_.Scaled(greatest) >= domain_.floor; },
                [&](int chunk, const LaneChunk& x) {
                  const uint64_t mass = MassUnits(WarpSum(TakeChunk(range, chunk, x)));
                  if (LaneIndex() == 0) part_.mass[chunk] = mass;
                  above += mass;
                });
    const uint64_t of_block = BlockSum(s_.team, above);
    exchange_.Post(of_block, static_cast<uint64_t>(s_.cursor));
    team_.Barrier();
    above_ = exchange_.Of(0);
    const Share tokens = exchange_.Of(1);
    list_count_ = tokens.total <= kListMax ? static_cast<int>(tokens.total) : 0;
    if (tokens.total > kListMax) return false;
    const int copies = static_cast<int>(tokens.mine) * team_.size;
    for (int i = static_cast<int>(threadIdx.x); i < copies; i += kSampleThreads) {
      const int at = i / team_.size;
      *team_.Remote(&s_.list[static_cast<int>(tokens.before) + at], i % team_.size) = s_.mine[at];
    }
    team_.Barrier();
    return true;
  }
  // The mass of a lane's tokens before the range; those in it are listed.
  template <typename Range>
  __device__ float TakeChunk(const Range& range, int chunk, const LaneChunk& x) {
    float above = 0.0f;
#pragma unroll
    for (int i = 0; i < kLaneValues; ++i) {
      const float scaled = domain_.Scaled(x.values[i]);
      const int token = part_.FirstToken(chunk) + LaneChunk::Token(i);
      const int side = range.Side(domain_, x.values[i], scaled, token);
      const float mass = MassOf(scaled);
      const bool in = scaled >= domain_.floor;
      if (in && side < 0) above += mass;
      if (in && side == 0) {
        const int at = atomicAdd(&s_.cursor, 1);
        if (at < kListMax) {
          s_.mine[at] = {domain_.Key(x.values[i], scaled, token), MassUnits(mass)};
        }
      }
    }
    return above;
  }

  // Calls f(index in the list, tokens before it in the list, their mass), by one thread each.
  template <typename F>
  __device__ void Compare(const F& f) {
    constexpr int kHelpers = 4;  // threads for one token
    const int helper = static_cast<int>(threadIdx.x) % kHelpers;
    for (int base = 0; base < list_count_; base += kSampleThreads / kHelpers) {
      const int i = base + static_cast<int>(threadIdx.x) / kHelpers;
      const uint64_t key = i < list_count_ ? s_.list[i].key : 0;
      uint32_t tokens = 0;
      uint64_t mass = 0;
      for (int j = helper; j < list_count_; j += kHelpers) {
        const Candidate other = s_.list[j];
        tokens += other.key < key ? 1 : 0;
        mass += other.key < key ? other.mass : 0;
      }
#pragma unroll
      for (int step = 1; step < kHelpers; step *= 2) {
        tokens += __shfl_xor_sync(~0u, tokens, step);
        mass += __shfl_xor_sync(~0u, mass, step);
      }
      if (helper == 0 && i < list_count_) f(i, tokens, mass);
    }
  }
  // The key of the listed token that the selection ends with. The list is known to hold it, so
  // masses that another rounding puts outside end with its first or last token.
  __device__ uint64_t RankList() {
    if (threadIdx.x == 0) s_.found = kLastKey;
    __syncthreads();
    Compare([&](int i, uint32_t tokens, uint64_t mass) {
      if (rank_ > 0) {
        if (before_count_ + tokens + 1 == rank_) s_.found = s_.list[i].key;
        return;
      }
      mass += above_.total;
      const bool begins = tokens == 0 || mass < wanted_;
      const bool ends =
          static_cast<int>(tokens) + 1 == list_count_ || wanted_ <= mass + s_.list[i].mass;
      if (begins && ends) s_.found = s_.list[i].key;
    });
    __syncthreads();
    return s_.found;
  }

  // ---- The list is too short: histograms over keys. ----

  __device__ uint64_t Narrow(const Bins& bins, uint32_t first, uint32_t last) {
    const float origin = domain_.raw ? domain_.origin : 0.0f;
    KeyRange range{0, kLastKey};
    if (first > 0) range.low = KeyOf(origin + bins.Ceiling(first), 0);
    if (last < kBins - 1) range.high = KeyOf(origin + bins.Floor(last), 0x7fffffff);
    uint32_t count;
    __syncthreads();  // all have read the bins
    do {
      const int bits = 64 - __clzll(static_cast<long long>(range.high - range.low));
      const int shift = max(0, bits - kKeyBits);
      BuildKeys(range, shift);
      PickKeys();
      range.low += static_cast<uint64_t>(s_.low) << shift;
      range.high = min(range.high, range.low + ((uint64_t{1} << shift) - 1));
      before_count_ += s_.before;
      count = s_.through - s_.before;
      __syncthreads();
    } while (count > kListMax);
    Collect(range);
    return RankList();
  }
  // The team's histogram of the keys in `range`, exact, and what lies before it.
  __device__ void BuildKeys(const KeyRange& range, int shift) {
    s_.mass_low[threadIdx.x] = 0;
    s_.mass_high[threadIdx.x] = 0;
    ClearCounts();
    uint64_t above = 0;
    uint32_t tokens = 0;
    part_.Visit([&](float greatest) { return domain_.Scaled(greatest) >= domain_.floor; },
                [&](int chunk, const LaneChunk& /*values*/) {
                  above += MassUnits(WarpSum(CountKeys(range, shift, chunk, tokens)));
                });
    tokens = __reduce_add_sync(~0u, tokens);
    if (LaneIndex() == 0) atomicAdd(&s_.total, tokens);
    const uint64_t of_block = BlockSum(s_.team, above);
    exchange_.Post(of_block, s_.total);
    team_.Barrier();
    above_ = exchange_.Of(0);
    before_count_ = static_cast<uint32_t>(exchange_.Of(1).total);
    MergeKeys();
  }
  __device__ float CountKeys(const KeyRange& range, int shift, int chunk, uint32_t& tokens) {
    float above = 0.0f;
#pragma unroll 1
    for (int i = 0; i < kLaneValues; ++i) {
      const float value = part_.Value(chunk, LaneChunk::Token(i));
      const float scaled = domain_.Scaled(value);
      if (!(scaled >= domain_.floor)) continue;
      const uint64_t key =
          domain_.Key(value, scaled, part_.FirstToken(chunk) + LaneChunk::Token(i));
      if (key < range.low) {
        above += MassOf(scaled);
        ++tokens;
      } else if (key <= range.high) {
        AddKey(static_cast<int>((key - range.low) >> shift), MassUnits(MassOf(scaled)));
      }
    }
    return above;
  }
  __device__ void AddKey(int bin, uint64_t mass) {
    atomicAdd(&s_.count[bin], 1u);
    const auto low = static_cast<uint32_t>(mass);
    const uint32_t before = atomicAdd(&s_.mass_low[bin], low);
    const uint32_t high = static_cast<uint32_t>(mass >> 32) + (before + low < before ? 1 : 0);
    if (high != 0) atomicAdd(&s_.mass_high[bin], high);
  }
  // Each block adds up its share of the bins, for all.
  __device__ void MergeKeys() {
    const int share = kBins / team_.size;
    if (static_cast<int>(threadIdx.x) < share) {
      const int bin = team_.rank * share + static_cast<int>(threadIdx.x);
      uint32_t count = 0;
      uint64_t mass = 0;
      for (int r = 0; r < team_.size; ++r) {
        count += *team_.Remote(&s_.count[bin], r);
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
  // The bin with the token looked for; as in RankList there is one, whatever the roundings.
  __device__ void PickKeys() {
    const uint32_t count = s_.team_count[threadIdx.x];
    if (rank_ > 0) {
      rank_ -= before_count_;
      PickRank(count);
      rank_ += before_count_;
      return;
    }
    const uint32_t through = BlockPrefix(count);
    const uint32_t all =
        __reduce_add_sync(~0u, LaneIndex() < kSampleWarps ? s_.sums[LaneIndex()] : 0u);
    const uint64_t mass = s_.team_mass[threadIdx.x];
    const uint64_t prefix = WarpPrefix(mass);
    if (LaneIndex() == 31) s_.team.warps[WarpIndex()] = prefix;
    __syncthreads();
    const uint64_t before =
        above_.total + prefix - mass +
        WarpSum(LaneIndex() < WarpIndex() ? s_.team.warps[LaneIndex()] : uint64_t{0});
    const bool begins = through == count || before < wanted_;
    const bool ends = through == all || wanted_ <= before + mass;
    if (count > 0 && begins && ends) {
      s_.low = threadIdx.x;
      s_.before = through - count;
      s_.through = through;
    }
    __syncthreads();
  }

  static constexpr int kKeyBits = 9;
  static_assert(1 << kKeyBits == kBins);

  const Team<kCluster>& team_;
  SelectScratch& s_;
  const RowPart& part_;
  Exchange<kCluster>& exchange_;
  Domain domain_;
  uint32_t rank_ = 0;  // of the token looked for, from 1 on; 0: by mass
  uint64_t wanted_ = 0;
  Share above_ = {};
  uint32_t before_count_ = 0;  // tokens before the list
  uint32_t domain_count_ = 0;
  int list_count_ = 0;
};

}  // namespace lacuna::kernels::cuda
