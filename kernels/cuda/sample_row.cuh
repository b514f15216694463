// One row of logits from start to end: edits, mask, log probabilities, what is kept, the draw.
//
// One pass over the logits as they arrive gives the greatest value and the mass of each chunk:
// greedy rows, and those with a temperature alone, need no more. Logits stay as they are: changed
// ones go to shared memory or to the workspace.
//
// The sampler lives in registers: no function that is not inlined may take its address. Local
// memory for all threads is as much as the logits themselves, and shared memory leaves hardly any
// L1 for it.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/core/checked_math.h"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/sample_select.cuh"
#include "kernels/ops/sample.h"

namespace lacuna::kernels::cuda {

constexpr float kLogprobFloor = -9999.0f;
constexpr double kLn2 = 0.69314718055994530942;
constexpr double kMassBits = 42.0;

struct SampleParams final {
  const float* logits;
  const SampleRow* rows;
  const LogitEdit* edits;
  const uint32_t* mask;
  SampleResult* results;
  int32_t* tokens;
  float* changed;  // [rows, changed_stride]: chunks that are not in shared memory, once changed
  int64_t logits_stride;
  int64_t changed_stride;
  int vocab;
  int chunks;           // of a block
  int resident_chunks;  // the first of them: in shared memory
  bool aligned;         // rows of logits to 16 bytes
};

// Behind SelectScratch in shared memory; sizes are the same in all blocks.
struct SharedPlan final {
  int64_t greatest;
  int64_t sum;
  int64_t mass;
  int64_t loaded;
  int64_t resident;
  int64_t bytes;
  static constexpr __host__ __device__ SharedPlan Of(int64_t chunks, int64_t resident_chunks) {
    SharedPlan plan{};
    plan.greatest = RoundUp(int64_t{sizeof(SelectScratch)}, 16);
    plan.sum = plan.greatest + chunks * 4;
    plan.mass = RoundUp(plan.sum + chunks * 4, 8);
    plan.loaded = plan.mass + chunks * 8;
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

__device__ inline float Edited(float logit, const LogitEdit& edit, const SampleRow& row) {
  logit = __fadd_rn(logit, edit.bias);
  if ((edit.flags & LogitEdit::kBarred) != 0) logit = -INFINITY;
  if ((edit.flags & LogitEdit::kRepeated) != 0) {
    logit = logit > 0.0f ? __fdiv_rn(logit, row.repetition) : __fmul_rn(logit, row.repetition);
  }
  if (edit.output_count > 0) {
    const double penalty =
        static_cast<double>(row.presence) + static_cast<double>(row.frequency) * edit.output_count;
    logit = __fsub_rn(logit, static_cast<float>(penalty));
  }
  return logit;
}

template <bool kCluster>
class RowSampler final {
 public:
  __device__ RowSampler(const SampleParams& params, const Team<kCluster>& team)
      : p_(params), team_(team), exchange_(team), index_(static_cast<int>(blockIdx.y)) {
    const SharedPlan plan = SharedPlan::Of(p_.chunks, p_.resident_chunks);
    const int all = (p_.vocab + kChunk - 1) / kChunk;
    part_.row = p_.logits + index_ * p_.logits_stride;
    part_.resident_at = static_cast<int>(plan.resident);
    part_.greatest_at = static_cast<int>(plan.greatest);
    part_.sum_at = static_cast<int>(plan.sum);
    part_.mass_at = static_cast<int>(plan.mass);
    part_.first = team.rank * p_.chunks;
    part_.chunks = max(0, min(p_.chunks, all - part_.first));
    part_.resident_chunks = p_.resident_chunks;
    part_.vocab = p_.vocab;
    part_.aligned = p_.aligned;
    loaded_at_ = static_cast<int>(plan.loaded);
  }

  // After team.Arrive().
  __device__ __forceinline__ void Run() {
    row_ = p_.rows[index_];
    const LaneChunk begun = Begin();
    Fetch();
    const bool forced = row_.forced_token >= 0;
    const bool ranked = forced || row_.logprobs >= 0;
    const bool draws = !forced && row_.temperature != 0.0f;
    inverse_ = static_cast<float>(1.0 / max(static_cast<double>(row_.temperature), 1e-6));
    uint32_t key = Measure<true>(ranked ? 1.0f : draws ? inverse_ : 0.0f, begun);
    team_.Wait();
    Publish();
    float greatest = FindGreatest(key);
    if (key_ == kBroken) return Fail(SampleResult::kNotANumber);
    if (greatest == -INFINITY) return Fail(SampleResult::kImpossible);
    if (ranked) RankRaw(greatest);
    if (forced) return Finish(row_.forced_token);
    if (Edit()) {
      key = Measure<false>(draws ? inverse_ : 0.0f, {});
      greatest = FindGreatest(key);
      if (!isfinite(greatest)) return Fail(SampleResult::kImpossible);
    } else if (draws && ranked && inverse_ != 1.0f) {
      Measure<false>(inverse_, {});
    }
    if (!draws) return FinishGreedy(greatest);
    const bool cuts = row_.top_k > 0 || row_.top_p < 1.0f || row_.min_p > 0.0f;
    Draw(cuts ? Cut(greatest) : Kept{kLastKey, kLowest, Weigh(greatest, inverse_)}, greatest);
  }

 private:
  static constexpr bool kBulk = kCluster && kHasClusters;
  static constexpr uint32_t kBroken = ~0u;  // NaN or +inf among the logits

  // What a token is drawn from: the tokens up to key `last`, from `floor` on; their mass.
  struct Kept final {
    uint64_t last;
    float floor;
    Share share;
  };

  __device__ uint32_t Loaded(int chunk) const {
    return SharedAddress(SharedMemory() + loaded_at_ + chunk * 8);
  }
  __device__ static bool Arrives(const RowPart& part, int chunk) {
    return kBulk && chunk < part.resident_chunks && part.IsWhole(chunk);
  }
  // Whether this warp's first chunk is loaded ahead of all copies, in whose queue it would wait.
  __device__ static bool BeginsLoaded(const RowPart& part) {
    const int chunk = part.chunks - 1 - WarpIndex();
    return chunk >= part.resident_chunks && part.IsWhole(chunk);
  }
  __device__ LaneChunk Begin() const {
    LaneChunk begun = {};
    const int chunk = part_.chunks - 1 - WarpIndex();
    if (BeginsLoaded(part_)) RowPart::LoadWhole(part_.row + part_.FirstToken(chunk), begun);
    return begun;
  }
  // Starts the copies of whole chunks to shared memory: a warp those that it takes itself.
  __device__ void Fetch() {
    if constexpr (kBulk) {
      const bool again = part_.chunks > part_.resident_chunks;  // then L2 is for the others
      const uint64_t policy = again ? CreateEvictFirstPolicy() : 0;
      for (int chunk = part_.chunks - 1 - WarpIndex() - LaneIndex() * kSampleWarps; chunk >= 0;
           chunk -= kSampleThreads) {
        if (!Arrives(part_, chunk)) continue;
        const uint32_t barrier = Loaded(chunk);
        const uint32_t to = SharedAddress(part_.Resident(chunk));
        const float* const from = part_.row + part_.FirstToken(chunk);
        BarrierInit(barrier, 1);
        FenceBarrierInit();
        BarrierArriveExpect(barrier, kChunk * 4);
        if (again) {
          BulkCopyToShared(to, from, kChunk * 4, barrier, policy);
        } else {
          BulkCopyToShared(to, from, kChunk * 4, barrier);
        }
      }
      __syncwarp();
    }
  }

  // The greatest value of each chunk and its mass at 1 / temperature `inverse` (0: no masses).
  // Returns this warp's greatest key, kBroken if a value is. kFirst: as the chunks arrive.
  template <bool kFirst>
  __device__ __forceinline__ uint32_t Measure(float inverse, const LaneChunk& begun) {
    const RowPart part = part_;
    uint32_t greatest = 0;
    bool broken = false;
    const auto measure = [&](int chunk, const LaneChunk& x) {
      float most = -INFINITY;
#pragma unroll
      for (int i = 0; i < kLaneValues; ++i) {
        broken = broken || !(x.values[i] <= -kLowest);
        most = fmaxf(most, x.values[i]);
      }
      const uint32_t key = __reduce_max_sync(~0u, Ascending(most));
      most = FromAscending(key);
      greatest = max(greatest, key);
      float sum = 0.0f;
      if (inverse > 0.0f && most > -INFINITY) {
        const float scale = inverse * kLog2E;
#pragma unroll
        for (int i = 0; i < kLaneValues; ++i) sum += Exp2((x.values[i] - most) * scale);
        sum = WarpSum(sum);
      }
      if (LaneIndex() == 0) {
        part.Greatest()[chunk] = most;
        part.Sum()[chunk] = sum;
      }
    };
    if constexpr (kFirst) {
      Receive(part, begun, measure);
    } else {
      part.Visit({.origin = 0.0f, .floor = -INFINITY}, measure);
    }
    __syncwarp();
    return __any_sync(~0u, broken) != 0 ? kBroken : greatest;
  }
  // As RowPart::Visit, but chunks come to shared memory on the way. A chunk that is not for shared
  // memory is fetched while two that are come by, so that none of the copies is waited for alone.
  template <typename F>
  __device__ __forceinline__ void Receive(const RowPart& part, const LaneChunk& begun, const F& f) {
    LaneChunk next = begun;
    bool ahead = BeginsLoaded(part);
    int outside = part.chunks - 1 - WarpIndex();
    int inside = outside;
    while (inside >= part.resident_chunks) inside -= kSampleWarps;
    for (int turn = 1; inside >= 0 || outside >= part.resident_chunks; ++turn) {
      const bool leaves = outside >= part.resident_chunks && (inside < 0 || turn % 3 == 0);
      const int chunk = leaves ? outside : inside;
      LaneChunk now;
      if (leaves && ahead) {
        now = next;
      } else if (!leaves && Arrives(part, chunk)) {
        BarrierWait(Loaded(chunk), 0);
        part.Load(chunk, now);
      } else {
        part.LoadMemory(chunk, now);
        if (!leaves) part.Store(now, part.Resident(chunk));
      }
      (leaves ? outside : inside) -= kSampleWarps;
      if (leaves) {
        ahead = outside >= part.resident_chunks && part.IsWhole(outside);
        if (ahead) part.LoadWhole(part.row + part.FirstToken(outside), next);
      }
      f(chunk, now);
    }
  }
  // Tells selections the part; a barrier of the block has to follow.
  __device__ void Publish() const {
    if (threadIdx.x == 0) SharedSelect().part = part_;
  }
  // The greatest value of the row; key_: its key.
  __device__ float FindGreatest(uint32_t of_warp) {
    exchange_.Post(BlockMax(of_warp), 0);
    team_.Barrier();
    key_of_block_ = static_cast<uint32_t>(exchange_.Value(0));
    key_ = __reduce_max_sync(~0u, key_of_block_);
    return FromAscending(key_);
  }

  // The mass of the whole row at 1 / temperature `inverse`, and of each chunk.
  __device__ __forceinline__ Share Weigh(float greatest, float inverse) {
    const RowPart part = part_;
    __syncthreads();
    uint64_t mass = 0;
    for (int i = static_cast<int>(threadIdx.x); i < part.chunks; i += kSampleThreads) {
      const float scaled = __fmul_rn(__fsub_rn(part.Greatest()[i], greatest), inverse);
      part.Mass()[i] = MassUnits(part.Sum()[i] * expf(scaled));
      mass += part.Mass()[i];
    }
    exchange_.Post(BlockSum(WarpSum(mass)), 0);
    team_.Barrier();
    return exchange_.Of(0);
  }

  // Sum of the distribution before any edit, and its likeliest tokens.
  __device__ void RankRaw(float greatest) {
    const uint64_t sum = Weigh(greatest, 1.0f).total;
    log_sum_ = static_cast<double>(greatest) + log(static_cast<double>(sum)) - kMassBits * kLn2;
    top_ = max(0, min(min(row_.logprobs, SampleResult::kLogprobsMax), p_.vocab));
    if (top_ == 0) return;
    Selector<kCluster> select(team_, exchange_,
                              {.origin = greatest, .floor = -INFINITY, .raw = true});
    const uint64_t last = select.Select({.rank = static_cast<uint32_t>(top_)});
    if (!select.ListIsAll()) select.ListUpTo(last);
    exchange_ = select.exchange();
    if (team_.rank == 0) {
      select.ForEachListed([&](const Candidate& candidate, uint32_t before) {
        if (before >= static_cast<uint32_t>(top_)) return;
        p_.results[index_].top_tokens[before] = TokenOf(candidate.key);
        p_.results[index_].top_logprobs[before] = Logprob(ValueOf(candidate.key));
      });
    }
    __syncthreads();
  }
  __device__ float Logprob(float logit) const {
    const double value = static_cast<double>(logit) - log_sum_;
    return value > static_cast<double>(kLogprobFloor) ? static_cast<float>(value) : kLogprobFloor;
  }

  // Each value becomes f(value, token), in shared memory or in the workspace.
  template <typename F>
  __device__ __forceinline__ void Rewrite(const F& f) {
    float* const changed = p_.changed + index_ * p_.changed_stride;
    part_.ForEachChunk([&](int chunk) {
      const int first = part_.FirstToken(chunk);
      const bool resident = chunk < part_.resident_chunks;
      float* const to = resident ? part_.Resident(chunk) : changed + first;
#pragma unroll 1
      for (int i = 0; i < kLaneValues; i += 4) {
        const int at = LaneChunk::Token(i);
        const float4 x = part_.LoadFour(chunk, at);
        *reinterpret_cast<float4*>(to + at) = {f(x.x, first + at), f(x.y, first + at + 1),
                                               f(x.z, first + at + 2), f(x.w, first + at + 3)};
      }
    });
    part_.row = changed;
    part_.aligned = true;
    Publish();
    __syncthreads();
  }
  // Whether any logit may have changed.
  __device__ bool Edit() {
    const int edits = row_.edits_end - row_.edits_begin;
    if (edits > 0) {
      Rewrite([](float value, int) { return value; });
      for (int i = static_cast<int>(threadIdx.x); i < edits; i += kSampleThreads) {
        const LogitEdit edit = p_.edits[row_.edits_begin + i];
        const int at = edit.token - part_.FirstToken(0);
        if (edit.token >= p_.vocab || at < 0 || at >= part_.chunks * kChunk) continue;
        float* const value = at < part_.resident_chunks * kChunk
                                 ? part_.Resident(0) + at
                                 : p_.changed + index_ * p_.changed_stride + edit.token;
        *value = Edited(*value, edit, row_);
      }
      __syncthreads();
    }
    if (p_.mask == nullptr) return edits > 0;
    const uint32_t* mask = p_.mask + static_cast<int64_t>(index_) * ((p_.vocab + 31) / 32);
    Rewrite([&](float value, int token) {
      return token < p_.vocab && (mask[token / 32] >> (token % 32) & 1u) != 0 ? value : -INFINITY;
    });
    return true;
  }

  // What min_p, top_k and top_p keep.
  __device__ Kept Cut(float greatest) {
    Domain domain{.origin = greatest, .inverse = inverse_};
    if (row_.min_p > 0.0f) {
      domain.floor = max(kLowest, static_cast<float>(log(static_cast<double>(row_.min_p))));
    }
    const auto wanted = [&](uint64_t mass) {
      const double part = ceil(static_cast<double>(row_.top_p) * static_cast<double>(mass));
      return min(max(static_cast<uint64_t>(part), uint64_t{1}), mass);
    };
    uint64_t last = kLastKey;
    uint64_t mass = 0;
    Selector<kCluster> select(team_, exchange_, domain);
    if (row_.top_k > 0) {
      last = select.Select({.rank = static_cast<uint32_t>(row_.top_k)});
      exchange_ = select.exchange();
      mass = select.above().total + select.ListMass(last);
    } else if (row_.min_p > 0.0f) {
      select.KeepAll();
      exchange_ = select.exchange();
      mass = select.above().total;
    } else {
      mass = Weigh(greatest, inverse_).total;
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
    const int first = part.FirstToken(0);
    const int end = part.FirstToken(part.chunks);
    const int i = static_cast<int>(threadIdx.x);
    const Candidate* const list = SharedSelect().list;
    Candidate listed{kLastKey, 0};
    if (i < select.list_count() && list[i].key <= last) listed = list[i];
    const int token = TokenOf(listed.key);
    const bool kept = listed.key != kLastKey;
    const bool mine = kept && token >= first && token < end;
    if (mine) {
      atomicAdd(reinterpret_cast<unsigned long long*>(&part.Mass()[(token - first) / kChunk]),
                static_cast<unsigned long long>(listed.mass));
    }
    Share share = select.above();
    share.total += BlockSum(WarpSum(listed.mass));
    __syncthreads();
    share.mine += BlockSum(WarpSum(mine ? listed.mass : uint64_t{0}));
    __syncthreads();
    share.before += BlockSum(WarpSum(kept && token < first ? listed.mass : uint64_t{0}));
    return {last, select.floor(), share};
  }

  // By inverse of the cumulative masses in the order of ids.
  __device__ void Draw(const Kept& kept, float greatest) {
    const Share& share = kept.share;
    const uint64_t target = UniformBelow(row_.seed, row_.index, share.total);
    if (target < share.before || target - share.before >= share.mine) return;
    __syncthreads();  // masses of chunks
    if (WarpIndex() == 0) PickChunk(target - share.before);
    __syncthreads();
    Walk(kept.last, kept.floor, greatest);
  }
  // The chunk in which the cumulative mass passes `rest`; by one warp.
  __device__ void PickChunk(uint64_t rest) {
    SelectScratch& s = SharedSelect();
    for (int base = 0; base < part_.chunks; base += 32) {
      const int chunk = base + LaneIndex();
      const uint64_t mass = chunk < part_.chunks ? part_.Mass()[chunk] : 0;
      const uint64_t prefix = WarpPrefix(mass);
      if (rest < prefix && rest >= prefix - mass) {
        s.pick_chunk = chunk;
        s.pick_rest = rest - (prefix - mass);
        s.pick_mass = mass;
      }
      const uint64_t all = __shfl_sync(~0u, prefix, 31);
      if (rest < all) return;
      rest -= all;
    }
  }
  // The token at the same share of the chunk's kept masses, taken relative to its greatest value.
  __device__ void Walk(uint64_t last, float floor, float greatest) {
    const Domain domain{.origin = greatest, .inverse = inverse_};
    SelectScratch& s = SharedSelect();
    const int chunk = s.pick_chunk;
    uint64_t mass[4] = {};
    for (int j = 0; j < 4 && threadIdx.x < kChunk / 4; ++j) {
      const int at = static_cast<int>(threadIdx.x) * 4 + j;
      const float value = part_.Value(chunk, at);
      const float scaled = domain.Scaled(value);
      if (scaled >= floor && KeyOf(scaled, part_.FirstToken(chunk) + at) <= last) {
        mass[j] = MassUnits(Exp2((value - part_.Greatest()[chunk]) * (inverse_ * kLog2E)));
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
    Store(part_.FirstToken(chunk) + static_cast<int>(threadIdx.x) * 4 + j);
  }

  // The first token of the greatest value, by the first block that has it.
  __device__ void FinishGreedy(float greatest) {
    const uint32_t blocks = __ballot_sync(~0u, key_of_block_ == key_);
    if (__ffs(static_cast<int>(blocks)) - 1 != team_.rank || WarpIndex() != 0) return;
    int chunk = 0;
    for (int base = 0;; base += 32) {
      const int i = base + LaneIndex();
      const bool here = i < part_.chunks && part_.Greatest()[i] == greatest;
      const uint32_t lanes = __ballot_sync(~0u, here);
      chunk = base + __ffs(static_cast<int>(lanes)) - 1;
      if (lanes != 0) break;
    }
    LaneChunk x;
    part_.Load(chunk, x);
    auto token = static_cast<uint32_t>(kChunk);
#pragma unroll
    for (int i = kLaneValues - 1; i >= 0; --i) {
      if (x.values[i] == greatest) token = static_cast<uint32_t>(LaneChunk::Token(i));
    }
    token = __reduce_min_sync(~0u, token);
    if (LaneIndex() == 0) Store(part_.FirstToken(chunk) + static_cast<int>(token));
  }
  __device__ void Store(int token) {
    SampleResult& result = p_.results[index_];
    result.token = token;
    result.status = SampleResult::kOk;
    result.top_count = top_;
    result.logprob = 0.0f;
    if (row_.forced_token >= 0 || row_.logprobs >= 0) {
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
  const Team<kCluster>& team_;
  Exchange<kCluster> exchange_;
  int index_;
  SampleRow row_;
  RowPart part_;
  int loaded_at_;  // in shared memory: [resident_chunks] barriers
  float inverse_ = 1.0f;
  uint32_t key_ = 0;           // of the greatest value
  uint32_t key_of_block_ = 0;  // of block `lane`'s
  int top_ = 0;
  double log_sum_ = 0.0;
};

}  // namespace lacuna::kernels::cuda
