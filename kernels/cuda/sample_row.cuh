// The second of two launches, for one row: log probabilities, what is kept, the draw, from what the
// first left of each chunk; of the row itself only the chunks that matter are read.
//
// The sampler lives in registers: no function that is not inlined may take its address.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/core/checked_math.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/sample_few.cuh"
#include "kernels/cuda/sample_measure.cuh"
#include "kernels/cuda/sample_select.cuh"
#include "kernels/ops/sample.h"

namespace lacuna::kernels::cuda {

constexpr float kLogprobFloor = -9999.0f;
constexpr double kLn2 = 0.69314718055994530942;
constexpr double kMassBits = 42.0;

// Behind SelectScratch in shared memory; sizes are the same in all blocks.
struct SharedPlan final {
  int64_t greatest;
  int64_t sum;
  int64_t mass;
  int64_t visit;
  int64_t loaded;
  int64_t resident;
  int64_t bytes;
  static constexpr __host__ __device__ SharedPlan Of(int64_t all, int64_t resident_chunks) {
    SharedPlan plan{};
    plan.greatest = RoundUp(int64_t{sizeof(SelectScratch)}, 16);
    plan.sum = plan.greatest + all * 4;
    plan.mass = RoundUp(plan.sum + all * 4, 8);
    plan.visit = plan.mass + all * 8;
    plan.loaded = RoundUp(plan.visit + all * 2, 8);
    plan.resident = RoundUp(plan.loaded + resident_chunks * 8, 128);
    plan.bytes = plan.resident + resident_chunks * kChunk * 4;
    return plan;
  }
};

// Finalizer of SplitMix64 (Steele et al. 2014).
__device__ inline uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// floor(u * total), u in [0, 1) of 53 bits, a function of (seed, index) alone; exact.
__device__ inline uint64_t UniformBelow(uint64_t seed, int64_t index, uint64_t total) {
  const uint64_t mixed = Mix(static_cast<uint64_t>(index));
  const uint64_t bits = Mix(Mix(seed) ^ (mixed << 32 | mixed >> 32)) >> 11;
  return __umul64hi(bits, total) << 11 | (bits * total) >> 53;
}

template <bool kCluster>
class RowSampler final {
 public:
  __device__ RowSampler(const SampleParams& params, const Team<kCluster>& team,
                        const SampleRow& row)
      : p_(params),
        team_(team),
        exchange_(team),
        index_(static_cast<int>(blockIdx.y)),
        row_(row),
        plan_(row, params) {
    const int resident = kBulk ? p_.resident : 0;
    const SharedPlan plan = SharedPlan::Of(p_.all, resident);
    part_.row = p_.logits + index_ * p_.logits_stride;
    part_.tail = p_.tails + index_ * kChunk;
    part_.resident_at = static_cast<int>(plan.resident);
    part_.loaded_at = static_cast<int>(plan.loaded);
    part_.greatest_at = static_cast<int>(plan.greatest);
    part_.sum_at = static_cast<int>(plan.sum);
    part_.mass_at = static_cast<int>(plan.mass);
    part_.visit_at = static_cast<int>(plan.visit);
    part_.begin = min(team.size > 1 ? team.rank * p_.chunks : 0, p_.all);
    part_.end = team.size > 1 ? min(part_.begin + p_.chunks, p_.all) : p_.all;
    part_.resident = 0;
    part_.vocab = p_.vocab;
    part_.aligned = p_.aligned;
  }

