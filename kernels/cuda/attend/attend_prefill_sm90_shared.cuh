// Shared memory of the Hopper prefill kernel and the barriers over it (sm_90a).
//
// Roles: the walker warp finds the tiles of items and hands them over in batches; the copier warp
// fetches Q, K and V; the consumers, one warpgroup per half of an item, compute.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/attend/attend_prefill_sm90_tiles.cuh"
#include "kernels/cuda/ptx.cuh"

namespace lacuna::kernels::cuda {

inline constexpr int kHalves = 2;  // consumer warpgroups
inline constexpr int kStages = 2;  // of Q, of K, of V and of batches
inline constexpr int kGroupThreads = 128;
inline constexpr int kThreads = kGroupThreads * (1 + kHalves);
inline constexpr int kConsumerWarps = kHalves * 4;
inline constexpr uint32_t kStripeBytes = 128;               // of one row
inline constexpr uint32_t kPieceBytes = 64 * kStripeBytes;  // 64 rows of a stripe: a bulk copy

// Up to 16 tiles of an item, from walker to copier.
struct TileBatch final {
  HalfItem halves[kHalves];
  StaticShape shape;  // valid in the first batch of an item
  int32_t kv_head = 0;
  int32_t first_tile = 0;
  uint32_t tiles = 0;  // bit i: tile first_tile + i
  uint32_t flags = 0;
  uint32_t masks[kBatchTiles];
  int2 pages[kBatchTiles];
};
inline constexpr uint32_t kFirstOfItem = 1;
inline constexpr uint32_t kLastOfItem = 2;
inline constexpr uint32_t kNoMoreItems = 4;

// Which tile is in a K stage, for the consumers.
struct TileRecord final {
  int32_t index = 0;
  uint32_t flags = 0;  // masks, and kLastTile
};
inline constexpr uint32_t kLastTile = 1u << 16;

struct StageBarriers final {
  uint64_t full[kStages];
  uint64_t empty[kStages];
};

template <int kHeadDim>
struct alignas(1024) Shared final {
  static constexpr int kStripes = kHeadDim / 64;
  std::byte q[kStages][kHalves][kStripes][kPieceBytes];
  std::byte k[kStages][kStripes][2 * kPieceBytes];
  std::byte v[kStages][kStripes][2 * kPieceBytes];
  StageBarriers q_bars, k_bars, v_bars, batch_bars;
  HalfItem items[kStages][kHalves];
  // Of items, with PrefillParams::shapes. Twice as many as stages: consumers release the stage of
  // Q before the last use of its item's shape.
  StaticShape shapes[2 * kStages];
  TileRecord tiles[kStages];
  TileBatch batches[kStages];
};

// Position in a ring of stages.
struct RingPlace final {
  int stage = 0;
  uint32_t parity = 0;
  __device__ RingPlace Next() const {
    return stage + 1 == kStages ? RingPlace{0, parity ^ 1} : RingPlace{stage + 1, parity};
  }
  // In a ring of twice as many.
  __device__ int InDouble() const { return stage + static_cast<int>(parity) * kStages; }
};

__device__ inline void AwaitFull(StageBarriers& barriers, const RingPlace& place) {
  BarrierWait(SharedAddress(&barriers.full[place.stage]), place.parity);
}
__device__ inline void AwaitEmpty(StageBarriers& barriers, const RingPlace& place) {
  BarrierWait(SharedAddress(&barriers.empty[place.stage]), place.parity ^ 1);
}
// By each thread that has read from the stage itself: one arrival.
__device__ inline void Release(StageBarriers& barriers, const RingPlace& place) {
  BarrierArrive(SharedAddress(&barriers.empty[place.stage]));
}
// By a whole warp whose products alone have read from the stage: one arrival.
__device__ inline void ReleaseByWarp(StageBarriers& barriers, const RingPlace& place, int lane) {
  __syncwarp();
  if (lane == 0) Release(barriers, place);
}

template <int kHeadDim>
__device__ void InitBarriers(Shared<kHeadDim>& shared) {
  for (int i = 0; i < kStages; ++i) {
    for (StageBarriers* bars : {&shared.q_bars, &shared.k_bars, &shared.v_bars}) {
      BarrierInit(SharedAddress(&bars->full[i]), 1);
    }
    // With Q and K come records, read by all lanes, each of which arrives.
    BarrierInit(SharedAddress(&shared.q_bars.empty[i]), kConsumerWarps * 32);
    BarrierInit(SharedAddress(&shared.k_bars.empty[i]), kConsumerWarps * 32);
    BarrierInit(SharedAddress(&shared.v_bars.empty[i]), kConsumerWarps);
    // Batches are written and read by all lanes of a warp.
    BarrierInit(SharedAddress(&shared.batch_bars.full[i]), 32);
    BarrierInit(SharedAddress(&shared.batch_bars.empty[i]), 32);
  }
  FenceBarrierInit();
}

}  // namespace lacuna::kernels::cuda
