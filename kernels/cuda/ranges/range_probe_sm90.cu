// Both passes of probes over the keys with wgmma: each row's sums (range_fold.cuh), and of
// vertical_slash the sums of columns and diagonals (range_spread.cuh).
//
// Of heads of 128 channels a product is as long as the exponentials of its logits, so each must
// hide behind the other. A persistent block has 256 rows, which stay in shared memory, and a strip
// of keys, of which one warp copies tile after tile; two warpgroups have 128 rows each. In the
// first pass a warpgroup folds 64 of its rows while the product of the other 64 runs; in the
// second, whose sums leave no registers for that, the warpgroups take turns. Row tiles run fastest
// over the items, so that blocks that run at once share keys.
#include <algorithm>
#include <cstdint>

#include "kernels/core/checked_math.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/ranges/range_fold.cuh"
#include "kernels/cuda/ranges/range_kernels.h"
#include "kernels/cuda/ranges/range_spread.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace lacuna::kernels::cuda {
namespace {

constexpr int kGroups = 2;  // warpgroups
constexpr int kThreads = kGroups * 128 + 32;
constexpr int kStagesMax = 10;
constexpr int kTileBytes = kRangeTileRows * kRangeTileColumns * 2;
constexpr int kGroupStride = 8 * 128;  // of 8 rows
constexpr int kStripTiles = kRangeStripTokens / kRangeTileRows;

// In this order: the queries' tiles [groups][steps], the ring of the keys' [stages], then this.
struct Shared final {
  float scratch[kGroups][kSpreadScratch];
  alignas(8) uint64_t full[kStagesMax];
  uint64_t empty[kStagesMax];
  uint64_t queries_full, queries_empty;
};

constexpr int64_t kFixedBytes = sizeof(Shared) + 1024;  // 1024 to align it
// How many stages fit; at least as many as a tile of keys has steps.
int StagesOf(int steps, int64_t shared_bytes) {
  const int64_t left = shared_bytes - kFixedBytes - int64_t{kGroups} * steps * kTileBytes;
  return static_cast<int>(std::clamp<int64_t>(left / kTileBytes, steps, kStagesMax));
}

struct Place final {
  int stage = 0;
  uint32_t parity = 0;
  __device__ void Advance(int stages) {
    if (++stage == stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// What all warps of the block know.
class Block final {
 public:
  __device__ Block(const RangeWork& work, std::byte* memory, int stages)
      : work_(work),
        stages_(stages),
        queries_(memory),
        ring_(queries_ + kGroups * work.product.steps * kTileBytes),
        shared_(*reinterpret_cast<Shared*>(ring_ + stages * kTileBytes)) {}

  // Gives the block's items that see some key: kv, pair of row tiles, tiles of keys [begin, end).
  template <typename Fn>
  __device__ void ForItems(Fn&& fn) const {
    const RangeProduct& product = work_.product;
    const int pairs = (product.row_tiles + kGroups - 1) / kGroups;
    const int items = work_.kvs * pairs * work_.strips;
    for (int index = static_cast<int>(blockIdx.x); index < items;
         index += static_cast<int>(gridDim.x)) {
      const int pair = index % pairs, strip = index / pairs % work_.strips;
      const int last = LastVisible(pair);
      // Of single columns the keys are packed by chunks of two tiles.
      const int seen = last < 0 ? 0 : (last / kRangeChunkKeys + 1) * 2;
      const int begin = strip * kStripTiles;
      const int end = min(min(begin + kStripTiles, seen), product.key_tiles);
      if (begin < end) fn(index / (pairs * work_.strips), pair, begin, end);
    }
  }

  __device__ void Produce() const;
  template <typename T, FoldKind kKind>
  __device__ void FoldRows() const;
  template <typename T>
  __device__ void Spread() const;

  __device__ void Init() const {
    for (int stage = 0; stage < stages_; ++stage) {
      BarrierInit(SharedAddress(&shared_.full[stage]), 1);
      BarrierInit(SharedAddress(&shared_.empty[stage]), kGroups * 4);
    }
    BarrierInit(SharedAddress(&shared_.queries_full), 1);
    BarrierInit(SharedAddress(&shared_.queries_empty), kGroups * 4);
    FenceBarrierInit();
  }

 private:
  __device__ int steps() const { return work_.product.steps; }
  __device__ static int Group() { return __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 128, 0); }
  __device__ static bool Leads() { return (threadIdx.x & 31) == 0; }

  // The last key that some row of the pair sees; by a warp.
  __device__ int LastVisible(int pair) const {
    int last = -1;
    for (int i = static_cast<int>(threadIdx.x) & 31; i < kGroups * kRangeTileRows; i += 32) {
      const int row = pair * kGroups * kRangeTileRows + i;
      if (row < work_.members * work_.product.rows) {
        last = max(last, work_.visible[row % work_.product.rows]);
      }
    }
    return __reduce_max_sync(~0u, last);
  }

  __device__ void WaitFull(const Place& place) const {
    BarrierWait(SharedAddress(&shared_.full[place.stage]), place.parity);
  }
  // Advances over the stages of a tile of keys, which the warp has read.
  __device__ void Release(Place* place) const {
    for (int step = 0; step < steps(); ++step) {
      if (Leads()) BarrierArrive(SharedAddress(&shared_.empty[place->stage]));
      place->Advance(stages_);
    }
  }
  __device__ uint32_t Queries(int group, int step) const {
    return SharedAddress(queries_) + static_cast<uint32_t>((group * steps() + step) * kTileBytes);
  }
  __device__ uint32_t Stage(int stage) const {
    return SharedAddress(ring_) + static_cast<uint32_t>(stage * kTileBytes);
  }

  // Issues one step: logits (+)= 64 rows at `a` times 128 at `b`.
  template <typename T, bool kFirst>
  __device__ static void IssueStep(RangeLogits& logits, uint32_t a, uint32_t b) {
    const uint64_t left = SwizzledOperand(a, kGroupStride);
    const uint64_t right = SwizzledOperand(b, kGroupStride);
    WgmmaShared<T, !kFirst>(logits, left, right);
#pragma unroll
    for (int k = 1; k < kRangeTileColumns / 16; ++k) {
      const auto bytes = static_cast<uint32_t>(k * 32);
      WgmmaShared<T, true>(logits, AdvanceOperand(left, bytes), AdvanceOperand(right, bytes));
    }
  }
  // Issues the product of half a tile of queries (or with kKeysLeft of keys) and the tile of the
  // other, whose stages begin at `place`.
  template <typename T, bool kKeysLeft>
  __device__ void Issue(RangeLogits& logits, int group, int half, Place place) const {
    const auto offset = static_cast<uint32_t>(half * kTileBytes / 2);
    WaitFull(place);
    WgmmaFence();
    if (kKeysLeft) {
      IssueStep<T, true>(logits, Stage(place.stage) + offset, Queries(group, 0));
    } else {
      IssueStep<T, true>(logits, Queries(group, 0) + offset, Stage(place.stage));
    }
    for (int step = 1; step < steps(); ++step) {
      place.Advance(stages_);
      WaitFull(place);
      if (kKeysLeft) {
        IssueStep<T, false>(logits, Stage(place.stage) + offset, Queries(group, step));
      } else {
        IssueStep<T, false>(logits, Queries(group, step) + offset, Stage(place.stage));
      }
    }
    WgmmaCommit();
  }

  template <typename T, int kTile>
  __device__ void SpreadTile(SpreadFold& fold, int group, int first_key, Place* place) const;

  const RangeWork& work_;
  const int stages_;
  std::byte* const queries_;
  std::byte* const ring_;
  Shared& shared_;
};

__device__ void Block::Produce() const {
  const RangeProduct& product = work_.product;
  Place place;
  uint32_t turn = 1;  // of the queries
  ForItems([&](int kv, int pair, int begin, int end) {
    if (!Leads()) return;
    const int tiles = min(kGroups, product.row_tiles - pair * kGroups);
    const auto* queries = static_cast<const std::byte*>(work_.packed_queries) +
                          (int64_t{kv} * product.row_tiles + pair * kGroups) * steps() * kTileBytes;
    const uint32_t full = SharedAddress(&shared_.queries_full);
    BarrierWait(SharedAddress(&shared_.queries_empty), turn);
    turn ^= 1;
    BarrierArriveExpect(full, static_cast<uint32_t>(tiles * steps() * kTileBytes));
    for (int i = 0; i < tiles * steps(); ++i) {
      BulkCopyToShared(SharedAddress(queries_) + static_cast<uint32_t>(i * kTileBytes),
                       queries + int64_t{i} * kTileBytes, kTileBytes, full);
    }
    const auto* keys = static_cast<const std::byte*>(work_.packed_keys) +
                       (int64_t{kv} * product.key_tiles + begin) * steps() * kTileBytes;
    for (int i = 0; i < (end - begin) * steps(); ++i) {
      const uint32_t barrier = SharedAddress(&shared_.full[place.stage]);
      BarrierWait(SharedAddress(&shared_.empty[place.stage]), place.parity ^ 1);
      BarrierArriveExpect(barrier, kTileBytes);
      BulkCopyToShared(Stage(place.stage), keys + int64_t{i} * kTileBytes, kTileBytes, barrier);
      place.Advance(stages_);
    }
  });
}

template <typename T, FoldKind kKind>
__device__ void Block::FoldRows() const {
  const int group = Group();
  const int warp = __shfl_sync(~0u, static_cast<int>(threadIdx.x) / 32 % 4, 0);
  Place place;
  uint32_t turn = 0;
  ForItems([&](int kv, int pair, int begin, int end) {
    const int first = (pair * kGroups + group) * kRangeTileRows + warp * 16;
    const cuda::FoldRows upper = RowsOfWarp(work_, kv, first);
    const cuda::FoldRows lower = RowsOfWarp(work_, kv, first + kRangeTileRows / 2);
    BarrierWait(SharedAddress(&shared_.queries_full), turn);
    turn ^= 1;
    RangeLogits a, b;
    Issue<T, false>(a, group, 0, place);
    WgmmaWait<0>();
    Pin(a);
    for (int tile = begin; tile + 1 < end; ++tile) {
      Issue<T, false>(b, group, 1, place);
      FoldTile<kKind>(work_, a, tile, upper);
      WgmmaWait<0>();
      Pin(b);
      Release(&place);
      Issue<T, false>(a, group, 0, place);
      FoldTile<kKind>(work_, b, tile, lower);
      WgmmaWait<0>();
      Pin(a);
    }
    Issue<T, false>(b, group, 1, place);
    FoldTile<kKind>(work_, a, end - 1, upper);
    WgmmaWait<0>();
    Pin(b);
    Release(&place);
    if (Leads()) BarrierArrive(SharedAddress(&shared_.queries_empty));
    FoldTile<kKind>(work_, b, end - 1, lower);
  });
}

// Barriers 1 and 2: the turns of the warpgroups; 3 and 4: within one.
template <typename T, int kTile>
__device__ void Block::SpreadTile(SpreadFold& fold, int group, int first_key, Place* place) const {
  RangeLogits logits;
  NamedBarrierSync(1 + group, kGroups * 128);
  Issue<T, true>(logits, group, kTile % 2, *place);
  NamedBarrierArrive(2 - group, kGroups * 128);
  WgmmaWait<0>();
  Pin(logits);
  if (kTile % 2 == 1) Release(place);
  if (fold.Whole(first_key)) {
    fold.template Add<kTile, false>(logits, first_key);
  } else {
    fold.template Add<kTile, true>(logits, first_key);
  }
}

template <typename T>
__device__ void Block::Spread() const {
  const int group = Group();
  SpreadFold fold(work_, shared_.scratch[group], 3 + group);
  Place place;
  uint32_t turn = 0;
  if (group == 1) NamedBarrierArrive(1, kGroups * 128);
  ForItems([&](int kv, int pair, int begin, int end) {
    fold.Begin(kv, pair * kGroups + group);
    BarrierWait(SharedAddress(&shared_.queries_full), turn);
    turn ^= 1;
    for (int tile = begin; tile < end; tile += 2) {
      const int first_key = tile * kRangeTileRows;
      SpreadTile<T, 0>(fold, group, first_key, &place);
      SpreadTile<T, 1>(fold, group, first_key, &place);
      SpreadTile<T, 2>(fold, group, first_key, &place);
      SpreadTile<T, 3>(fold, group, first_key, &place);
      fold.EndChunk(first_key);
    }
    if (Leads()) BarrierArrive(SharedAddress(&shared_.queries_empty));
    fold.End((end - 2) * kRangeTileRows);
  });
}

enum class Pass : uint8_t { kTotals, kParts, kSpread };

template <typename T, Pass kPass>
__global__ void __launch_bounds__(kThreads, 1)
    ProbeSm90Kernel(const __grid_constant__ RangeWork work, int stages) {
  LACUNA_DYNAMIC_SHARED(1024, std::byte, memory);
  const Block block(work, memory + ((1024 - (SharedAddress(memory) & 1023)) & 1023), stages);
  if (threadIdx.x == 0) block.Init();
  __syncthreads();
  LetNextStart();
  WaitForPrevious();
  if (threadIdx.x >= kGroups * 128) {
    block.Produce();
  } else if constexpr (kPass == Pass::kTotals) {
    block.FoldRows<T, FoldKind::kTotals>();
  } else if constexpr (kPass == Pass::kParts) {
    block.FoldRows<T, FoldKind::kParts>();
  } else {
    block.Spread<T>();
  }
}

template <typename T, Pass kPass>
Status Run(const RangeWork& work, const DeviceTraits& traits, cudaStream_t stream) {
  const auto kernel = ProbeSm90Kernel<T, kPass>;
  const RangeProduct& product = work.product;
  const int stages = StagesOf(product.steps, traits.shared_bytes_max);
  const int64_t bytes = kFixedBytes + int64_t{kGroups * product.steps + stages} * kTileBytes;
  LACUNA_CUDA_RETURN_IF_ERROR(cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  const int64_t items = work.kvs * CeilDiv(product.row_tiles, kGroups) * work.strips;
  return Launch(kernel, dim3(static_cast<unsigned>(std::min<int64_t>(items, traits.sm_count))),
                dim3(kThreads), static_cast<size_t>(bytes), stream, work, stages);
}

template <Pass kPass>
Status RunAs(const RangeWork& work, DType dtype, const DeviceTraits& traits, cudaStream_t stream) {
  return dtype == DType::kF16 ? Run<__half, kPass>(work, traits, stream)
                              : Run<__nv_bfloat16, kPass>(work, traits, stream);
}

}  // namespace

Status RangeProbeSm90(const RangeWork& work, DType dtype, const DeviceTraits& traits,
                      cudaStream_t stream) {
  return work.spreads() ? RunAs<Pass::kTotals>(work, dtype, traits, stream)
                        : RunAs<Pass::kParts>(work, dtype, traits, stream);
}

Status RangeSpreadSm90(const RangeWork& work, DType dtype, const DeviceTraits& traits,
                       cudaStream_t stream) {
  return RunAs<Pass::kSpread>(work, dtype, traits, stream);
}

}  // namespace lacuna::kernels::cuda
