// The second choice: among the tokens that the first one and the forced units left, by their
// probability within these. One thread block makes it for a (row, owner), or, where each query head
// chooses (union), for a (row, query row); the choices of heads are united in memory.
//
// Warps take equal runs of 64-token blocks. Candidates are numbered in the order of their tokens,
// so that equal ones rank as the reference has it.
#include <cmath>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/select/select_choice.cuh"
#include "kernels/cuda/select/select_refine.cuh"

namespace lacuna::kernels::cuda {
namespace {

constexpr int kBatch = 4;  // blocks whose logits are read together

class Refiner final {
 public:
  __device__ Refiner(const SelectKeysCall& call, const ChooseScratch& scratch, const RowPlan& plan,
                     int row, int round, int cache_at, int cache_keys)
      : call_(call),
        scratch_(scratch),
        plan_(plan),
        what_(call.rows[row]),
        row_(row),
        round_(round),
        united_(call.path.refine_reduce == ReduceKind::kUnion),
        owner_(united_ ? OwnerOf(call, round / call.heads) : round),
        cache_at_(cache_at),
        cache_keys_(cache_keys),
        keys_(scratch.keys +
              (int64_t{row - call.first_row} * scratch.rounds + round) * scratch.tokens_stride),
        survivors_(call, plan, what_, owner_) {
    const bool layer = call.path.owner == OwnerKind::kLayer;
    head_first_ = united_ ? round : layer ? 0 : owner_ * call.heads;
    head_end_ = united_ ? round + 1 : layer ? call.query_rows : head_first_ + call.heads;
    const int blocks = (plan.tokens + kMaskTokens - 1) / kMaskTokens;
    const int each = (blocks + kChooseWarps - 1) / kChooseWarps;
    begin_ = min(WarpId() * each, blocks);
    end_ = min(begin_ + each, blocks);
  }

  __device__ void Run() {
    LoadShifts();
    Number();
    Weigh();
    const KeyRow row(KeyRow::Source::kKeys, keys_, cache_at_, cache_keys_);
    Take(row, Cut(row));
  }

 private:
  __device__ static float* Shifts() { return reinterpret_cast<float*>(ChooseMemory()); }

  // The log of the sum of exponentials of each head's survivors; a barrier must follow.
  __device__ void LoadShifts() const {
    const int chunks = (plan_.tokens + kRefineChunkTokens - 1) / kRefineChunkTokens;
    for (int head = head_first_ + WarpId(); head < head_end_; head += kChooseWarps) {
      if (HasWindow(call_, row_, head / call_.heads)) continue;
      const float2* sums = SumsOf(call_, scratch_, row_, head);
      float max = -INFINITY, sum = 0.0f;
      for (int i = LaneId(); i < chunks; i += 32) max = fmaxf(max, sums[i].x);
#pragma unroll
      for (int step = 16; step > 0; step /= 2) {
        max = fmaxf(max, __shfl_xor_sync(kAllLanes, max, step));
      }
      for (int i = LaneId(); i < chunks; i += 32) {
        if (sums[i].y > 0) sum += sums[i].y * expf(sums[i].x - max);
      }
#pragma unroll
      for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
      if (LaneId() == 0) Shifts()[head - head_first_] = max + logf(sum);
    }
  }

  // Calls f(first, survivors of block first + lane) for this warp's blocks.
  template <typename F>
  __device__ void ForEachGroup(F&& f) const {
    for (int first = begin_; first < end_; first += 32) {
      const int block = first + LaneId();
      f(first, block < end_ ? survivors_.InBlock(block) : 0);
    }
  }
  // Of a block's units, those that compete, as bits of their first tokens.
  __device__ uint64_t Candidates(int block, uint64_t survivors) const {
    const int unit = call_.path.refine_unit_tokens;
    const uint64_t free = ~survivors_.forced.In(block * kMaskTokens);
    if (unit == 1) return survivors & free;
    uint64_t candidates = 0;
    for (int token = 0; token < kMaskTokens; token += unit) {
      if ((survivors & MaskBits(token, token + unit)) != 0) candidates |= uint64_t{1} << token;
    }
    return candidates & free;
  }

  // Where this warp's candidates begin, and how many there are.
  __device__ void Number() {
    uint32_t mine = 0;
    ForEachGroup([&](int first, uint64_t survivors) {
      if (survivors == 0) return;
      ++alive_;
      mine += static_cast<uint32_t>(__popcll(Candidates(first + LaneId(), survivors)));
    });
    const auto prefix = cutter_.block().PrefixOfWarps(__reduce_add_sync(kAllLanes, mine));
    next_ = static_cast<int>(prefix.before);
    domain_.end = static_cast<int>(prefix.total);
  }

