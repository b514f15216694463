// Turns of round robin: heads name their best unit one after the other, then their second ones, and
// so on. A unit comes first at turn (its least rank over the heads), so that the units of the
// earliest turns are those that the heads agree on until the budget is full.
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/select/select_choice.cuh"
#include "kernels/cuda/select/select_choice.h"

namespace lacuna::kernels::cuda {
namespace {

constexpr int kSortMax = 8192;  // units that are sorted at once
constexpr uint32_t kNoTurn = ~0u;

// Grid: (owners, rows of the group).
__global__ void __launch_bounds__(kChooseThreads)
    ClearTurnsKernel(const __grid_constant__ SelectKeysCall call, uint32_t* turns) {
  WaitForPrevious();
  LetNextStart();
  const RowPlan plan = PlanRow(call, call.first_row + static_cast<int>(blockIdx.y));
  if (plan.act != RowPlan::Act::kChoose) return;
  uint32_t* to = turns + (int64_t{blockIdx.y} * call.owners + blockIdx.x) * call.units_stride;
  for (int unit = static_cast<int>(threadIdx.x); unit < plan.units; unit += kChooseThreads) {
    to[unit] = kNoTurn;
  }
}

// Of the units being sorted.
__device__ inline uint64_t* Ranks() { return reinterpret_cast<uint64_t*>(ChooseMemory()); }

// Bitonic: `count` ranks, a power of two, best first.
__device__ void SortRanks(int count) {
  uint64_t* ranks = Ranks();
  for (int run = 2; run <= count; run *= 2) {
    for (int step = run / 2; step > 0; step /= 2) {
      __syncthreads();
      for (int i = static_cast<int>(threadIdx.x); i < count / 2; i += kChooseThreads) {
        const int low = i / step * 2 * step + i % step, high = low + step;
        const bool descends = (low & run) == 0;
        const uint64_t a = ranks[low], b = ranks[high];
        if ((a < b) == descends) {
          ranks[low] = b;
          ranks[high] = a;
        }
      }
    }
  }
  __syncthreads();
}

// Ranks the units of one query head, the best `ranked_units_max` of them, in slices that fit into
// shared memory. Grid: (query rows, rows of the group).
__global__ void __launch_bounds__(kChooseThreads, 1)
    RankTurnsKernel(const __grid_constant__ SelectKeysCall call, uint32_t* turns, KeyCache cache) {
  __shared__ int sorted;
  WaitForPrevious();
  LetNextStart();
  const int head = static_cast<int>(blockIdx.x);
  const int row = call.first_row + static_cast<int>(blockIdx.y);
  const RowPlan plan = PlanRow(call, row);
  if (plan.act != RowPlan::Act::kChoose || HasWindow(call, row, head / call.heads)) return;
  const SelectRow what = call.rows[row];
  Cutter cutter;
  const KeyRow keys(KeyRow::Source::kScores, UnitScores(call, row, head), 2 * kSortMax, cache.keys);
  const UnitCutter units(call, what);
  const UnitSummary summary = units.Load(keys, cutter.block());
  const bool layer = call.path.owner == OwnerKind::kLayer;
  const int owner = layer ? 0 : head / call.heads;
  const uint32_t heads = static_cast<uint32_t>(layer ? call.query_rows : call.heads);
  const uint32_t place = static_cast<uint32_t>(layer ? head : head % call.heads);
  uint32_t* to = turns + (int64_t{blockIdx.y} * call.owners + owner) * call.units_stride;
  const int most = min(what.counts.ranked_units_max, summary.between.count());
  uint64_t above = kCutNone;  // ranks of earlier slices
  for (int begin = 0; begin < most; begin += kSortMax) {
    const int count = min(kSortMax, most - begin);
    int size = 2;
    while (size < count) size *= 2;
    for (int i = static_cast<int>(threadIdx.x); i < size; i += kChooseThreads) Ranks()[i] = 0;
    if (threadIdx.x == 0) sorted = 0;
    const uint64_t cut = cutter.CutOfCount(keys, summary.between, begin + count);
    __syncthreads();
    keys.ForEach(summary.between.first, summary.between.end,
                 [&](uint32_t key, int unit, bool valid) {
                   const uint64_t rank = RankOf(key, unit);
                   if (valid && rank >= cut && rank < above) Ranks()[atomicAdd(&sorted, 1)] = rank;
                 });
    SortRanks(size);
    for (int i = static_cast<int>(threadIdx.x); i < count; i += kChooseThreads) {
      const int unit = static_cast<int>(~static_cast<uint32_t>(Ranks()[i]));
      atomicMin(to + unit, static_cast<uint32_t>(begin + i) * heads + place);
    }
    above = cut;
    __syncthreads();
  }
}

}  // namespace

Status RankTurns(const SelectKeysCall& call, const ChooseScratch& scratch,
                 const DeviceTraits& traits, cudaStream_t stream) {
  const auto rows = static_cast<unsigned>(call.group_rows);
  LACUNA_RETURN_IF_ERROR(Launch(ClearTurnsKernel, dim3(static_cast<unsigned>(call.owners), rows),
                                dim3(kChooseThreads), 0, stream, call, scratch.turns));
  const KeyCache cache = CacheFor(traits, call.units_stride, kChooseStaticBytes,
                                  kSortMax * static_cast<int64_t>(sizeof(uint64_t)));
  LACUNA_CUDA_RETURN_IF_ERROR(cudaFuncSetAttribute(RankTurnsKernel,
                                                   cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   static_cast<int>(cache.bytes())));
  return Launch(RankTurnsKernel, dim3(static_cast<unsigned>(call.query_rows), rows),
                dim3(kChooseThreads), cache.bytes(), stream, call, scratch.turns, cache);
}

}  // namespace lacuna::kernels::cuda
