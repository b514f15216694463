// The choice for a row that is cut by a top_p alone, from the Candidates of its chunks, by one
// block: without its logits, and without other blocks to wait for. Where the Candidates have less
// mass than is wanted, or are too many, it is for a RowSampler, which finds the same token.
//
// A warp has neighbouring chunks, a lane one of them, or a token of each. A histogram of masses
// tells where the cut lies, as in a Selector.
#pragma once

#include <cstdint>

#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/sample/sample_call.cuh"
#include "kernels/cuda/sample/sample_candidates.cuh"
#include "kernels/cuda/sample/sample_random.cuh"
#include "kernels/cuda/sample/sample_select.cuh"
#include "kernels/ops/sample.h"

namespace lacuna::kernels::cuda {

constexpr int kLikelyBins = 2 * kSampleThreads;

struct alignas(16) LikelyScratch final {
  SelectScratch select;
  uint32_t bins[kLikelyBins + 32];  // behind: for what is in none, a lane each
  uint64_t masses[kSampleWarps];
  uint64_t kept[kSampleWarps];
  uint64_t of_chunk[32];  // what is kept, of the chunks of one warp
  uint64_t uniform;
  uint32_t tops[kSampleWarps];
  uint32_t floors[kSampleWarps];
  int more[kSampleWarps];
  int first_more[kSampleThreads];  // of each chunk, among those behind the first kCandidates
  int count[kSampleThreads];       // of each chunk
  float greatest[kSampleThreads];
};
__device__ inline LikelyScratch& SharedLikely() {
  return *reinterpret_cast<LikelyScratch*>(SharedMemory());
}
// Behind it, SampleParams::likely_max: [all, kCandidates], then the others.
__device__ inline Gathered* LikelyTokens() {
  return reinterpret_cast<Gathered*>(SharedMemory() + sizeof(LikelyScratch));
}

class LikelyChoice final {
 public:
  __device__ LikelyChoice(const SampleParams& params, const SampleRow& row, const RowPlan& plan)
      : p_(params),
        index_(static_cast<int>(blockIdx.y)),
        top_p_(row.top_p),
        each_((params.all + kSampleWarps - 1) / kSampleWarps),
        plan_(plan) {
    LikelyScratch& l = SharedLikely();
    if (WarpIndex() == kSampleWarps - 1) l.uniform = UniformBits(row.seed, row.index);
    l.bins[threadIdx.x] = 0;
    l.bins[threadIdx.x + kSampleThreads] = 0;
    if (threadIdx.x == 0) {
      l.select.low = kBins;
      l.select.high = kBins;
      l.select.cursor = 0;
    }
  }

  // Calls tell(enough), once, as soon as it knows that the Candidates are enough, or not. False
  // where a RowSampler has to do it: where they are not, and where the cut goes through too many
  // like tokens. Nothing has been stored then.
  template <typename Tell>
  __device__ __forceinline__ bool Run(const Tell& tell) {
    WaitForPrevious();
    const CandidateRow candidates(p_, index_);
    CopyFirst(candidates);
    const uint64_t mass = TakeChunks(candidates);
    if (broken_ || top_ == -INFINITY) {
      tell(true);
      const auto status = broken_ ? SampleResult::kNotANumber : SampleResult::kImpossible;
      if (threadIdx.x == 0) StoreChoice(p_, index_, 0, status);
      return true;
    }
    const Goal goal{.wanted = WantedOf(mass, top_p_), .total = mass};
    Domain domain{.origin = top_, .inverse = plan_.inverse};
    // Tokens that scale to the same as floor_ may be missing.
    const float complete = FromAscending(Ascending(domain.Scaled(floor_)) + 1);
    domain.floor = fmaxf(fmaxf(kLowest, goal.FloorOfMass(p_.vocab)), complete);
    Range range{INFINITY, domain.floor};
    const bool enough = floor_ < top_ && HasRoom() && FindRange(goal, domain, range);
    tell(enough);
    return enough && Choose(goal, domain, range);
  }

 private:
  // ---- What the first launch has left of the chunks ----

  __device__ int ChunkOf(int warp, int place) const { return warp * each_ + place; }

