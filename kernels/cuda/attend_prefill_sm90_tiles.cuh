// The key tiles that the rows of an item see, found by the 32 lanes of the producer warp (sm_90a).
//
// A key tile is 128 keys at an absolute multiple of 128, two pages; a mask has one bit per 16 keys.
#pragma once

#include <climits>
#include <cstdint>

#include "kernels/cuda/attend_prefill_sm90_items.cuh"

namespace lacuna::kernels::cuda {

inline constexpr int kTileKeys = 128;
inline constexpr int kGranuleKeys = 16;
inline constexpr int kPageKeys = 64;
inline constexpr uint32_t kFullMask = 0xff;
inline constexpr uint32_t kAllLanes = 0xffffffff;

struct KeyTile final {
  int32_t index = 0;   // of 128 keys
  uint32_t masks = 0;  // byte h: granules that half h may see
  int32_t page[2] = {0, 0};
};

// Bits [0, n) of a mask of 8 granules, n = granules of the tile before `key` (rounded down).
__device__ inline uint32_t GranulesBefore(int key, int first_key) {
  return (1u << min(max((key - first_key) >> 4, 0), 8)) - 1;
}

// Walks the key tiles of an item in ascending order, 16 candidates at a time: lanes 0..15 compute
// the masks of half 0 and look up the even pages, lanes 16..31 those of half 1 and the odd pages.
class TileWalk final {
 public:
  __device__ TileWalk(const PrefillParams& params, int lane)
      : params_(params), lane_(lane), upper_(lane & 16) {}

  __device__ void Start(const ItemPlace& place) {
    rows_ = place.half.rows;
    position_ = place.half.first_position;
    list_ = params_.lists.begins[place.chunk];
    list_size_ = static_cast<int>(params_.lists.ends[place.chunk] - list_);
    list_first_ = list_size_ > 0 ? params_.lists.logical[list_] : 0;
    range_ = 0;
    ranges_left_ = 0;
    if (params_.ranges.begins != nullptr && rows_ > 0) {
      const int64_t list = params_.ranges.chunk_offsets[place.chunk] +
                           int64_t{place.half.head} * place.query_tiles + place.query_tile;
      range_ = params_.ranges.begins[list];
      ranges_left_ = static_cast<int>(params_.ranges.ends[list] - range_);
    }
    const int end = rows_ > 0 ? position_ + rows_ : 0;
    end_key_ = max(end, __shfl_xor_sync(kAllLanes, end, 16));
    first_tile_ = 0;
    todo_ = 0;
    if (list_size_ == 0) end_key_ = 0;
  }

  // False when there are no more. The same for all lanes.
  __device__ bool Next(KeyTile* tile) {
    while (todo_ == 0) {
      if (first_tile_ * kTileKeys >= end_key_) return false;
      Look();
    }
    const int at = __ffs(static_cast<int>(todo_)) - 1;
    todo_ &= todo_ - 1;
    tile->index = base_ + at;
    tile->masks = __shfl_sync(kAllLanes, mask_, at) | __shfl_sync(kAllLanes, mask_, at + 16) << 8;
    tile->page[0] = __shfl_sync(kAllLanes, page_, at);
    tile->page[1] = __shfl_sync(kAllLanes, page_, at + 16);
    return true;
  }

 private:
  // The next 16 candidates: masks, pages, and where to look after them.
  __device__ void Look() {
    base_ = first_tile_;
    const int tile = base_ + (lane_ & 15);
    int next = base_ + 16;
    uint32_t mask = StaticMask(tile * kTileKeys, &next);
    if (params_.ranges.begins != nullptr) mask &= RangeMask(tile * kTileKeys, &next);
    const uint32_t other_mask = __shfl_xor_sync(kAllLanes, mask, 16);
    const int page = (mask | other_mask) != 0 ? FindPage(2 * tile + (upper_ >> 4)) : -1;
    const int other_page = __shfl_xor_sync(kAllLanes, page, 16);
    // Keys of a page that is not listed are not seen; the copy takes the other page in its place.
    const uint32_t own = upper_ != 0 ? 0xf0 : 0x0f;
    mask_ = mask & ((page >= 0 ? own : 0) | (other_page >= 0 ? own ^ kFullMask : 0));
    page_ = page >= 0 ? page : other_page;
    const uint32_t seen = __ballot_sync(kAllLanes, mask_ != 0);
    todo_ = (seen | seen >> 16) & 0xffff;
    first_tile_ = min(next, __shfl_xor_sync(kAllLanes, next, 16));
  }

