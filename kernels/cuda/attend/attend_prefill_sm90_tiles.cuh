// The key tiles that the rows of an item see, found by the 32 lanes of the walker warp (sm_90a).
//
// A key tile is 128 keys at an absolute multiple of 128, two pages; a mask has one bit per 16 keys.
#pragma once

#include <climits>
#include <cstdint>

#include "kernels/cuda/attend/attend_prefill_sm90_items.cuh"

namespace lacuna::kernels::cuda {

inline constexpr int kTileKeys = 128;
inline constexpr int kGranuleKeys = 16;
inline constexpr int kPageKeys = 64;
inline constexpr int kBatchTiles = 16;
inline constexpr uint32_t kFullMask = 0xff;
inline constexpr uint32_t kAllLanes = 0xffffffff;

// Bits [0, n) of a mask of 8 granules, n = granules of the tile before `key` (rounded down).
__device__ inline uint32_t GranulesBefore(int key, int first_key) {
  return (1u << min(max((key - first_key) >> 4, 0), 8)) - 1;
}

// Up to 16 neighbouring tiles, spread over the lanes: lane i and lane 16 + i have the masks of tile
// `first_tile` + i for halves 0 and 1, and its even and odd page.
struct LaneTiles final {
  int first_tile = 0;
  uint32_t tiles = 0;  // bit i: somebody sees tile first_tile + i
  uint32_t mask = 0;
  int page = 0;
};

// Walks the key tiles of an item in ascending order, 16 candidates at a time.
class TileWalk final {
 public:
  __device__ TileWalk(const PrefillParams& params, int lane)
      : params_(params), lane_(lane), upper_(lane & 16) {}

  __device__ void Start(const ItemPlace& place) {
    rows_ = place.half.rows;
    chunk_ = place.chunk;
    kv_head_ = place.kv_head;
    position_ = place.half.first_position;
    list_ = params_.lists.begins[place.chunk];
    list_size_ = static_cast<int>(params_.lists.ends[place.chunk] - list_);
    list_first_ = list_size_ > 0 ? params_.lists.logical[list_] : 0;
    ranges_left_ = 0;
    if (params_.ranges.begins != nullptr) {
      if (rows_ > 0) {
        const int64_t list = params_.ranges.chunk_offsets[place.chunk] +
                             int64_t{place.half.head} * place.query_tiles + place.query_tile;
        range_ = params_.ranges.begins[list];
        ranges_left_ = static_cast<int>(params_.ranges.ends[list] - range_);
      }
      LoadRanges();
    }
    const int end = rows_ > 0 && list_size_ > 0 ? position_ + rows_ : 0;
    end_key_ = max(end, __shfl_xor_sync(kAllLanes, end, 16));
    first_tile_ = 0;
  }

  // The next candidates of which somebody sees some; false when there are no more. By all lanes.
  __device__ bool Next(LaneTiles* found) {
    while (first_tile_ * kTileKeys < end_key_) {
      *found = Look();
      if (found->tiles != 0) return true;
    }
    return false;
  }

 private:
  // The next 16 candidates: masks, pages, and where to look after them.
  __device__ LaneTiles Look() {
    LaneTiles found;
    found.first_tile = first_tile_;
    const int tile = first_tile_ + (lane_ & 15);
    int next = first_tile_ + kBatchTiles;
    uint32_t mask = StaticMask(tile * kTileKeys, &next);
    if (params_.ranges.begins != nullptr) mask &= RangeMask(tile * kTileKeys, &next);
    const uint32_t other_mask = __shfl_xor_sync(kAllLanes, mask, 16);
    const int page = (mask | other_mask) != 0 ? FindPage(2 * tile + (upper_ >> 4)) : -1;
    const int other_page = __shfl_xor_sync(kAllLanes, page, 16);
    // Keys of a page that is not listed are not seen; the copy takes the other page in its place.
    const uint32_t own = upper_ != 0 ? 0xf0 : 0x0f;
    found.mask = mask & ((page >= 0 ? own : 0) | (other_page >= 0 ? own ^ kFullMask : 0));
    found.page = page >= 0 ? page : other_page;
    const uint32_t seen = __ballot_sync(kAllLanes, found.mask != 0);
    found.tiles = (seen | seen >> 16) & 0xffff;
    first_tile_ = min(next, __shfl_xor_sync(kAllLanes, next, 16));
    return found;
  }

  // What causality, window and sink leave to the rows of this lane's half. Moves *next over the gap
  // between sink and window.
  __device__ uint32_t StaticMask(int first_key, int* next) const {
    if (rows_ == 0) {
      *next = INT_MAX / kTileKeys;
      return 0;
    }
    uint32_t mask = GranulesBefore(position_ + rows_ + kGranuleKeys - 1, first_key);
    const StaticShape shape = ShapeOf(params_, chunk_, kv_head_);
    if (shape.window_tokens > 0) {
      const int window_first = max(0, position_ - shape.window_tokens + 1);
      mask &= ~GranulesBefore(window_first, first_key) |
              GranulesBefore(shape.sink_tokens + kGranuleKeys - 1, first_key);
      if (*next * kTileKeys >= shape.sink_tokens) *next = max(*next, window_first / kTileKeys);
    }
    return mask;
  }

  // The lane's entry of the next 16 of its half's list.
  __device__ void LoadRanges() {
    const int at = lane_ & 15;
    range_begin_ = at < ranges_left_ ? params_.ranges.begin[range_ + at] : INT_MAX;
    range_end_ = at < ranges_left_ ? params_.ranges.end[range_ + at] : INT_MAX;
  }

  // The granules in the key ranges of this lane's half. Moves *next to the tile of the first range
  // after these candidates.
  __device__ uint32_t RangeMask(int first_key, int* next) {
    const int end_key = (first_tile_ + kBatchTiles) * kTileKeys;
    uint32_t mask = 0;
    for (;;) {
#pragma unroll 4
      for (int i = 0; i < 16; ++i) {
        const int from = __shfl_sync(kAllLanes, range_begin_, upper_ | i);
        const int to = __shfl_sync(kAllLanes, range_end_, upper_ | i);
        mask |= GranulesBefore(to, first_key) & ~GranulesBefore(from, first_key);
      }
      const uint32_t done = __ballot_sync(kAllLanes, range_end_ <= end_key) >> upper_ & 0xffff;
      const int after = __shfl_sync(kAllLanes, range_begin_, upper_ | min(__popc(done), 15));
      if (!__any_sync(kAllLanes, done == 0xffff)) {
        *next = max(*next, after / kTileKeys);
        return mask;
      }
      if (done == 0xffff) {  // the other half keeps its entries
        range_ += 16;
        ranges_left_ -= 16;
        LoadRanges();
      }
    }
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
  int chunk_ = 0;
  int kv_head_ = 0;
  int rows_ = 0;
  int position_ = 0;
  int64_t list_ = 0;
  int list_size_ = 0;
  int list_first_ = 0;
  int64_t range_ = 0;    // first entry that is loaded
  int ranges_left_ = 0;  // from it on
  int range_begin_ = 0;  // the lane's entry
  int range_end_ = 0;
  int end_key_ = 0;
  int first_tile_ = 0;  // next candidate
};

}  // namespace lacuna::kernels::cuda
