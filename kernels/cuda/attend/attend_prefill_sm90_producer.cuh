// The two warps of the Hopper prefill kernel that feed the consumers (sm_90a).
//
// The walker runs ahead by up to two batches of tiles, so that its chains of dependent loads (list
// borders, ranges, page ids) stay off the copier's path.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/attend/attend_prefill_sm90_shared.cuh"
#include "kernels/cuda/attend/attend_prefill_sm90_tiles.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"

namespace lacuna::kernels::cuda {

template <int kHeadDim>
class Walker final {
 public:
  __device__ Walker(const PrefillParams& params, Shared<kHeadDim>& shared, int lane)
      : params_(params), shared_(shared), lane_(lane) {}

  __device__ void Run() {
    TileWalk walk(params_, lane_);
    const int items = params_.items_per_head * params_.kv_heads;
    int drawn = Draw();
    for (int item = Share(drawn); item < items; item = Share(drawn)) {
      drawn = Draw();
      const ItemPlace place = FindItem(params_, item, lane_ >> 4);
      walk.Start(place);
      LaneTiles tiles;
      bool more = walk.Next(&tiles);
      if (!more) tiles.tiles = 1, tiles.mask = 0;  // the consumers expect a tile, even if empty
      uint32_t flags = kFirstOfItem;
      do {
        LaneTiles next;
        more = more && walk.Next(&next);
        Publish(place, tiles, flags | (more ? 0 : kLastOfItem));
        flags = 0;
        tiles = next;
      } while (more);
    }
    LetNextStart();
    Publish(ItemPlace{}, LaneTiles{}, kNoMoreItems);
  }

 private:
  // An item's index, in lane 0; nobody waits for it before Share.
  __device__ int Draw() { return lane_ == 0 ? atomicAdd(params_.counter, 1) : 0; }
  __device__ int Share(int drawn) { return __shfl_sync(kAllLanes, drawn, 0); }

  __device__ void Publish(const ItemPlace& place, const LaneTiles& tiles, uint32_t flags) {
    AwaitEmpty(shared_.batch_bars, place_);
    TileBatch& batch = shared_.batches[place_.stage];
    const uint32_t other_mask = __shfl_xor_sync(kAllLanes, tiles.mask, 16);
    const int other_page = __shfl_xor_sync(kAllLanes, tiles.page, 16);
    if (lane_ < kBatchTiles) {
      batch.masks[lane_] = tiles.mask | other_mask << 8;
      batch.pages[lane_] = make_int2(tiles.page, other_page);
    }
    if ((lane_ & 15) == 0) batch.halves[lane_ >> 4] = place.half;
    if (lane_ == 0) {
      if ((flags & kFirstOfItem) != 0) {
        batch.shape = ShapeOf(params_, place.chunk, place.kv_head);
      }
      batch.kv_head = place.kv_head;
      batch.first_tile = tiles.first_tile;
      batch.tiles = tiles.tiles;
      batch.flags = flags;
    }
    BarrierArrive(SharedAddress(&shared_.batch_bars.full[place_.stage]));
    place_ = place_.Next();
  }

  const PrefillParams& params_;
  Shared<kHeadDim>& shared_;
  const int lane_;
  RingPlace place_;
};

template <int kHeadDim>
class Copier final {
 public:
  __device__ Copier(const PrefillParams& params, Shared<kHeadDim>& shared, int lane)
      : params_(params), shared_(shared), lane_(lane) {}

