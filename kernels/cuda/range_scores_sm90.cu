// The product of SelectRanges with wgmma: a persistent block makes 128 rows x 256 key rows at a
// time, two warpgroups of 64 rows, while one warp copies the tiles of the next steps.
//
// A step brings 48 KB for 4.2 MFLOP, so at 450 TFLOP/s the blocks read 5 TB/s from L2: hence the
// wide tile. Row tiles run fastest over the items, so that blocks that run at once share key tiles.
#include <algorithm>
#include <cstdint>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/range_fold.cuh"
#include "kernels/cuda/range_kernels.h"
#include "kernels/cuda/wgmma.cuh"

namespace lacuna::kernels::cuda {
namespace {

constexpr int kConsumers = 2;  // warpgroups
constexpr int kThreads = kConsumers * 128 + 32;
constexpr int kStages = 4;
constexpr int kTileBytes = kRangeTileRows * kRangeTileColumns * 2;
constexpr int kStageBytes = 3 * kTileBytes;  // queries, two tiles of keys
constexpr int kGroupStride = 8 * 128;        // of 8 rows

struct Shared final {
  alignas(1024) std::byte stages[kStages][kStageBytes];
  alignas(8) uint64_t full[kStages];
  uint64_t empty[kStages];
};
constexpr size_t kSharedBytes = sizeof(Shared) + 1024;  // to align it

// A tile of rows and a pair of key tiles.
struct Item final {
  int kv, row_tile, key_pair;
};
__device__ Item ItemOf(const RangeProduct& product, int index) {
  const int pairs = product.key_tiles / 2;
  const int row_tile = index % product.row_tiles;
  const int rest = index / product.row_tiles;
  return {rest / pairs, row_tile, rest % pairs};
}

// The last key row that some row of the tile sees; by a warp.
__device__ int LastVisible(const RangeWork& work, int row_tile) {
  int last = -1;
#pragma unroll
  for (int i = 0; i < kRangeTileRows; i += 32) {
    const int row = row_tile * kRangeTileRows + i + (static_cast<int>(threadIdx.x) & 31);
    if (row < work.members * work.product.rows) {
      last = max(last, work.visible[row % work.product.rows]);
    }
  }
  return __reduce_max_sync(~0u, last);
}

struct RingPlace final {
  int stage = 0;
  uint32_t parity = 0;
  __device__ void Advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

__device__ void Produce(const RangeWork& work, Shared& shared, int items) {
  const RangeProduct& product = work.product;
  const bool leads = (threadIdx.x & 31) == 0;
  RingPlace place;
  for (int index = static_cast<int>(blockIdx.x); index < items;
       index += static_cast<int>(gridDim.x)) {
    const Item item = ItemOf(product, index);
    if (LastVisible(work, item.row_tile) < 2 * item.key_pair * kRangeTileRows) continue;
    const auto* queries =
        static_cast<const std::byte*>(work.packed_queries) +
        (int64_t{item.kv} * product.row_tiles + item.row_tile) * product.steps * kTileBytes;
    const auto* keys =
        static_cast<const std::byte*>(work.packed_keys) +
        (int64_t{item.kv} * product.key_tiles + 2 * item.key_pair) * product.steps * kTileBytes;
    for (int step = 0; step < product.steps; ++step) {
      const uint32_t full = SharedAddress(&shared.full[place.stage]);
      if (leads) {
        BarrierWait(SharedAddress(&shared.empty[place.stage]), place.parity ^ 1);
        BarrierArriveExpect(full, kStageBytes);
        const uint32_t to = SharedAddress(shared.stages[place.stage]);
        BulkCopyToShared(to, queries + int64_t{step} * kTileBytes, kTileBytes, full);
        BulkCopyToShared(to + kTileBytes, keys + int64_t{step} * kTileBytes, kTileBytes, full);
        BulkCopyToShared(to + 2 * kTileBytes, keys + int64_t{product.steps + step} * kTileBytes,
                         kTileBytes, full);
      }
      place.Advance();
    }
  }
}

// One step of both key tiles: low, high += queries * keys.
template <typename T>
__device__ __forceinline__ void IssueStep(const std::byte* stage, int group, RangeLogits& low,
                                          RangeLogits& high) {
  const uint32_t at = SharedAddress(stage);
  const uint64_t a =
      SwizzledOperand(at + static_cast<uint32_t>(group * kTileBytes / 2), kGroupStride);
  const uint64_t b = SwizzledOperand(at + kTileBytes, kGroupStride);
  const uint64_t c = SwizzledOperand(at + 2 * kTileBytes, kGroupStride);
  WgmmaFence();
#pragma unroll
  for (int k = 0; k < kRangeTileColumns / 16; ++k) {
    const auto bytes = static_cast<uint32_t>(k * 32);
    WgmmaShared<T, true>(low, AdvanceOperand(a, bytes), AdvanceOperand(b, bytes));
    WgmmaShared<T, true>(high, AdvanceOperand(a, bytes), AdvanceOperand(c, bytes));
  }
  WgmmaCommit();
}

template <typename T>
__device__ void Consume(const RangeWork& work, Shared& shared, int items) {
  const RangeProduct& product = work.product;
  const int group = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 128, 0);
  const int warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 32, 0);
  const bool leads = (threadIdx.x & 31) == 0;
  RingPlace place;
  for (int index = static_cast<int>(blockIdx.x); index < items;
       index += static_cast<int>(gridDim.x)) {
    const Item item = ItemOf(product, index);
    const int last_visible = LastVisible(work, item.row_tile);
    const int key_tile = 2 * item.key_pair;
    if (last_visible < key_tile * kRangeTileRows) continue;
    const FoldRows rows = RowsOfWarp(work, item.kv, item.row_tile * kRangeTileRows + warp * 16);
    RangeLogits low, high;
#pragma unroll
    for (int i = 0; i < 64; ++i) low[i] = high[i] = 0.0f;
    Pin(low);
    Pin(high);
    int before = -1;  // stage of the step before, whose products may still run
    for (int step = 0; step < product.steps; ++step) {
      BarrierWait(SharedAddress(&shared.full[place.stage]), place.parity);
      IssueStep<T>(shared.stages[place.stage], group, low, high);
      WgmmaWait<1>();
      if (before >= 0 && leads) BarrierArrive(SharedAddress(&shared.empty[before]));
      before = place.stage;
      place.Advance();
    }
    WgmmaWait<0>();
    Pin(low);
    Pin(high);
    if (leads) BarrierArrive(SharedAddress(&shared.empty[before]));
    FoldTile<FoldKind::kBlocks>(work, low, key_tile, rows);
    if (last_visible >= (key_tile + 1) * kRangeTileRows) {
      FoldTile<FoldKind::kBlocks>(work, high, key_tile + 1, rows);
    }
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads, 1)
    ScoresSm90Kernel(const __grid_constant__ RangeWork work) {
  LACUNA_DYNAMIC_SHARED(1024, std::byte, memory);
  auto& shared =
      *reinterpret_cast<Shared*>(memory + ((1024 - (SharedAddress(memory) & 1023)) & 1023));
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      BarrierInit(SharedAddress(&shared.full[stage]), 1);
      BarrierInit(SharedAddress(&shared.empty[stage]), kConsumers * 4);
    }
    FenceBarrierInit();
  }
  __syncthreads();
  LetNextStart();
  WaitForPrevious();
  const int items = work.kvs * work.product.row_tiles * (work.product.key_tiles / 2);
  if (threadIdx.x >= kConsumers * 128) {
    Produce(work, shared, items);
  } else {
    Consume<T>(work, shared, items);
  }
}

template <typename T>
Status Run(const RangeWork& work, int sm_count, cudaStream_t stream) {
  const auto kernel = ScoresSm90Kernel<T>;
  LACUNA_CUDA_RETURN_IF_ERROR(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
  const int items = work.kvs * work.product.row_tiles * (work.product.key_tiles / 2);
  return Launch(kernel, dim3(static_cast<unsigned>(std::min(items, sm_count))), dim3(kThreads),
                kSharedBytes, stream, work);
}

}  // namespace

Status RangeScoresSm90(const RangeWork& work, DType dtype, int sm_count, cudaStream_t stream) {
  return dtype == DType::kF16 ? Run<__half>(work, sm_count, stream)
                              : Run<__nv_bfloat16>(work, sm_count, stream);
}

}  // namespace lacuna::kernels::cuda
