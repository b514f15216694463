// The choice for a row that asks for nothing but one of all its tokens: greedy, or drawn without
// top_k, top_p and min_p. A thread has a chunk, then four tokens of the drawn one. What counts is
// how little code that is: it runs once, and each line of it comes from far.
#pragma once

#include <cstdint>

#include "kernels/cuda/sample/sample_call.cuh"
#include "kernels/cuda/sample/sample_order.cuh"
#include "kernels/cuda/sample/sample_random.cuh"
#include "kernels/ops/sample.h"

namespace lacuna::kernels::cuda {

class PlainChoice final {
 public:
  // Of rows of up to kSampleThreads chunks.
  __device__ static bool Does(const SampleRow& row, const SampleParams& params) {
    const bool cuts = row.top_k > 0 || row.top_p < 1.0f || row.min_p > 0.0f;
    const bool whole = row.temperature == 0.0f || !cuts;
    return row.forced_token < 0 && row.logprobs < 0 && whole && params.all <= kSampleThreads;
  }

  __device__ PlainChoice(const SampleParams& params, const SampleRow& row, const RowPlan& plan)
      : p_(params), index_(static_cast<int>(blockIdx.y)), plan_(plan) {
    // A warp for itself, beside the others' way.
    if (plan_.draws && WarpIndex() == kSampleWarps - 1) {
      Shared().uniform = UniformBits(row.seed, row.index);
    }
  }

  __device__ __forceinline__ void Run() const {
    WaitForPrevious();
    const auto chunk = static_cast<int>(threadIdx.x);
    float greatest = -INFINITY;
    float sum = 0.0f;
    uint64_t key = kLastKey;
    if (chunk < p_.all) {
      const auto* const stats = reinterpret_cast<const float4*>(p_.stats) +
                                (static_cast<int64_t>(index_) * p_.all + chunk);
      const float4 four = __ldcg(stats);
      greatest = four.z;
      sum = four.w;
      key = four.x == INFINITY || four.z == INFINITY ? kBroken : KeyOf(greatest, chunk);
    }
    const uint64_t of_warp = WarpMin(key);
    if (LaneIndex() == 0) Shared().keys[WarpIndex()] = of_warp;
    __syncthreads();
    const uint64_t first =
        WarpMin(LaneIndex() < kSampleWarps ? Shared().keys[LaneIndex()] : kLastKey);
    const float top = ValueOf(first);
    if (first == kBroken || top == -INFINITY) {
      const auto status = first == kBroken ? SampleResult::kNotANumber : SampleResult::kImpossible;
      if (chunk == 0) StoreChoice(p_, index_, 0, status);
    } else if (plan_.draws) {
      Draw(greatest, sum, top);
    } else if (key == first) {
      StoreChoice(p_, index_, chunk * kChunk + static_cast<int>(__float_as_uint(sum)),
                  SampleResult::kOk);
    }
  }

 private:
  static constexpr uint64_t kBroken = 0;  // no key is 0

  struct Picked final {
    uint64_t rest;  // how far into the chunk
    uint64_t mass;  // of the chunk
    float greatest;
    int chunk;
  };
  struct Scratch final {
    uint64_t keys[kSampleWarps];
    uint64_t masses[kSampleWarps];
    uint64_t uniform;
    Picked picked;
  };
  __device__ static Scratch& Shared() { return *reinterpret_cast<Scratch*>(SharedMemory()); }

  // By inverse of the cumulative masses: first the chunk. `greatest`, `sum`: of this thread's.
  __device__ __forceinline__ void Draw(float greatest, float sum, float top) const {
    const bool here = static_cast<int>(threadIdx.x) < p_.all;
    const uint64_t mass = here ? MassOfChunk(sum, greatest, top, plan_.inverse) : 0;
    Scratch& s = Shared();
    const uint64_t of_warp = WarpSum(mass);
    if (LaneIndex() == 0) s.masses[WarpIndex()] = of_warp;
    __syncthreads();
    const uint64_t warps = LaneIndex() < kSampleWarps ? s.masses[LaneIndex()] : 0;
    uint64_t target = UniformBelow(s.uniform, WarpSum(warps));
    const uint64_t before = WarpSum(LaneIndex() < WarpIndex() ? warps : uint64_t{0});
    if (target >= before && target - before < of_warp) {
      target -= before;
      const uint64_t prefix = WarpPrefix(mass);
      const uint32_t passed = __ballot_sync(~0u, prefix > target);
      if (LaneIndex() == __ffs(static_cast<int>(passed)) - 1) {
        s.picked = {target - (prefix - mass), mass, greatest, static_cast<int>(threadIdx.x)};
      }
    }
    __syncthreads();
    Walk(s.picked, top);
  }
  // The token of the picked chunk at the same share of the masses taken relative to its greatest
  // value. A thread has four neighbours.
  __device__ __forceinline__ void Walk(const Picked& picked, float top) const {
    Scratch& s = Shared();
    const int first = static_cast<int>(threadIdx.x) * 4;
    const bool here = first < kChunk;
    float values[4] = {};
    uint64_t mass[4] = {};
    if (here) LoadNeighbours(picked.chunk, first, values);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float scaled = __fmul_rn(__fsub_rn(values[i], top), plan_.inverse);
      const float part = Exp2((values[i] - picked.greatest) * (plan_.inverse * kLog2E));
      if (here && scaled >= kLowest) mass[i] = MassUnits(part);
    }
    const uint64_t mine = mass[0] + mass[1] + mass[2] + mass[3];
    uint64_t prefix = WarpPrefix(mine);
    if (here && LaneIndex() == 31) s.keys[WarpIndex()] = prefix;
    __syncthreads();
    if (!here) return;
    const uint64_t warps = LaneIndex() < kChunk / 128 ? s.keys[LaneIndex()] : 0;
    prefix += WarpSum(LaneIndex() < WarpIndex() ? warps : uint64_t{0});
    const uint64_t target = SameShare(picked.rest, picked.mass, WarpSum(warps));
    uint64_t passed = prefix - mine;
    if (target >= prefix || target < passed) return;
    int at = 0;
#pragma unroll
    for (int i = 0; i < 3; ++i) {
      passed += mass[i];
      at += passed <= target ? 1 : 0;
    }
    StoreChoice(p_, index_, picked.chunk * kChunk + first + at, SampleResult::kOk);
  }
  __device__ __forceinline__ void LoadNeighbours(int chunk, int first, float (&values)[4]) const {
    const bool cut = (chunk + 1) * kChunk > p_.vocab;
    const float* from = p_.logits + index_ * p_.logits_stride + chunk * kChunk;
    if (cut) from = p_.tails + index_ * kChunk;
    if (plan_.changes) from = p_.changed + index_ * p_.changed_stride + chunk * kChunk;
    if (p_.aligned || plan_.changes || cut) {
      LoadFour(from + first, values);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) values[i] = from[first + i];
    }
  }

  const SampleParams& p_;
  const int index_;
  const RowPlan plan_;
};

}  // namespace lacuna::kernels::cuda