  // Probabilities of all candidates, to keys; sums of masses.
  __device__ void Weigh() {
    int next = next_;
    uint64_t sums[3] = {0, 0, alive_};  // forced mass, mass of candidates
    uint32_t extremes[2] = {0, 0};      // ~least, greatest
    ForEachGroup([&](int first, uint64_t survivors) {
      uint32_t left = __ballot_sync(kAllLanes, survivors != 0);
      while (left != 0) {
        int at[kBatch];
        uint64_t alive[kBatch];
        float weights[kBatch][2];
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          at[i] = __ffs(static_cast<int>(left)) - 1;
          left &= left - 1;
          alive[i] = __shfl_sync(kAllLanes, survivors, max(at[i], 0));
          if (at[i] < 0) alive[i] = 0;
        }
        ReadWeights(first, at, alive, weights);
#pragma unroll
        for (int i = 0; i < kBatch; ++i) {
          if (at[i] >= 0) Place(first + at[i], alive[i], weights[i], next, sums, extremes);
        }
      }
    });
    cutter_.block().Max(extremes);
    cutter_.block().Sum(sums);
    domain_.key_min = ~extremes[0];
    domain_.key_max = extremes[1];
    forced_mass_ = sums[0];
    mass_ = sums[1];
    any_alive_ = sums[2] != 0;
  }

  // Of tokens lane and lane + 32 of each block of the batch.
  __device__ void ReadWeights(int first, const int (&at)[kBatch], const uint64_t (&alive)[kBatch],
                              float (&weights)[kBatch][2]) const {
#pragma unroll
    for (auto& pair : weights) pair[0] = pair[1] = 0.0f;
    const bool max = call_.path.refine_reduce == ReduceKind::kMax;
    int heads = 0;
    for (int head = head_first_; head < head_end_; ++head) {
      if (HasWindow(call_, row_, head / call_.heads)) continue;
      ++heads;
      const float* logits = LogitsOf(call_, scratch_, row_, head);
      const float shift = Shifts()[head - head_first_];
      float values[kBatch][2];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int token = LaneId() + 32 * half;
          const bool has = (alive[i] >> token & 1) != 0;
          values[i][half] = has ? logits[(first + at[i]) * kMaskTokens + token] : -INFINITY;
        }
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float& weight = weights[i][half];
          const float value = expf(values[i][half] - shift);
          weight = max ? fmaxf(weight, value) : weight + value;
        }
      }
    }
    if (call_.path.refine_reduce != ReduceKind::kMean) return;