  // After team.Arrive(). The logits are older than the launch before, which lets this one start
  // only once it has waited for them: copies of them may start before it has ended.
  __device__ __forceinline__ void Run() {
    if constexpr (kBulk) {
      if (!plan_.changes) Fetch();
    }
    WaitForPrevious();
    if constexpr (kBulk) team_.Wait();
    Publish();
    if constexpr (kBulk) {
      if (plan_.by_team) Measure();
    }
    uint64_t first = LoadStats(plan_.ranked);
    if (first == kBroken) return Fail(SampleResult::kNotANumber);
    if (ValueOf(first) == -INFINITY) return Fail(SampleResult::kImpossible);
    if (plan_.ranked) RankRaw(ValueOf(first));
    if (row_.forced_token >= 0) return Finish(row_.forced_token);
    if (plan_.changes) {
      UseChanged();
      if constexpr (kBulk) Fetch();
      Publish();
      __syncthreads();
    }
    if (plan_.ranked) first = LoadStats(false);
    const float greatest = ValueOf(first);
    if (first == kBroken || !isfinite(greatest)) return Fail(SampleResult::kImpossible);
    if (!plan_.draws) return Finish(GreedyToken(TokenOf(first)));
    const bool cuts = row_.top_k > 0 || row_.top_p < 1.0f || row_.min_p > 0.0f;
    if (cuts) return Draw(Cut(greatest), greatest);
    const uint64_t mass = Weigh(greatest, plan_.inverse);
    Draw({kLastKey, kLowest, {0, mass, mass}}, greatest);
  }
  // The block may end: nothing arrives in its shared memory any more.
  __device__ void Drain() const {
    if constexpr (kBulk) {
#pragma unroll 1
      for (int i = static_cast<int>(threadIdx.x); i < part_.resident; i += kSampleThreads) {
        BarrierWait(part_.Loaded(part_.begin + i), 0);
      }
    }
  }

 private:
  static constexpr bool kBulk = kCluster && kHasClusters;
  static constexpr uint64_t kBroken = 0;  // NaN or +inf among the logits: no key is 0

  // What a token is drawn from: the tokens up to key `last`, from `floor` on; their mass.
  struct Kept final {
    uint64_t last;
    float floor;
    Share share;
  };

  // Starts the copies of the first whole chunks to shared memory. A barrier of the block has to
  // follow before they are awaited.
  __device__ void Fetch() {
    const int whole = part_.aligned ? p_.vocab / kChunk : 0;
    part_.resident = max(0, min(p_.resident, min(part_.end, whole) - part_.begin));
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < part_.resident; i += kSampleThreads) {
      const int chunk = part_.begin + i;
      const uint32_t barrier = part_.Loaded(chunk);
      BarrierInit(barrier, 1);
      FenceBarrierInit();
      BarrierArriveExpect(barrier, kChunk * 4);
      BulkCopyToShared(SharedAddress(part_.Resident(chunk)),
                       part_.row + static_cast<int64_t>(chunk) * kChunk, kChunk * 4, barrier);
    }
  }
  // The row is the changed one, which is whole.
  __device__ void UseChanged() {
    part_.row = p_.changed + index_ * p_.changed_stride;
    part_.tail = part_.row + static_cast<int64_t>(p_.all - 1) * kChunk;
    part_.aligned = true;
  }
  // Tells selections the part; a barrier of the block has to follow.
  __device__ void Publish() const {
    if (threadIdx.x == 0) SharedSelect().part = part_;
  }

