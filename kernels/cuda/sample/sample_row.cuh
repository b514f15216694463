// The second of two launches, for one row, whatever it asks for (PlainChoice does those that ask
// for little): log probabilities, what is kept, the draw, from what the first left of each chunk;
// of the row itself only the chunks that matter are read.
//
// The sampler lives in registers: no function that is not inlined may take its address.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/core/checked_math.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/sample/sample_call.cuh"
#include "kernels/cuda/sample/sample_few.cuh"
#include "kernels/cuda/sample/sample_random.cuh"
#include "kernels/cuda/sample/sample_select.cuh"
#include "kernels/ops/sample.h"

namespace lacuna::kernels::cuda {

constexpr float kLogprobFloor = -9999.0f;
constexpr double kLn2 = 0.69314718055994530942;
constexpr double kMassBits = 42.0;

// Behind SelectScratch in shared memory.
struct SharedPlan final {
  int64_t greatest;
  int64_t mass;
  int64_t place;
  int64_t visit;
  int64_t gathered;
  int64_t bytes;
  static constexpr __host__ __device__ SharedPlan Of(int64_t all, int64_t gathered_max) {
    SharedPlan plan{};
    plan.greatest = RoundUp(int64_t{sizeof(SelectScratch)}, 16);
    plan.mass = RoundUp(plan.greatest + all * 4, 8);
    plan.place = plan.mass + all * 8;
    plan.visit = plan.place + all * 4;
    plan.gathered = RoundUp(plan.visit + all * 2, 8);
    plan.bytes = plan.gathered + gathered_max * int64_t{sizeof(Gathered)};
    return plan;
  }
};

// Whether a row is for a team: one for which most of its chunks may have to be looked at.
__device__ inline bool IsWide(const SampleRow& row) {
  constexpr int kTopKFew = 256;
  constexpr float kMinPFew = 0.01f;
  if (row.forced_token >= 0 || row.temperature == 0.0f) return false;
  if (row.top_k > 0) return row.top_k > kTopKFew;
  return row.top_p < 1.0f || (row.min_p > 0.0f && row.min_p < kMinPFew);
}

template <bool kCluster>
class RowSampler final {
 public:
  __device__ RowSampler(const SampleParams& params, const Team<kCluster>& team,
                        const SampleRow& row, const RowPlan& plan)
      : p_(params),
        team_(team),
        exchange_(team),
        index_(static_cast<int>(blockIdx.y)),
        row_(row),
        plan_(plan),
        uniform_(UniformBits(row.seed, row.index)),
        floor_(row.min_p > 0.0f
                   ? max(kLowest, static_cast<float>(log(static_cast<double>(row.min_p))))
                   : kLowest) {
    const SharedPlan places = SharedPlan::Of(p_.all, p_.gathered_max);
    part_.row = p_.logits + index_ * p_.logits_stride;
    part_.tail = p_.tails + index_ * kChunk;
    part_.greatest_at = static_cast<int>(places.greatest);
    part_.mass_at = static_cast<int>(places.mass);
    part_.place_at = static_cast<int>(places.place);
    part_.visit_at = static_cast<int>(places.visit);
    part_.gathered_at = static_cast<int>(places.gathered);
    part_.gathered_max = p_.gathered_max;
    part_.begin = min(team.size > 1 ? team.rank * p_.chunks : 0, p_.all);
    part_.end = team.size > 1 ? min(part_.begin + p_.chunks, p_.all) : p_.all;
    part_.vocab = p_.vocab;
    part_.aligned = p_.aligned;
  }

