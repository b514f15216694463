// The product of SelectRanges with wgmma: a pair of persistent blocks makes 2 x 128 rows x 256 key
// rows at a time. A block has two warpgroups of 64 rows, and a warp that copies the tiles of the
// next steps.
//
// A step brings 48 KB for 4.2 MFLOP, at 700 TFLOP/s 8 TB/s, which is more than L2 gives: each block
// of a pair copies one of the two key tiles to both, which leaves 5.3 TB/s. Row tiles run fastest
// over the items, so that blocks that run at once share key tiles.
#include <algorithm>
#include <cstdint>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/ranges/range_fold.cuh"
#include "kernels/cuda/ranges/range_kernels.h"
#include "kernels/cuda/wgmma.cuh"

namespace lacuna::kernels::cuda {
namespace {

constexpr int kPair = 2;       // blocks that share key tiles: a cluster
constexpr int kConsumers = 2;  // warpgroups
constexpr int kThreads = (kConsumers + 1) * 128;
constexpr int kConsumerRegisters = 240, kProducerRegisters = 24;
constexpr int kStages = 4;
constexpr int kTileBytes = kRangeTileRows * kRangeTileColumns * 2;
constexpr int kStageBytes = 3 * kTileBytes;  // queries, two tiles of keys
constexpr int kGroupStride = 8 * 128;        // of 8 rows

struct Shared final {
  alignas(1024) std::byte stages[kStages][kStageBytes];
  alignas(8) uint64_t full[kStages];
  uint64_t empty[kStages];  // of both blocks, each of which writes into the stages of the other
};
constexpr size_t kSharedBytes = sizeof(Shared) + 1024;  // to align it

__host__ __device__ inline int RowPairs(const RangeProduct& product) {
  return (product.row_tiles + kPair - 1) / kPair;
}
__host__ __device__ inline int ItemCount(const RangeWork& work) {
  return work.kvs * RowPairs(work.product) * (work.product.key_tiles / 2);
}

// The last key row that some of the pair's rows see.
__device__ int LastVisible(const RangeWork& work, int row_pair) {
  const int rows = work.product.rows;
  const int begin = row_pair * kPair * kRangeTileRows;
  const int last = min(begin + kPair * kRangeTileRows, work.members * rows) - 1;
  return work.product.first_row + (last / rows == begin / rows ? last % rows : rows - 1);
}

// A tile of rows, which the second block may lack, and the first of a pair of key tiles.
struct Item final {
  int kv, row_tile, key_tile;
};

// Calls fn with the items of a pair of blocks of which some row sees some key: for both the same.
template <typename Fn>
__device__ __forceinline__ void ForItems(const RangeWork& work, int rank, Fn&& fn) {
  const int row_pairs = RowPairs(work.product), key_pairs = work.product.key_tiles / 2;
  const int items = ItemCount(work);
  for (int index = static_cast<int>(blockIdx.x) / kPair; index < items;
       index += static_cast<int>(gridDim.x) / kPair) {
    const int row_pair = index % row_pairs, rest = index / row_pairs;
    const int key_tile = rest % key_pairs * 2;
    if (LastVisible(work, row_pair) < key_tile * kRangeTileRows) continue;
    fn(Item{rest / key_pairs, row_pair * kPair + rank, key_tile});
  }
}

// A place in the ring of stages, with the addresses of what is there.
class Place final {
 public:
  __device__ explicit Place(const Shared& shared)
      : stages_(SharedAddress(shared.stages)),
        full_(SharedAddress(shared.full)),
        empty_(SharedAddress(shared.empty)) {}

  __device__ int index() const { return index_; }
  __device__ uint32_t parity() const { return parity_; }
  __device__ uint32_t stage() const {
    return stages_ + static_cast<uint32_t>(index_) * uint32_t{kStageBytes};
  }
  __device__ uint32_t full() const { return full_ + static_cast<uint32_t>(index_) * 8; }
  __device__ uint32_t empty(int index) const { return empty_ + static_cast<uint32_t>(index) * 8; }
  __device__ void Advance() {
    if (++index_ == kStages) {
      index_ = 0;
      parity_ ^= 1;
    }
  }