  // What the first launch does for other rows.
  __device__ __forceinline__ void Measure() const {
    __syncthreads();  // the barriers of copies are there
    part_.VisitAll([&](int chunk, const LaneChunk& x) {
      ChunkStats stats{};
      stats.raw_greatest = GreatestOf(x);
      if (plan_.ranked) stats.raw_sum = SumOf(x, stats.raw_greatest, 1.0f);
      stats.greatest = stats.raw_greatest;
      stats.sum = SumOf(x, stats.greatest, plan_.inverse);
      if (LaneIndex() == 0) p_.stats[static_cast<int64_t>(index_) * p_.all + chunk] = stats;
    });
    team_.Barrier();
  }
  // Greatest values and sums of the chunks to shared memory: before edits and mask, or after.
  // Returns the key of the first chunk with the greatest value, or kBroken.
  __device__ __forceinline__ uint64_t LoadStats(bool raw) const {
    const ChunkStats* const stats = p_.stats + static_cast<int64_t>(index_) * p_.all;
    uint64_t first = kLastKey;
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < p_.all; i += kSampleThreads) {
      const float4 four = *reinterpret_cast<const float4*>(&stats[i]);
      const float greatest = raw ? four.x : four.z;
      part_.Greatest()[i] = greatest;
      part_.Sum()[i] = raw ? four.y : four.w;
      const bool broken = four.x == INFINITY || four.z == INFINITY;
      first = min(first, broken ? kBroken : KeyOf(greatest, i));
    }
    return BlockMin(first);
  }

  // The mass of the whole row at 1 / temperature `inverse`, and of each chunk.
  __device__ __forceinline__ uint64_t Weigh(float greatest, float inverse) {
    uint64_t mass = 0;
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < p_.all; i += kSampleThreads) {
      const float scaled = __fmul_rn(__fsub_rn(part_.Greatest()[i], greatest), inverse);
      const uint64_t of_chunk = MassUnits(part_.Sum()[i] * expf(scaled));
      part_.Mass()[i] = of_chunk;
      mass += of_chunk;
    }
    __syncthreads();  // sums of the block are read
    mass = BlockSum(WarpSum(mass));
    __syncthreads();
    return mass;
  }

  // Sum of the distribution before any edit, and its likeliest tokens.
  __device__ void RankRaw(float greatest) {
    const uint64_t sum = Weigh(greatest, 1.0f);
    log_sum_ = static_cast<double>(greatest) + log(static_cast<double>(sum)) - kMassBits * kLn2;
    top_ = max(0, min(min(row_.logprobs, SampleResult::kLogprobsMax), p_.vocab));
    if (top_ == 0) return;
    const Domain domain{.origin = greatest, .floor = -INFINITY, .raw = true};
    if constexpr (!kBulk) {
      Domain bound = domain;
      const bool is_bound = BoundByRank(part_, static_cast<uint32_t>(top_), bound);
      if (const int count = is_bound ? ListFew(part_, bound) : 0; count > 0) {
        const auto i = static_cast<int>(threadIdx.x);
        const SelectScratch& s = SharedSelect();
        if (i < count) WriteTop(static_cast<uint32_t>(s.mine[i].key), s.list[i].key);
        __syncthreads();
        return;
      }
    }
    Selector<kCluster> select(team_, exchange_, domain);
    const uint64_t last = select.Select({.rank = static_cast<uint32_t>(top_)});
    if (!select.ListIsAll()) select.ListUpTo(last);
    exchange_ = select.exchange();
    if (team_.rank == 0) {
      select.ForEachListed(
          [&](const Candidate& candidate, uint32_t before) { WriteTop(before, candidate.key); });
    }
    __syncthreads();
  }
  __device__ void WriteTop(uint32_t rank, uint64_t key) const {
    if (rank >= static_cast<uint32_t>(top_)) return;
    p_.results[index_].top_tokens[rank] = TokenOf(key);
    p_.results[index_].top_logprobs[rank] = Logprob(ValueOf(key));
  }
  __device__ float Logprob(float logit) const {
    const double value = static_cast<double>(logit) - log_sum_;
    return value > static_cast<double>(kLogprobFloor) ? static_cast<float>(value) : kLogprobFloor;
  }

  // Each value of the part becomes f(value, token), in shared memory or in the workspace.
  template <typename F>
  __device__ __forceinline__ void Rewrite(const F& f) {
    float* const changed = p_.changed + index_ * p_.changed_stride;
#pragma unroll 1
    for (int chunk = part_.begin + WarpIndex(); chunk < part_.end; chunk += kSampleWarps) {
      const float* const from = part_.Chunk(chunk);
      float* const to = part_.IsResident(chunk) ? part_.Resident(chunk) : changed + chunk * kChunk;
#pragma unroll 1
      for (int i = LaneIndex(); i < kChunk; i += 32) to[i] = f(from[i], chunk * kChunk + i);
    }
    UseChanged();
    __syncthreads();
    Publish();
    __syncthreads();
  }

  // What min_p, top_k and top_p keep.
  __device__ Kept Cut(float greatest) {
    Domain domain{.origin = greatest, .inverse = plan_.inverse};
    if (row_.min_p > 0.0f) {
      domain.floor = max(kLowest, static_cast<float>(log(static_cast<double>(row_.min_p))));
    }
    const auto wanted = [&](uint64_t mass) {
      const double part = ceil(static_cast<double>(row_.top_p) * static_cast<double>(mass));
      return min(max(static_cast<uint64_t>(part), uint64_t{1}), mass);
    };
    if constexpr (!kBulk) {
      Domain bound = domain;
      const auto rank = static_cast<uint32_t>(max(row_.top_k, 0));
      const bool few =
          rank == 0 ? row_.min_p > 0.0f : rank <= kFewRank && BoundByRank(part_, rank, bound);
      if (const int count = few ? ListFew(part_, bound) : 0; count > 0) {
        const FewKept kept = CutFew(count, rank, wanted);
        WeighFew(part_, count, kept.last);
        return {kept.last, bound.floor, {0, kept.mass, kept.mass}};
      }
    }
    uint64_t last = kLastKey;
    uint64_t mass = 0;
    Selector<kCluster> select(team_, exchange_, domain);
    if (row_.top_k > 0) {
      last = select.Select({.rank = static_cast<uint32_t>(row_.top_k)});
      exchange_ = select.exchange();
      if (row_.top_p < 1.0f) mass = select.above().total + select.ListMass(last);
    } else if (row_.min_p > 0.0f) {
      select.KeepAll();
      exchange_ = select.exchange();
      mass = select.above().total;
    } else {
      mass = Weigh(greatest, plan_.inverse);
    }
    if (row_.top_p >= 1.0f) return KeptOf(select, last);
    if (row_.top_k > 0 && select.ListIsAll()) {
      last = select.SelectListed(wanted(mass));
      return KeptOf(select, last);
    }
    if (row_.top_k > 0) {
      Rewrite([&](float value, int token) {
        return KeyOf(domain.Scaled(value), token) <= last ? value : -INFINITY;
      });
    }
    Selector<kCluster> inner(team_, exchange_, domain);
    last = inner.Select({.wanted = wanted(mass), .total = mass});
    return KeptOf(inner, last);
  }
  // What a selection keeps for sure is in the chunks' masses; the listed tokens up to `last` join.
  __device__ static __attribute__((noinline)) Kept KeptOf(const Selector<kCluster>& select,
                                                          uint64_t last) {
    const RowPart part = SharedSelect().part;
    const int first = part.begin * kChunk;
    const int end = part.end * kChunk;
    const int i = static_cast<int>(threadIdx.x);
    const Candidate* const list = SharedSelect().list;
    Candidate listed{kLastKey, 0};
    if (i < select.list_count() && list[i].key <= last) listed = list[i];
    const int token = TokenOf(listed.key);
    const bool kept = listed.key != kLastKey;
    const bool mine = kept && token >= first && token < end;
    if (mine) {
      atomicAdd(reinterpret_cast<unsigned long long*>(&part.Mass()[token / kChunk]),
                static_cast<unsigned long long>(listed.mass));
    }
    Share share = select.above();
    const uint64_t sum = BlockSum(WarpSum(listed.mass));
    share.total += sum;
    __syncthreads();
    if constexpr (kBulk) {
      share.mine += BlockSum(WarpSum(mine ? listed.mass : uint64_t{0}));
      __syncthreads();
      share.before += BlockSum(WarpSum(kept && token < first ? listed.mass : uint64_t{0}));
      __syncthreads();
    } else {
      share.mine += sum;
    }
    return {last, select.floor(), share};
  }

  // By inverse of the cumulative masses in the order of ids; those of the part's chunks are seen by
  // the whole block.
  __device__ void Draw(const Kept& kept, float greatest) {
    const Share& share = kept.share;
    const uint64_t target = UniformBelow(row_.seed, row_.index, share.total);
    if (target < share.before || target - share.before >= share.mine) return;
    PickChunk(target - share.before);
    Walk(kept.last, kept.floor, greatest);
  }
  // The chunk of the part in which the cumulative mass passes `rest`.
  __device__ void PickChunk(uint64_t rest) {
    SelectScratch& s = SharedSelect();
#pragma unroll 1
    for (int base = part_.begin;; base += kSampleThreads) {
      const int chunk = base + static_cast<int>(threadIdx.x);
      const uint64_t mass = chunk < part_.end ? part_.Mass()[chunk] : 0;
      uint64_t prefix = WarpPrefix(mass);
      if (LaneIndex() == 31) s.team.warps[WarpIndex()] = prefix;
      __syncthreads();
      const uint64_t warps = LaneIndex() < kSampleWarps ? s.team.warps[LaneIndex()] : 0;
      prefix += WarpSum(LaneIndex() < WarpIndex() ? warps : uint64_t{0});
      if (rest < prefix && rest >= prefix - mass) {
        s.pick_chunk = chunk;
        s.pick_rest = rest - (prefix - mass);
        s.pick_mass = mass;
      }
      const uint64_t all = WarpSum(warps);
      __syncthreads();
      if (rest < all || base + kSampleThreads >= part_.end) return;
      rest -= all;
    }
  }
  // The token at the same share of the chunk's kept masses, taken relative to its greatest value.
  __device__ void Walk(uint64_t last, float floor, float greatest) {
    const Domain domain{.origin = greatest, .inverse = plan_.inverse};
    SelectScratch& s = SharedSelect();
    const int chunk = s.pick_chunk;
    const float* const values = part_.Chunk(chunk);
    uint64_t mass[4] = {};
#pragma unroll
    for (int j = 0; j < 4 && threadIdx.x < kChunk / 4; ++j) {
      const int at = static_cast<int>(threadIdx.x) * 4 + j;
      const float value = values[at];
      const float scaled = domain.Scaled(value);
      if (scaled >= floor && KeyOf(scaled, chunk * kChunk + at) <= last) {
        mass[j] = MassUnits(Exp2((value - part_.Greatest()[chunk]) * (plan_.inverse * kLog2E)));
      }
    }
    const uint64_t mine = mass[0] + mass[1] + mass[2] + mass[3];
    uint64_t prefix = WarpPrefix(mine);
    if (LaneIndex() == 31) s.team.warps[WarpIndex()] = prefix;
    __syncthreads();
    const uint64_t warps = LaneIndex() < kSampleWarps ? s.team.warps[LaneIndex()] : 0;
    prefix += WarpSum(LaneIndex() < WarpIndex() ? warps : uint64_t{0});
    const uint64_t total = WarpSum(warps);
    const double place = static_cast<double>(s.pick_rest) / static_cast<double>(s.pick_mass);
    const uint64_t target =
        min(static_cast<uint64_t>(place * static_cast<double>(total)), total - 1);
    if (target >= prefix || target < prefix - mine) return;
    uint64_t passed = prefix - mine;
    int j = 0;
    while (j < 3 && passed + mass[j] <= target) passed += mass[j++];
    Store(chunk * kChunk + static_cast<int>(threadIdx.x) * 4 + j);
  }

  // Of the first chunk with the greatest value.
  __device__ int GreedyToken(int chunk) const {
    return chunk * kChunk + static_cast<int>(__float_as_uint(part_.Sum()[chunk]));
  }
  __device__ void Store(int token) {
    SampleResult& result = p_.results[index_];
    result.token = token;
    result.status = SampleResult::kOk;
    result.top_count = top_;
    result.logprob = 0.0f;
    if (plan_.ranked) {
      const bool inside = token < p_.vocab;
      const float raw = inside ? p_.logits[index_ * p_.logits_stride + token] : 0.0f;
      result.logprob = inside ? Logprob(raw) : kLogprobFloor;
    }
    p_.tokens[index_] = token;
  }
  __device__ void Finish(int token) {
    if (team_.rank == 0 && threadIdx.x == 0) Store(token);
  }
  __device__ void Fail(SampleResult::Status status) {
    if (team_.rank != 0 || threadIdx.x != 0) return;
    SampleResult& result = p_.results[index_];
    result.token = 0;
    result.status = status;
    result.logprob = 0.0f;
    result.top_count = 0;
    p_.tokens[index_] = 0;
  }

  const SampleParams& p_;
  const Team<kCluster> team_;
  Exchange<kCluster> exchange_;
  const int index_;
  const SampleRow row_;
  const RowPlan plan_;
  RowPart part_;
  int top_ = 0;
  double log_sum_ = 0.0;
};

}  // namespace lacuna::kernels::cuda