  // After team.Arrive().
  __device__ __forceinline__ void Run() {
    Publish();
    WaitForPrevious();
    if constexpr (kBulk) team_.Wait();
    uint64_t first = LoadStats(plan_.ranked);
    if (first == kBroken) return Fail(SampleResult::kNotANumber);
    if (ValueOf(first) == -INFINITY) return Fail(SampleResult::kImpossible);
    if (plan_.ranked) RankRaw(ValueOf(first));
    if (row_.forced_token >= 0) return Finish(row_.forced_token);
    if (plan_.changes) {
      UseChanged();
      Publish();
      __syncthreads();
    }
    if (plan_.ranked) first = LoadStats(false);
    const float greatest = ValueOf(first);
    if (first == kBroken || !isfinite(greatest)) return Fail(SampleResult::kImpossible);
    if (!plan_.draws) return Finish(GreedyToken(TokenOf(first)));
    const bool cuts = row_.top_k > 0 || row_.top_p < 1.0f || row_.min_p > 0.0f;
    if (cuts) return Draw(Cut(greatest), greatest);
    WeighChunks(greatest, plan_.inverse);
    __syncthreads();  // what BlockMin left has been read
    if (PickChunk([this](uint64_t total) { return UniformBelow(uniform_, total); })) {
      Walk(kLastKey, kLowest, greatest);
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

  // Greatest values and sums of the chunks to shared memory: before edits and mask, or after.
  // Returns the key of the first chunk with the greatest value, or kBroken.
  __device__ __forceinline__ uint64_t LoadStats(bool raw) const {
    const ChunkStats* const stats = p_.stats + static_cast<int64_t>(index_) * p_.all;
    uint64_t first = kLastKey;
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < p_.all; i += kSampleThreads) {
      const float4 four = *reinterpret_cast<const float4*>(&stats[i]);
      const float greatest = raw ? four.x : four.z;
      part_.Greatest(i) = greatest;
      part_.Sum(i) = raw ? four.y : four.w;
      const bool broken = four.x == INFINITY || four.z == INFINITY;
      first = min(first, broken ? kBroken : KeyOf(greatest, i));
    }
    return BlockMin(first);
  }

  // The mass of each chunk at 1 / temperature `inverse`; after barriers. Returns the sum over those
  // of the thread, which are neighbours.
  __device__ __forceinline__ uint64_t WeighChunks(float greatest, float inverse) {
    uint64_t mass = 0;
#pragma unroll 1
    for (int i = FirstOfThread(0, p_.all); i < FirstOfThread(1, p_.all); ++i) {
      const uint64_t of_chunk = MassOfChunk(part_.Sum(i), part_.Greatest(i), greatest, inverse);
      part_.Mass(i) = of_chunk;
      mass += of_chunk;
    }
    return mass;
  }
  // Of `count` chunks those of a thread begin here; with `next` 1 they end here.
  __device__ static int FirstOfThread(int next, int count) {
    const int each = (count + kSampleThreads - 1) / kSampleThreads;
    return min((static_cast<int>(threadIdx.x) + next) * each, count);
  }
  // The mass of the whole row.
  __device__ __forceinline__ uint64_t Weigh(float greatest, float inverse) {
    const uint64_t mass = WeighChunks(greatest, inverse);
    __syncthreads();  // sums of the block are read
    const uint64_t sum = BlockSum(WarpSum(mass));
    __syncthreads();
    return sum;
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
      if (const int count = is_bound ? ListFew(bound) : 0; count > 0) {
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

  // Each value of the part becomes f(value, token), in the workspace.
  template <typename F>
  __device__ __forceinline__ void Rewrite(const F& f) {
    float* const changed = p_.changed + index_ * p_.changed_stride;
#pragma unroll 1
    for (int chunk = part_.begin + WarpIndex(); chunk < part_.end; chunk += kSampleWarps) {
      const float* const from = part_.Chunk(chunk);
      float* const to = changed + chunk * kChunk;
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
    const Domain domain{.origin = greatest, .inverse = plan_.inverse, .floor = floor_};
    const auto wanted = [&](uint64_t mass) { return WantedOf(mass, row_.top_p); };
    if constexpr (!kBulk) {
      Domain bound = domain;
      const auto rank = static_cast<uint32_t>(max(row_.top_k, 0));
      const bool few =
          rank == 0 ? row_.min_p > 0.0f : rank <= kFewRank && BoundByRank(part_, rank, bound);
      if (const int count = few ? ListFew(bound) : 0; count > 0) {
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
      atomicAdd(reinterpret_cast<unsigned long long*>(&part.Mass(token / kChunk)),
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
    const uint64_t target = UniformBelow(uniform_, share.total);
    if (target < share.before || target - share.before >= share.mine) return;
    if (PickChunk([&](uint64_t /*mine*/) { return target - share.before; })) {
      Walk(kept.last, kept.floor, greatest);
    }
  }
  // The chunk of the part in which the cumulative mass passes rest(mass of the part).
  template <typename F>
  __device__ __forceinline__ bool PickChunk(const F& rest) {
    SelectScratch& s = SharedSelect();
    const int count = part_.end - part_.begin;
    const int end = FirstOfThread(1, count);
    uint64_t mine = 0;
#pragma unroll 1
    for (int i = FirstOfThread(0, count); i < end; ++i) mine += part_.Mass(part_.begin + i);
    uint64_t prefix = WarpPrefix(mine);
    if (threadIdx.x == 0) s.pick_chunk = -1;
    if (LaneIndex() == 31) s.team.warps[WarpIndex()] = prefix;
    __syncthreads();
    const uint64_t warps = LaneIndex() < kSampleWarps ? s.team.warps[LaneIndex()] : 0;
    prefix += WarpSum(LaneIndex() < WarpIndex() ? warps : uint64_t{0});
    uint64_t target = rest(WarpSum(warps));
    if (target < prefix && target >= prefix - mine) {
      target -= prefix - mine;
      int chunk = part_.begin + FirstOfThread(0, count);
      for (; part_.Mass(chunk) <= target; ++chunk) target -= part_.Mass(chunk);
      s.pick_chunk = chunk;
      s.pick_rest = target;
      s.pick_mass = part_.Mass(chunk);
    }
    __syncthreads();
    return s.pick_chunk >= 0;
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
        mass[j] = MassUnits(Exp2((value - part_.Greatest(chunk)) * (plan_.inverse * kLog2E)));
      }
    }
    const uint64_t mine = mass[0] + mass[1] + mass[2] + mass[3];
    uint64_t prefix = WarpPrefix(mine);
    if (LaneIndex() == 31) s.team.warps[WarpIndex()] = prefix;
    __syncthreads();
    const uint64_t warps = LaneIndex() < kSampleWarps ? s.team.warps[LaneIndex()] : 0;
    prefix += WarpSum(LaneIndex() < WarpIndex() ? warps : uint64_t{0});
    const uint64_t total = WarpSum(warps);
    const uint64_t target = SameShare(s.pick_rest, s.pick_mass, total);
    if (target >= prefix || target < prefix - mine) return;
    uint64_t passed = prefix - mine;
    int j = 0;
    while (j < 3 && passed + mass[j] <= target) passed += mass[j++];
    Store(chunk * kChunk + static_cast<int>(threadIdx.x) * 4 + j);
  }

  // Of the first chunk with the greatest value.
  __device__ int GreedyToken(int chunk) const {
    return chunk * kChunk + static_cast<int>(__float_as_uint(part_.Sum(chunk)));
  }
  __device__ void Store(int token) {
    SampleResult& result = p_.results[index_];
    result.token = token;
    result.status = SampleResult::kOk;
    result.top_count = top_;
    result.rereads = IsWide(row_) ? 1 : 0;
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
    if (team_.rank == 0 && threadIdx.x == 0) StoreChoice(p_, index_, 0, status);
  }

  const SampleParams& p_;
  const Team<kCluster> team_;
  Exchange<kCluster> exchange_;
  const int index_;
  const SampleRow row_;
  const RowPlan plan_;
  const uint64_t uniform_;
  const float floor_;  // of min_p
  RowPart part_;
  int top_ = 0;
  double log_sum_ = 0.0;
};

}  // namespace lacuna::kernels::cuda