  __device__ void Run() {
    Tile before;
    bool pending = false;  // the V of `before` comes after the next K
    for (RingPlace place;; place = place.Next()) {
      AwaitFull(shared_.batch_bars, place);
      const TileBatch& batch = shared_.batches[place.stage];
      if ((batch.flags & (kFirstOfItem | kNoMoreItems)) != 0) CopyQ(batch);
      if ((batch.flags & kNoMoreItems) != 0) break;
      Tile tile;
      tile.slabs = params_.pool + batch.kv_head * params_.slab_bytes;
      const bool last = (batch.flags & kLastOfItem) != 0;
      for (uint32_t rest = batch.tiles; rest != 0;) {
        const int at = __ffs(static_cast<int>(rest)) - 1;
        rest &= rest - 1;
        tile.masks = batch.masks[at];
        tile.page = (lane_ & 1) != 0 ? batch.pages[at].y : batch.pages[at].x;
        CopyK(tile, batch.first_tile + at, last && rest == 0);
        if (pending) CopyV(before);
        before = tile;
        pending = true;
      }
      BarrierArrive(SharedAddress(&shared_.batch_bars.empty[place.stage]));
    }
    if (pending) CopyV(before);
  }

 private:
  static constexpr int kStripes = Shared<kHeadDim>::kStripes;
  static constexpr int kPieces = 2 * kStripes;  // lane i copies stripe i / 2 of page i % 2

  struct Tile final {
    const std::byte* slabs = nullptr;  // of page 0, for the kv head
    uint32_t masks = 0;
    int page = 0;  // of this lane's piece
  };

  // The rows after the chunk's last are some other chunk's, or zeros: nobody reads their scores.
  __device__ void CopyQ(const TileBatch& batch) {
    AwaitEmpty(shared_.q_bars, q_);
    const uint32_t full = SharedAddress(&shared_.q_bars.full[q_.stage]);
    const HalfItem half = lane_ < kHalves ? batch.halves[lane_] : HalfItem{};
    const int halves = __popc(__ballot_sync(kAllLanes, half.rows > 0));
    if (lane_ == 0) {  // what the consumers read, the lane writes that announces it to them
#pragma unroll
      for (int i = 0; i < kHalves; ++i) {
        shared_.items[q_.stage][i] = batch.halves[i];
        if ((batch.flags & kNoMoreItems) != 0) shared_.items[q_.stage][i].first_row = -1;
      }
      shared_.shapes[q_.InDouble()] = batch.shape;
      BarrierArriveExpect(full, halves * kStripes * kPieceBytes);
    }
    __syncwarp();
    for (int i = 0; half.rows > 0 && i < kStripes; ++i) {
      TensorCopyToShared(SharedAddress(shared_.q[q_.stage][lane_][i]), &params_.q, 64 * i,
                         half.head, half.first_row, full);
    }
    q_ = q_.Next();
  }

  __device__ void CopyK(const Tile& tile, int index, bool last) {
    AwaitEmpty(shared_.k_bars, k_);
    if (lane_ == 0) shared_.tiles[k_.stage] = {index, tile.masks | (last ? kLastTile : 0)};
    CopyTile(tile, 0, SharedAddress(shared_.k[k_.stage]),
             SharedAddress(&shared_.k_bars.full[k_.stage]));
    k_ = k_.Next();
  }
  __device__ void CopyV(const Tile& tile) {
    AwaitEmpty(shared_.v_bars, v_);
    CopyTile(tile, params_.slab_bytes / 2, SharedAddress(shared_.v[v_.stage]),
             SharedAddress(&shared_.v_bars.full[v_.stage]));
    v_ = v_.Next();
  }
  __device__ void CopyTile(const Tile& tile, int64_t offset, uint32_t destination, uint32_t full) {
    if (lane_ == 0) BarrierArriveExpect(full, tile.masks != 0 ? kPieces * kPieceBytes : 0);
    __syncwarp();
    if (tile.masks == 0 || lane_ >= kPieces) return;
    const std::byte* source = tile.slabs +
                              int64_t{tile.page} * params_.kv_heads * params_.slab_bytes + offset +
                              (lane_ >> 1) * int64_t{kPieceBytes};
    BulkCopyToShared(destination + static_cast<uint32_t>(lane_) * kPieceBytes, source, kPieceBytes,
                     full);
  }

  const PrefillParams& params_;
  Shared<kHeadDim>& shared_;
  const int lane_;
  RingPlace q_, k_, v_;
};

}  // namespace lacuna::kernels::cuda