  // What causality, window and sink leave to the rows of this lane's half. Moves *next over the gap
  // between sink and window.
  __device__ uint32_t StaticMask(int first_key, int* next) const {
    if (rows_ == 0) {
      *next = INT_MAX / kTileKeys;
      return 0;
    }
    uint32_t mask = GranulesBefore(position_ + rows_ + kGranuleKeys - 1, first_key);
    const StaticShape& shape = params_.shape;
    if (shape.window_tokens > 0) {
      const int window_first = max(0, position_ - shape.window_tokens + 1);
      mask &= ~GranulesBefore(window_first, first_key) |
              GranulesBefore(shape.sink_tokens + kGranuleKeys - 1, first_key);
      if (*next * kTileKeys >= shape.sink_tokens) *next = max(*next, window_first / kTileKeys);
    }
    return mask;
  }

  // The granules in the key ranges of this lane's half, whose lists are read 16 entries at a time.
  // Moves *next to the tile of the first range after these candidates.
  __device__ uint32_t RangeMask(int first_key, int* next) {
    const int end_key = (base_ + 16) * kTileKeys;
    uint32_t mask = 0;
    int used;
    int begin;
    do {
      const int at = lane_ & 15;
      begin = INT_MAX;
      int end = INT_MAX;
      if (at < ranges_left_) {
        begin = params_.ranges.begin[range_ + at];
        end = params_.ranges.end[range_ + at];
      }
#pragma unroll 4
      for (int i = 0; i < 16; ++i) {
        const int from = __shfl_sync(kAllLanes, begin, upper_ | i);
        const int to = __shfl_sync(kAllLanes, end, upper_ | i);
        mask |= GranulesBefore(to, first_key) & ~GranulesBefore(from, first_key);
      }
      const uint32_t done = __ballot_sync(kAllLanes, end <= end_key) >> upper_;
      used = __popc(done & 0xffff);
      range_ += used;
      ranges_left_ -= used;
    } while (__any_sync(kAllLanes, used == 16));
    const int after = __shfl_sync(kAllLanes, begin, upper_ | used);
    *next = max(*next, after / kTileKeys);
    return mask;
  }

  // The page that holds the keys [64 * logical, 64 * logical + 64), or -1.
  __device__ int FindPage(int logical) const {
    int at = min(logical - list_first_, list_size_ - 1);
    if (at < 0) return -1;
    const int32_t* table = params_.lists.logical + list_;
    const int page = params_.lists.pages[list_ + at];
    if (table[at] == logical) return page;
    int low = 0;  // the list has gaps: table[at] > logical, or the list ends before it
    for (int high = at; low < high;) {
      const int middle = (low + high) / 2;
      if (table[middle] < logical) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return table[low] == logical ? params_.lists.pages[list_ + low] : -1;
  }

  const PrefillParams& params_;
  const int lane_;
  const int upper_;  // 16 in the upper half of the warp
  int rows_ = 0;
  int position_ = 0;
  int64_t list_ = 0;
  int list_size_ = 0;
  int list_first_ = 0;
  int64_t range_ = 0;
  int ranges_left_ = 0;
  int end_key_ = 0;
  int first_tile_ = 0;  // next candidate
  int base_ = 0;        // first of the present candidates
  uint32_t todo_ = 0;
  uint32_t mask_ = 0;
  int page_ = 0;
};

}  // namespace lacuna::kernels::cuda