#pragma unroll
    for (auto& pair : weights) {
      pair[0] /= static_cast<float>(heads);
      pair[1] /= static_cast<float>(heads);
    }
  }

  // Of units, at the lanes of their first tokens.
  __device__ void SumUnits(float (&weights)[2]) const {
    const int unit = call_.path.refine_unit_tokens;
    if (unit == 1) return;
#pragma unroll
    for (int step = 1; step < 16; step *= 2) {
      weights[0] += __shfl_xor_sync(kAllLanes, weights[0], step);
      weights[1] += __shfl_xor_sync(kAllLanes, weights[1], step);
    }
    if (unit == 16) return;
    weights[0] += weights[1];
    weights[0] += __shfl_xor_sync(kAllLanes, weights[0], 16);
  }
  // Id of the candidate at `token` of a block whose candidates are numbered from `next` on.
  __device__ static int IdOf(uint64_t candidates, int token, int next) {
    return next + __popcll(candidates & ((uint64_t{1} << token) - 1));
  }

  __device__ void Place(int block, uint64_t survivors, float (&weights)[2], int& next,
                        uint64_t (&sums)[3], uint32_t (&extremes)[2]) const {
    SumUnits(weights);
    const uint64_t candidates = Candidates(block, survivors);
    const uint64_t forced = survivors_.forced.In(block * kMaskTokens);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int token = LaneId() + 32 * half;
      if (token % call_.path.refine_unit_tokens != 0) continue;
      const float weight = weights[half];
      if ((forced >> token & 1) != 0) sums[0] += MassOf(weight);
      if ((candidates >> token & 1) == 0) continue;
      const uint32_t key = OrderKey(weight);
      const int id = IdOf(candidates, token, next);
      if (id < cache_keys_) {
        ChooseMemory()[cache_at_ + id] = key;
      } else {
        keys_[id] = key;
      }
      sums[1] += MassOf(ScoreOfKey(key));
      extremes[0] = max(extremes[0], ~key);
      extremes[1] = max(extremes[1], key);
    }
    next += __popcll(candidates);
  }

  __device__ uint64_t Cut(const KeyRow& row) {
    int count = what_.counts.refine_units;
    uint64_t cut = 0;
    bool cuts = false;  // `cut` is that of `count`
    if (call_.path.refine == RefineKind::kTopP) {
      const bool keep_first = what_.counts.sink_units + what_.counts.local_units == 0;
      const MassWalk walk{forced_mass_, mass_, what_.refine_p, call_.path.refine_inclusive,
                          keep_first};
      cuts = CutOfMass(row, domain_, cutter_, walk, count, cut);
    }
    const int limited = min(max(count, what_.counts.refine_units_min), domain_.count());
    if (cuts && limited == count) return cut;
    return cutter_.CutOfCount(row, domain_, limited);
  }

  // To memory: masks of what is taken, and the share of the mass.
  __device__ void Take(const KeyRow& row, uint64_t cut) {
    const int unit = call_.path.refine_unit_tokens;
    const uint64_t whole = unit == kMaskTokens ? ~uint64_t{0} : (uint64_t{1} << unit) - 1;
    uint64_t* to = RefinedOf(call_, scratch_, row_, owner_);
    int next = next_;
    uint64_t held[1] = {0};
    ForEachGroup([&](int first, uint64_t survivors) {
      uint32_t left = __ballot_sync(kAllLanes, survivors != 0);
      for (; left != 0; left &= left - 1) {
        const int at = __ffs(static_cast<int>(left)) - 1, block = first + at;
        const uint64_t candidates = Candidates(block, __shfl_sync(kAllLanes, survivors, at));
        uint64_t taken = 0;  // bits of first tokens
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int token = LaneId() + 32 * half;
          bool takes = false;
          if ((candidates >> token & 1) != 0) {
            const int id = IdOf(candidates, token, next);
            const uint32_t key = row.Key(id);
            takes = cut != kCutNone && RankOf(key, id) >= cut;
            if (takes) held[0] += MassOf(ScoreOfKey(key));
          }
          taken |= uint64_t{__ballot_sync(kAllLanes, takes)} << 32 * half;
        }
        next += __popcll(candidates);
        if (LaneId() != 0 || taken == 0) continue;
        atomicOr(reinterpret_cast<unsigned long long*>(to + block),
                 static_cast<unsigned long long>(taken * whole));
      }
    });
    if (call_.stats == nullptr) return;
    cutter_.block().Sum(held);
    if (threadIdx.x != 0) return;
    const double all = static_cast<double>(forced_mass_ + mass_);
    const double share = all > 0 ? static_cast<double>(forced_mass_ + held[0]) / all : 0.0;
    scratch_.shares[int64_t{row_ - call_.first_row} * scratch_.rounds + round_] =
        any_alive_ ? static_cast<float>(share) : 1.0f;
  }

  const SelectKeysCall& call_;
  const ChooseScratch& scratch_;
  const RowPlan plan_;
  const SelectRow what_;
  const int row_, round_;
  const bool united_;  // one of the choices that make up an owner's
  const int owner_;
  const int cache_at_, cache_keys_;
  uint32_t* const keys_;
  const Survivors survivors_;
  Cutter cutter_;
  int head_first_, head_end_;  // query rows
  int begin_, end_;            // blocks of this warp
  int next_ = 0;               // its first candidate
  uint64_t alive_ = 0;         // blocks of this lane with survivors
  CutDomain domain_;
  uint64_t forced_mass_ = 0, mass_ = 0;
  bool any_alive_ = false;
};

// Grid: (rounds, rows of the group).
__global__ void __launch_bounds__(kChooseThreads, 1)
    RefineKernel(const __grid_constant__ SelectKeysCall call,
                 const __grid_constant__ ChooseScratch scratch, KeyCache cache) {
  WaitForPrevious();
  LetNextStart();
  const int round = static_cast<int>(blockIdx.x);
  const int row = call.first_row + static_cast<int>(blockIdx.y);
  const RowPlan plan = PlanRow(call, row);
  const bool chooses = call.path.refine_reduce == ReduceKind::kUnion
                           ? !HasWindow(call, row, round / call.heads)
                           : OwnerChooses(call, row, round);
  if (plan.act != RowPlan::Act::kChoose || !chooses) return;
  Refiner(call, scratch, plan, row, round, cache.beside_bytes / 4, cache.keys).Run();
}

}  // namespace

Status RefineChoices(const SelectKeysCall& call, const ChooseScratch& scratch,
                     const DeviceTraits& traits, cudaStream_t stream) {
  const int64_t heads = call.path.refine_reduce == ReduceKind::kUnion ? 1
                        : call.path.owner == OwnerKind::kLayer        ? call.query_rows
                                                                      : call.heads;
  const KeyCache cache = CacheFor(traits, scratch.tokens_stride / call.path.refine_unit_tokens,
                                  kChooseStaticBytes, (heads * 4 + 127) / 128 * 128);
  LACUNA_CUDA_RETURN_IF_ERROR(cudaFuncSetAttribute(
      RefineKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(cache.bytes())));
  return Launch(RefineKernel,
                dim3(static_cast<unsigned>(scratch.rounds), static_cast<unsigned>(call.group_rows)),
                dim3(kChooseThreads), cache.bytes(), stream, call, scratch, cache);
}

}  // namespace lacuna::kernels::cuda