  // The first Candidates of all chunks, on their way to shared memory.
  static constexpr bool kBulk = kHasClusters;
  __device__ __forceinline__ void CopyFirst(const CandidateRow& candidates) const {
    LikelyScratch& l = SharedLikely();
    const int count = p_.all * kCandidates;
    if constexpr (kBulk) {
      const uint32_t barrier = SharedAddress(&l.select.copied);
      const auto bytes = static_cast<uint32_t>(count * static_cast<int>(sizeof(Gathered)));
      if (threadIdx.x == 0) {
        BarrierInit(barrier, 1);
        FenceBarrierInit();
        BarrierArriveExpect(barrier, bytes);
        BulkCopyToShared(SharedAddress(LikelyTokens()), candidates.first, bytes, barrier);
      }
    } else {
#pragma unroll 4
      for (int i = static_cast<int>(threadIdx.x) * 2; i < count; i += 2 * kSampleThreads) {
        AsyncCopy16(SharedAddress(LikelyTokens() + i), candidates.first + i);
      }
    }
  }
  // After a barrier of the block behind CopyFirst; before one that lets others read.
  __device__ __forceinline__ void WaitForCopies() const {
    AsyncCopyCommit();
    AsyncCopyWait<0>();
    if constexpr (kBulk) BarrierWait(SharedAddress(&SharedSelect().copied), 0);
  }
  // Those of the lanes' chunks behind the first kCandidates, `more` of each, to `first` on.
  __device__ __forceinline__ void CopyMore(const CandidateRow& candidates, int first,
                                           int more) const {
    Gathered* const tokens = LikelyTokens();
#pragma unroll 1
    for (uint32_t lanes = __ballot_sync(~0u, more > 0); lanes != 0; lanes &= lanes - 1) {
      const int lane = __ffs(static_cast<int>(lanes)) - 1;
      const int count = __shfl_sync(~0u, more, lane);
      const int to = __shfl_sync(~0u, first, lane);
      const Gathered* const from = candidates.More(ChunkOf(WarpIndex(), lane));
#pragma unroll 1
      for (int i = LaneIndex(); i < count; i += 32) {
        AsyncCopy8(SharedAddress(tokens + to + i), from + i);
      }
    }
  }

  // Takes the greatest values and floors of all chunks, and the other Candidates. Returns the row's
  // mass; ends with a barrier of the block, behind which all that has been copied is there.
  __device__ __forceinline__ uint64_t TakeChunks(const CandidateRow& candidates) {
    LikelyScratch& l = SharedLikely();
    const int chunk = ChunkOf(WarpIndex(), LaneIndex());
    const bool here = LaneIndex() < each_ && chunk < p_.all;
    float4 stats{-INFINITY, 0.0f, -INFINITY, 0.0f};
    if (here) {
      stats = __ldcg(reinterpret_cast<const float4*>(p_.stats) +
                     (static_cast<int64_t>(index_) * p_.all + chunk));
    }
    const int more = max(__float_as_int(stats.y) - kCandidates, 0);
    const int through = WarpPrefix(more);
    const bool broken = stats.x == INFINITY || stats.z == INFINITY;
    const uint32_t most = __reduce_max_sync(~0u, broken ? ~0u : Ascending(stats.z));
    const uint32_t floor = __reduce_max_sync(~0u, Ascending(stats.x));
    if (LaneIndex() == 31) {
      l.tops[WarpIndex()] = most;
      l.floors[WarpIndex()] = floor;
      l.more[WarpIndex()] = through;
    }
    __syncthreads();
    const int from = LaneIndex() % kSampleWarps;
    const uint32_t top = __reduce_max_sync(~0u, l.tops[from]);
    broken_ = top == ~0u;
    top_ = FromAscending(top);
    floor_ = FromAscending(__reduce_max_sync(~0u, l.floors[from]));
    const int of_warp = LaneIndex() < kSampleWarps ? l.more[from] : 0;
    const int before = WarpSum(LaneIndex() < WarpIndex() ? of_warp : 0);
    begin_ = p_.all * kCandidates + before;
    end_ = begin_ + __shfl_sync(~0u, of_warp, WarpIndex());
    tokens_ = p_.all * kCandidates + WarpSum(of_warp);
    if (HasRoom()) CopyMore(candidates, begin_ + through - more, more);
    if (here) {
      l.first_more[chunk] = begin_ + through - more;
      l.count[chunk] = __float_as_int(stats.y);
      l.greatest[chunk] = stats.z;
    }
    const uint64_t mass = here ? MassOfChunk(stats.w, stats.z, top_, plan_.inverse) : 0;
    const uint64_t masses = WarpSum(mass);
    if (LaneIndex() == 0) l.masses[WarpIndex()] = masses;
    WaitForCopies();
    __syncthreads();
    return WarpSum(LaneIndex() < kSampleWarps ? l.masses[from] : uint64_t{0});
  }
  __device__ bool HasRoom() const { return tokens_ <= p_.likely_max; }

  // ---- Where the cut is ----

