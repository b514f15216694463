// A consumer warpgroup of the Hopper prefill kernel: 64 query rows of an item (sm_90a).
//
// It issues QK of the next tile and PV of the present one back to back, then does the softmax of
// the next while PV runs. The next tile may be the first of the next item: the pipeline does not
// drain between items. The softmax of one warpgroup hides behind the products of the other; making
// them take turns at issuing (FlashAttention-3's ping-pong) measured slower, as one then waits for
// the other's ends of items.
#pragma once

#include <cstdint>

#include "kernels/cuda/attend/attend_prefill_sm90_math.cuh"
#include "kernels/cuda/attend/attend_prefill_sm90_output.cuh"
#include "kernels/cuda/attend/attend_prefill_sm90_products.cuh"
#include "kernels/cuda/attend/attend_prefill_sm90_shared.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace lacuna::kernels::cuda {

template <typename T, int kHeadDim, bool kCapped>
class Consumer final {
 public:
  __device__ Consumer(const PrefillParams& params, Shared<kHeadDim>& shared, int half, int thread)
      : params_(params), shared_(shared), products_(shared, half), half_(half), lane_(thread & 31) {
    row_ = (thread >> 5) * 16 + (lane_ >> 2);
    column_ = (lane_ & 3) * 2;
  }

  __device__ void Run() {
    Output output;
    HalfItem item = AwaitItem(q_place_);
    while (item.first_row >= 0) {
      Seen tile = AwaitTile(place_);  // of which nothing is computed yet
      if (tile.mask == 0) {
        SkipTile(tile.last);
      } else {
        RunTiles(&item, &tile, &output);
      }
      if (tile.last) {
        WriteOutput<T, kHeadDim>(params_, item, output.o, output.state, row_, lane_);
        output = Output{};
        q_place_ = q_place_.Next();
        item = AwaitItem(q_place_);
      }
    }
  }

 private:
  struct Output final {
    float o[kHeadDim / 2] = {};
    SoftmaxState state;
  };
  struct Seen final {
    int first_key = 0;
    uint32_t mask = 0;
    bool last = false;
  };

  // Tells the compiler that the lanes agree, so that branches and addresses stay out of vector
  // registers.
  template <typename V>
  __device__ static V Uniform(V value) {
    return __shfl_sync(kAllLanes, value, 0);
  }

  __device__ HalfItem AwaitItem(const RingPlace& place) {
    AwaitFull(shared_.q_bars, place);
    HalfItem item = shared_.items[place.stage][half_];
    item.first_row = Uniform(item.first_row);
    return item;
  }
  // Waits for the tile's K.
  __device__ Seen AwaitTile(const RingPlace& place) {
    AwaitFull(shared_.k_bars, place);
    const TileRecord record = shared_.tiles[place.stage];
    const uint32_t flags = Uniform(record.flags);
    return {record.index * kTileKeys, flags >> (8 * half_) & kFullMask, (flags & kLastTile) != 0};
  }
  __device__ void ReleaseK(const RingPlace& place, const RingPlace& q_place, bool last) {
    Release(shared_.k_bars, place);
    if (last) Release(shared_.q_bars, q_place);
  }

  __device__ void Softmax(float (&s)[64], const HalfItem& item, const RingPlace& q_place,
                          const Seen& tile, SoftmaxState* state, float (&rescale)[2]) {
    if constexpr (kCapped) {
#pragma unroll
      for (int i = 0; i < 64; ++i) s[i] = Tanh(s[i] * params_.cap_scale);
    }
    const StaticShape shape =
        params_.shapes == nullptr ? params_.shape : shared_.shapes[q_place.InDouble()];
    const Hiding hiding = HowHidden(item, shape, tile.mask, tile.first_key);
    const int position = item.first_position + row_;
    if (hiding == Hiding::kCausalOnly) {
      MaskCausal(s, tile.first_key, position, column_);
    } else if (hiding == Hiding::kAll) {
      MaskScores(s, shape, tile.mask, tile.first_key, position, column_);
    }
    UpdateSoftmax(s, state, params_.scale_log2, rescale);
  }

  // A tile of which this half sees nothing, when nothing is pending.
  __device__ void SkipTile(bool last) {
    ReleaseK(place_, q_place_, last);
    AwaitFull(shared_.v_bars, place_);
    ReleaseByWarp(shared_.v_bars, place_, lane_);
    place_ = place_.Next();
  }

  // Visits tiles from *tile on, into the items that follow, until one comes of which this half sees
  // nothing or the items end. Then *tile is the last one visited, and *item and *output are its.
  __device__ void RunTiles(HalfItem* item, Seen* tile, Output* output) {
    uint32_t p[32];
    float rescale[2];
    {
      float s[64];
      products_.IssueQk(s, q_place_.stage, place_.stage);
      WgmmaWait<0>();
      Pin(s);
      ReleaseK(place_, q_place_, tile->last);
      Softmax(s, *item, q_place_, *tile, &output->state, rescale);
      PackScores<T>(s, p);
      Rescale(output->o, rescale);
    }
    for (;;) {
      RingPlace q_place = q_place_;
      HalfItem next_item = *item;
      if (tile->last) {
        q_place = q_place_.Next();
        next_item = AwaitItem(q_place);
        if (next_item.first_row < 0) break;
      }
      const RingPlace place = place_.Next();
      const Seen next = AwaitTile(place);
      if (next.mask == 0) break;
      float s[64];
      products_.IssueQk(s, q_place.stage, place.stage);
      AwaitFull(shared_.v_bars, place_);
      products_.IssuePv(output->o, p, place_.stage);
      WgmmaWait<1>();
      Pin(s);
      ReleaseK(place, q_place, next.last);
      const SoftmaxState ended = output->state;
      if (tile->last) output->state = SoftmaxState{};
      Softmax(s, next_item, q_place, next, &output->state, rescale);
      Pin(s);
      // The wait is in both branches because the assembler would move it before the softmax, which
      // is there to overlap with PV, if it could; it does not move it across a branch.
      if (tile->last) {
        WgmmaWaitAll();
        Pin(output->o);
        WriteOutput<T, kHeadDim>(params_, *item, output->o, ended, row_, lane_);
        Clear(output->o);
        *item = next_item;
        q_place_ = q_place;
      } else {
        WgmmaWait<0>();
        Pin(output->o);
        Rescale(output->o, rescale);
      }
      Pin(p);
      ReleaseByWarp(shared_.v_bars, place_, lane_);
      PackScores<T>(s, p);
      *tile = next;
      place_ = place;
    }
    AwaitFull(shared_.v_bars, place_);
    products_.IssuePv(output->o, p, place_.stage);
    WgmmaWait<0>();
    Pin(output->o);
    ReleaseByWarp(shared_.v_bars, place_, lane_);
    place_ = place_.Next();
  }

  const PrefillParams& params_;
  Shared<kHeadDim>& shared_;
  const Products<T, kHeadDim> products_;
  const int half_;
  const int lane_;
  int row_;            // of this thread's row 0 in the half
  int column_;         // of its first key in a group of 8
  RingPlace q_place_;  // the item
  RingPlace place_;    // the tile whose V comes next
};

}  // namespace lacuna::kernels::cuda