 private:
  uint32_t stages_, full_, empty_;
  int index_ = 0;
  uint32_t parity_ = 0;
};

// By one thread.
__device__ void Produce(const RangeWork& work, const Shared& shared, int rank) {
  const RangeProduct& product = work.product;
  Place place(shared);
  ForItems(work, rank, [&](const Item& item) {
    const int row_tile = min(item.row_tile, product.row_tiles - 1);
    const auto* queries =
        static_cast<const std::byte*>(work.packed_queries) +
        (int64_t{item.kv} * product.row_tiles + row_tile) * product.steps * kTileBytes;
    const auto* keys =  // of the tile that this block copies
        static_cast<const std::byte*>(work.packed_keys) +
        (int64_t{item.kv} * product.key_tiles + item.key_tile + rank) * product.steps * kTileBytes;
    for (int step = 0; step < product.steps; ++step) {
      BarrierWait(place.empty(place.index()), place.parity() ^ 1);
      BarrierArriveExpect(place.full(), kStageBytes);
      BulkCopyToShared(place.stage(), queries + int64_t{step} * kTileBytes, kTileBytes,
                       place.full());
      BulkCopyToCluster(place.stage() + static_cast<uint32_t>((1 + rank) * kTileBytes),
                        keys + int64_t{step} * kTileBytes, kTileBytes, place.full(),
                        (1 << kPair) - 1);
      place.Advance();
    }
  });
}

// One step: low, high (+)= queries * keys.
template <typename T>
__device__ __forceinline__ void IssueStep(uint32_t stage, int group, bool first, RangeLogits& low,
                                          RangeLogits& high) {
  const uint64_t a =
      SwizzledOperand(stage + static_cast<uint32_t>(group * kTileBytes / 2), kGroupStride);
  const uint64_t b = SwizzledOperand(stage + kTileBytes, kGroupStride);
  WgmmaFence();
#pragma unroll
  for (int k = 0; k < kRangeTileColumns / 16; ++k) {
    const auto bytes = static_cast<uint32_t>(k * 32);
    WgmmaSharedPair<T>(low, high, AdvanceOperand(a, bytes), AdvanceOperand(b, bytes),
                       !first || k > 0);
  }
  WgmmaCommit();
}

template <typename T>
__device__ void Consume(const RangeWork& work, const Shared& shared, int rank) {
  const int steps = work.product.steps;
  const int group = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 128, 0);
  const int warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 32, 0);
  const uint32_t lane = threadIdx.x & 31;
  Place place(shared);
  // Gives a stage back to both blocks.
  const auto release = [&](int stage) {
    if (lane < kPair) BarrierArriveAt(place.empty(stage), lane);
  };
  ForItems(work, rank, [&](const Item& item) {
    const FoldRows rows = RowsOfWarp(work, item.kv, item.row_tile * kRangeTileRows + warp * 16);
    RangeLogits low, high;
    int before = -1;  // stage of the step before, whose products may still run
    for (int step = 0; step < steps; ++step) {
      BarrierWait(place.full(), place.parity());
      IssueStep<T>(place.stage(), group, step == 0, low, high);
      WgmmaWait<1>();
      if (before >= 0) release(before);
      before = place.index();
      place.Advance();
    }
    WgmmaWait<0>();
    Pin(low);
    Pin(high);
    release(before);
    const int last = __reduce_max_sync(~0u, max(rows.visible[0], rows.visible[1]));
    if (last >= item.key_tile * kRangeTileRows) {
      FoldTile<FoldKind::kBlocks>(work, low, item.key_tile, rows);
    }
    if (last >= (item.key_tile + 1) * kRangeTileRows) {
      FoldTile<FoldKind::kBlocks>(work, high, item.key_tile + 1, rows);
    }
  });
}

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
    Consume<T>(work, shared, rank);
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
  const int pairs = std::min(ItemCount(work), std::max(sm_count / kPair, 1));
  return Launch(kernel, dim3(static_cast<unsigned>(pairs * kPair)), dim3(kThreads), kSharedBytes,
                stream, work);
}

}  // namespace

Status RangeScoresSm90(const RangeWork& work, DType dtype, int sm_count, cudaStream_t stream) {
  return dtype == DType::kF16 ? Run<__half>(work, sm_count, stream)
                              : Run<__nv_bfloat16>(work, sm_count, stream);
}

}  // namespace lacuna::kernels::cuda