  // Calls f with some tokens of each lane at a time, until it has had all of the warp's chunks, and
  // -inf where there are none.
  template <typename F>
  __device__ __forceinline__ void ForMine(const F& f) const {
    constexpr int kBatch = 4;
    const Gathered* const tokens = LikelyTokens() + LaneIndex();
    const int end = min(ChunkOf(WarpIndex() + 1, 0), p_.all);
#pragma unroll 1
    for (int chunk = ChunkOf(WarpIndex(), 0); chunk < end; chunk += kBatch) {
      Gathered batch[kBatch];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        batch[i] = {-INFINITY, 0};
        if (chunk + i < end) batch[i] = tokens[(chunk + i) * kCandidates];
      }
      f(batch);
    }
#pragma unroll 1
    for (int i = begin_; i < end_; i += 32) {
      Gathered one[1] = {{-INFINITY, 0}};
      if (i + LaneIndex() < end_) one[0] = tokens[i];
      f(one);
    }
  }

  // The range of the tokens among which the cut is. False where the Candidates have too little
  // mass, or the range too many of them.
  __device__ __forceinline__ bool FindRange(const Goal& goal, const Domain& domain,
                                            Range& range) const {
    LikelyScratch& l = SharedLikely();
    const Bins bins(domain.floor, kLikelyBins);
    BuildBins(domain, bins, goal.Shift());
    const bool few =
        PickMassBins<2>(goal, bins, {l.bins[threadIdx.x * 2], l.bins[threadIdx.x * 2 + 1]},
                        static_cast<uint32_t>(tokens_), range);
    // `sums` are those of PickMassBins.
    const uint32_t mass =
        __reduce_add_sync(~0u, LaneIndex() < kSampleWarps ? l.select.sums[LaneIndex()] : 0u);
    return few && static_cast<int>(mass) >= goal.WantedPart() + kSlack;
  }
  // False when the range has too many tokens after all.
  __device__ __forceinline__ bool Choose(const Goal& goal, const Domain& domain,
                                         const Range& range) const {
    const uint64_t above = Collect(domain, range);
    const int listed = SharedSelect().cursor;
    if (listed > kListMax) return false;
    Draw(domain, above, listed, Ranked(goal, listed, 0, above));
    return true;
  }

