// The product of SelectRanges with wgmma: a pair of persistent blocks makes 2 x 128 rows x 256 key
// rows at a time. A block has two warpgroups, of one key tile each, and a warp that copies the
// tiles of the next steps.
//
// A step brings 48 KB for 4.2 MFLOP, at 700 TFLOP/s 8 TB/s, which is more than L2 gives: each block
// of a pair copies one of the two key tiles to both, which leaves 5.3 TB/s. Row tiles run fastest
// over the items, so that blocks that run at once share key tiles.
//
// A warpgroup folds while the products of the other run: the second one is half of the inner
// elements behind, so that it begins its sums in the middle and ends them there. The order of a
// sum depends on the key tile alone.
#include <algorithm>
#include <cstdint>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/range_fold.cuh"
#include "kernels/cuda/range_kernels.h"
#include "kernels/cuda/wgmma.cuh"

namespace lacuna::kernels::cuda {
namespace {

constexpr int kPair = 2;       // blocks that share key tiles: a cluster
constexpr int kConsumers = 2;  // warpgroups
constexpr int kThreads = (kConsumers + 1) * 128;
constexpr int kConsumerRegisters = 240, kProducerRegisters = 24;
constexpr int kStages = 4;
constexpr int kStripPairs = 4;  // of key tiles, which one item has at most
constexpr int kTileBytes = kRangeTileRows * kRangeTileColumns * 2;
constexpr int kGroupStride = 8 * 128;  // of 8 rows

struct Shared final {
  alignas(1024) std::byte stages[kStages][3 * kTileBytes];  // queries, two tiles of keys
  alignas(8) uint64_t full[kStages];
  uint64_t empty[kStages];  // of both blocks, each of which writes into the stages of the other
};
constexpr size_t kSharedBytes = sizeof(Shared) + 1024;  // to align it

__host__ __device__ inline int RowPairs(const RangeProduct& product) {
  return (product.row_tiles + kPair - 1) / kPair;
}
__host__ __device__ inline int Strips(const RangeProduct& product) {
  return (product.key_tiles / 2 + kStripPairs - 1) / kStripPairs;
}

// The last key row that some of the pair's rows see.
__device__ int LastVisible(const RangeWork& work, int row_pair) {
  const int rows = work.product.rows;
  const int begin = row_pair * kPair * kRangeTileRows;
  const int last = min(begin + kPair * kRangeTileRows, work.members * rows) - 1;
  return work.product.first_row + (last / rows == begin / rows ? last % rows : rows - 1);
}

// A tile of rows, which the second block may lack, and pairs of key tiles.
struct Item final {
  int kv, row_tile, key_tile, pairs;
};

// Calls fn with the items of a pair of blocks of which some row sees some key: for both the same.
template <typename Fn>
__device__ __forceinline__ void ForItems(const RangeWork& work, int rank, Fn&& fn) {
  const int row_pairs = RowPairs(work.product), strips = Strips(work.product);
  const int items = work.kvs * row_pairs * strips;
  for (int index = static_cast<int>(blockIdx.x) / kPair; index < items;
       index += static_cast<int>(gridDim.x) / kPair) {
    const int row_pair = index % row_pairs, rest = index / row_pairs;
    const int begin = rest % strips * kStripPairs;
    const int seen = LastVisible(work, row_pair) / (2 * kRangeTileRows) + 1;
    const int pairs = min(min(kStripPairs, seen - begin), work.product.key_tiles / 2 - begin);
    if (pairs > 0) fn(Item{rest / strips, row_pair * kPair + rank, 2 * begin, pairs});
  }
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

// By one thread. Each of the two streams of key tiles pauses for half a tile: the second before the
// item's first tile, the first behind its last.
__device__ void Produce(const RangeWork& work, Shared& shared, int rank) {
  const int steps = work.product.steps, delay = steps / 2;
  RingPlace place;
  ForItems(work, rank, [&](const Item& item) {
    const int row_tile = min(item.row_tile, work.product.row_tiles - 1);
    const auto* queries =
        static_cast<const std::byte*>(work.packed_queries) +
        (int64_t{item.kv} * work.product.row_tiles + row_tile) * steps * kTileBytes;
    // Of this block's stream, tile after tile.
    const auto* keys =
        static_cast<const std::byte*>(work.packed_keys) +
        (int64_t{item.kv} * work.product.key_tiles + item.key_tile + rank) * steps * kTileBytes;
    const int ring_steps = item.pairs * steps;
    for (int at = 0, step = 0; at < ring_steps + delay; ++at) {
      const uint32_t full = SharedAddress(&shared.full[place.stage]);
      const uint32_t to = SharedAddress(shared.stages[place.stage]);
      const bool first = at < ring_steps, second = at >= delay;
      BarrierWait(SharedAddress(&shared.empty[place.stage]), place.parity ^ 1);
      BarrierArriveExpect(full, static_cast<uint32_t>((1 + first + second) * kTileBytes));
      BulkCopyToShared(to, queries + int64_t{step} * kTileBytes, kTileBytes, full);
      if (rank == 0 ? first : second) {
        const int pair = (at - rank * delay) / steps;
        BulkCopyToCluster(to + static_cast<uint32_t>((1 + rank) * kTileBytes),
                          keys + (int64_t{pair} * 2 * steps + step) * kTileBytes, kTileBytes, full,
                          (1 << kPair) - 1);
      }
      place.Advance();
      if (++step == steps) step = 0;
    }
  });
}

// A warpgroup that multiplies and folds.
template <typename T>
class Consumer final {
 public:
  __device__ Consumer(const RangeWork& work, Shared& shared, int rank)
      : work_(work),
        shared_(shared),
        rank_(rank),
        group_(__shfl_sync(~0u, static_cast<int>(threadIdx.x) / 128, 0)) {}

  __device__ void Run() {
    const int warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 32 % 4, 0);
    const int steps = work_.product.steps, delay = steps / 2;
    ForItems(work_, rank_, [&](const Item& item) {
      const int first = item.row_tile * kRangeTileRows + warp * 16;
      const FoldRows upper = RowsOfWarp(work_, item.kv, first);
      const FoldRows lower = RowsOfWarp(work_, item.kv, first + kRangeTileRows / 2);
      if (group_ == 1) Skip(delay);
      for (int pair = 0; pair < item.pairs; ++pair) {
        RangeLogits a, b;
        Multiply(a, b);
        const int tile = item.key_tile + 2 * pair + group_;
        if (SomeSees(upper, tile)) FoldTile<FoldKind::kBlocks>(work_, a, tile, upper);
        if (SomeSees(lower, tile)) FoldTile<FoldKind::kBlocks>(work_, b, tile, lower);
      }
      if (group_ == 0) Skip(delay);
    });
  }

 private:
  __device__ static bool SomeSees(const FoldRows& rows, int tile) {
    return __any_sync(~0u, max(rows.visible[0], rows.visible[1]) >= tile * kRangeTileRows) != 0;
  }
  __device__ void WaitFull() const {
    BarrierWait(SharedAddress(&shared_.full[place_.stage]), place_.parity);
  }
  // Gives a stage back to both blocks.
  __device__ void Release(int stage) const {
    const uint32_t lane = threadIdx.x & 31;
    if (lane < kPair) BarrierArriveAt(SharedAddress(&shared_.empty[stage]), lane);
  }
  // Steps that hold nothing for this warpgroup.
  __device__ void Skip(int steps) {
    for (int step = 0; step < steps; ++step) {
      WaitFull();
      Release(place_.stage);
      place_.Advance();
    }
  }

  // One step: a, b += both halves of the queries * keys.
  __device__ __forceinline__ void IssueStep(RangeLogits& a, RangeLogits& b) const {
    const uint32_t at = SharedAddress(shared_.stages[place_.stage]);
    const uint64_t upper = SwizzledOperand(at, kGroupStride);
    const uint64_t lower = SwizzledOperand(at + kTileBytes / 2, kGroupStride);
    const uint64_t keys =
        SwizzledOperand(at + static_cast<uint32_t>((1 + group_) * kTileBytes), kGroupStride);
    WgmmaFence();
#pragma unroll
    for (int k = 0; k < kRangeTileColumns / 16; ++k) {
      const auto bytes = static_cast<uint32_t>(k * 32);
      WgmmaShared<T, true>(a, AdvanceOperand(upper, bytes), AdvanceOperand(keys, bytes));
      WgmmaShared<T, true>(b, AdvanceOperand(lower, bytes), AdvanceOperand(keys, bytes));
    }
    WgmmaCommit();
  }

  // The logits of a key tile with the upper and the lower 64 rows.
  __device__ __forceinline__ void Multiply(RangeLogits& a, RangeLogits& b) {
#pragma unroll
    for (int i = 0; i < 64; ++i) a[i] = b[i] = 0.0f;
    Pin(a);
    Pin(b);
    int before = -1;  // stage of the step before, whose products may still run
    for (int step = 0; step < work_.product.steps; ++step) {
      WaitFull();
      IssueStep(a, b);
      WgmmaWait<1>();
      if (before >= 0) Release(before);
      before = place_.stage;
      place_.Advance();
    }
    WgmmaWait<0>();
    Pin(a);
    Pin(b);
    Release(before);
  }

  const RangeWork& work_;
  Shared& shared_;
  const int rank_, group_;
  RingPlace place_;
};

template <typename T>
__global__ void __launch_bounds__(kThreads, 1) __cluster_dims__(kPair, 1, 1)
    ScoresSm90Kernel(const __grid_constant__ RangeWork work) {
  LACUNA_DYNAMIC_SHARED(1024, std::byte, memory);
  auto& shared =
      *reinterpret_cast<Shared*>(memory + ((1024 - (SharedAddress(memory) & 1023)) & 1023));
  if (threadIdx.x == 0) {
    for (int stage = 0; stage < kStages; ++stage) {
      BarrierInit(SharedAddress(&shared.full[stage]), 1);
      BarrierInit(SharedAddress(&shared.empty[stage]), kPair * kConsumers * 4);
    }
    FenceBarrierInit();
  }
  ClusterArrive();
  ClusterWait();
  LetNextStart();
  WaitForPrevious();
  const auto rank = static_cast<int>(ClusterRank());
  if (threadIdx.x < kConsumers * 128) {
    RegistersGrow<kConsumerRegisters>();
    Consumer<T>(work, shared, rank).Run();
  } else {
    RegistersShrink<kProducerRegisters>();
    if (threadIdx.x == kConsumers * 128) Produce(work, shared, rank);
    __syncwarp();
  }
  ClusterArrive();  // until here the other block may write into the stages and barriers of this one
  ClusterWait();
}

template <typename T>
Status Run(const RangeWork& work, int sm_count, cudaStream_t stream) {
  const auto kernel = ScoresSm90Kernel<T>;
  LACUNA_CUDA_RETURN_IF_ERROR(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes));
  const int items = work.kvs * RowPairs(work.product) * Strips(work.product);
  const int pairs = std::min(items, std::max(sm_count / kPair, 1));
  return Launch(kernel, dim3(static_cast<unsigned>(pairs * kPair)), dim3(kThreads), kSharedBytes,
                stream, work);
}

}  // namespace

Status RangeScoresSm90(const RangeWork& work, DType dtype, int sm_count, cudaStream_t stream) {
  return dtype == DType::kF16 ? Run<__half>(work, sm_count, stream)
                              : Run<__nv_bfloat16>(work, sm_count, stream);
}

}  // namespace lacuna::kernels::cuda