  // The masses of the tokens in the domain times 2^shift, to the histogram.
  __device__ __forceinline__ void BuildBins(const Domain& domain, const Bins& bins,
                                            float shift) const {
    LikelyScratch& l = SharedLikely();
    const auto nowhere = static_cast<uint32_t>(kLikelyBins + LaneIndex());
    ForMine([&]<int kCount>(const Gathered(&batch)[kCount]) {
      uint32_t bin[kCount];
      uint32_t mass[kCount];
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const float scaled = domain.Scaled(batch[i].value);
        bin[i] = scaled >= domain.floor ? bins.Of(scaled) : nowhere;
        mass[i] = static_cast<uint32_t>(Exp2(fmaf(scaled, kLog2E, shift)));
      }
#pragma unroll
      for (int i = 0; i < kCount; ++i) atomicAdd(&l.bins[bin[i]], mass[i]);
    });
    __syncthreads();
  }

  // The tokens in the range to the list; returns the mass of those above it, which are kept.
  __device__ __forceinline__ uint64_t Collect(const Domain& domain, const Range& range) const {
    LikelyScratch& l = SharedLikely();
    SelectScratch& s = l.select;
    uint64_t above = 0;
    ForMine([&]<int kCount>(const Gathered(&batch)[kCount]) {
      float scaled[kCount];
      uint64_t mass[kCount];
      bool any = false;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        scaled[i] = domain.Scaled(batch[i].value);
        mass[i] = MassUnits(MassOf(scaled[i]));
        const bool kept = scaled[i] >= range.above;
        above += kept ? mass[i] : 0;
        any = any || (!kept && scaled[i] >= range.least);
      }
      if (!any) return;  // few are listed
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        if (scaled[i] >= range.above || !(scaled[i] >= range.least)) continue;
        const int at = SharedTake(&s.cursor);
        if (at < kListMax) s.list[at] = {KeyOf(scaled[i], batch[i].token), mass[i]};
      }
    });
    above = WarpSum(above);
    if (LaneIndex() == 0) l.kept[WarpIndex()] = above;
    __syncthreads();
    return WarpSum(LaneIndex() < kSampleWarps ? l.kept[LaneIndex()] : 0);
  }

  // ---- The draw ----

  // By inverse of the cumulative masses in the order of ids: first the warp, of which l.kept has
  // what is `above` the list, then its chunk, then the token.
  __device__ __forceinline__ void Draw(const Domain& domain, uint64_t above, int listed,
                                       uint64_t last) const {
    LikelyScratch& l = SharedLikely();
    const int first_token = ChunkOf(WarpIndex(), 0) * kChunk;
    const int end_token = ChunkOf(WarpIndex() + 1, 0) * kChunk;
    uint64_t all = 0;
    uint64_t of_warp = 0;
#pragma unroll 1
    for (int i = LaneIndex(); i < listed; i += 32) {  // every warp the whole list: no barrier
      const Candidate token = l.select.list[i];
      const uint64_t mass = token.key <= last ? token.mass : 0;
      const int id = TokenOf(token.key);
      all += mass;
      of_warp += id >= first_token && id < end_token ? mass : 0;
    }
    of_warp = WarpSum(of_warp);
    uint64_t target = UniformBelow(l.uniform, above + WarpSum(all));
    if (LaneIndex() == 0) l.kept[WarpIndex()] += of_warp;
    __syncthreads();
    const int warp = PickLane(LaneIndex() < kSampleWarps ? l.kept[LaneIndex()] : 0, target);
    WeighChunks(domain, warp, last);
    __syncthreads();
    const uint64_t mass = l.of_chunk[LaneIndex()];
    const int lane = PickLane(mass, target);
    Walk(domain, ChunkOf(warp, lane), target, __shfl_sync(~0u, mass, lane), last);
  }
  // The first lane with which the masses of the lanes pass `target`, which becomes what it is into
  // that lane's.
  __device__ static __forceinline__ int PickLane(uint64_t mass, uint64_t& target) {
    const uint64_t through = WarpPrefix(mass);
    const int lane = __ffs(static_cast<int>(__ballot_sync(~0u, target < through))) - 1;
    target -= __shfl_sync(~0u, through - mass, lane);
    return lane;
  }
  __device__ static bool IsKept(const Domain& domain, const Gathered& token, uint64_t last) {
    const float scaled = domain.Scaled(token.value);
    return scaled >= domain.floor && KeyOf(scaled, token.token) <= last;
  }
  __device__ static Gathered Token(int chunk, int i) {
    const LikelyScratch& l = SharedLikely();
    return LikelyTokens()[i < kCandidates ? chunk * kCandidates + i
                                          : l.first_more[chunk] + (i - kCandidates)];
  }
  // The kept masses of that warp's chunks.
  __device__ __forceinline__ void WeighChunks(const Domain& domain, int warp, uint64_t last) const {
    LikelyScratch& l = SharedLikely();
#pragma unroll 1
    for (int i = WarpIndex(); i < 32; i += kSampleWarps) {
      const int chunk = ChunkOf(warp, i);
      const int count = i < each_ && chunk < p_.all ? l.count[chunk] : 0;
      uint64_t mass = 0;
#pragma unroll 1
      for (int j = LaneIndex(); j < count; j += 32) {
        const Gathered token = Token(chunk, j);
        if (IsKept(domain, token, last)) mass += MassUnits(MassOf(domain.Scaled(token.value)));
      }
      mass = WarpSum(mass);
      if (LaneIndex() == 0) l.of_chunk[i] = mass;
    }
  }
  // The token at the same share of the chunk's kept masses, taken relative to its greatest value,
  // as `rest` is of `of_chunk`.
  __device__ __forceinline__ void Walk(const Domain& domain, int chunk, uint64_t rest,
                                       uint64_t of_chunk, uint64_t last) const {
    LikelyScratch& l = SharedLikely();
    Candidate* const list = l.select.list;
    static_assert(kCandidatesMax <= kListMax);
    const int count = l.count[chunk];
    const auto i = static_cast<int>(threadIdx.x);
    if (i < count) {
      const Gathered token = Token(chunk, i);
      const float part = Exp2((token.value - l.greatest[chunk]) * (plan_.inverse * kLog2E));
      list[i] = {static_cast<uint64_t>(token.token),
                 IsKept(domain, token, last) ? MassUnits(part) : 0};
    }
    __syncthreads();
    uint64_t total = 0;
#pragma unroll 1
    for (int j = LaneIndex(); j < count; j += 32) total += list[j].mass;
    const uint64_t target = SameShare(rest, of_chunk, WarpSum(total));
    Compare(count, [&](int j, uint32_t /*tokens*/, uint64_t before) {
      if (before <= target && target < before + list[j].mass) {
        StoreChoice(p_, index_, static_cast<int>(list[j].key), SampleResult::kOk);
      }
    });
  }

  const SampleParams& p_;
  const int index_;
  const float top_p_;
  const int each_;  // chunks of a warp
  const RowPlan plan_;
  bool broken_ = false;  // NaN or +inf among the logits
  float top_ = 0.0f;     // the row's greatest value
  float floor_ = 0.0f;   // all tokens above are among the Candidates
  int tokens_ = 0;       // Candidates, and places without one
  int begin_ = 0;        // of the warp's chunks, those behind the first kCandidates of each
  int end_ = 0;
};

}  // namespace lacuna::kernels::cuda
