// PrefillPlan: which key tiles a block of query rows visits, found by all its threads together.
//
// Candidates are the tiles of 64 keys that the static shape leaves to the rows. Each candidate is
// looked up in the chunk's page list and in the key ranges of the (at most two) query tiles of 64
// rows; those that somebody sees are kept, in ascending order, a batch at a time. The main loop
// then reads page ids and masks from shared memory.
#pragma once

#include <cstdint>

#include "kernels/cuda/attend/chunk_table.h"
#include "kernels/cuda/kv_layout.cuh"
#include "kernels/ops/attention.h"

namespace lacuna::kernels::cuda {

inline constexpr int kKeyTile = 64;
inline constexpr int kGroupKeys = 16;  // granularity of ranges, and the smallest page
inline constexpr int kGroups = kKeyTile / kGroupKeys;

// Rows of one block.
struct PlanRows final {
  int first_position = 0;
  int rows = 0;  // at most 128
  int64_t list_begin = 0, list_end = 0;
  int64_t range_first[2] = {0, 0};  // per 64 rows
  int64_t range_end[2] = {0, 0};
};

// The plan and its current batch, in shared memory. `words` begins with one word per tile: tile <<
// 8 | groups seen by rows 64..127 << 4 | by rows 0..63. Page ids follow: a page of 64 has one per
// tile, pages of 16 have four; -1 where there is none.
struct alignas(16) PlanStorage final {
  static constexpr int kWords = 220;
  int32_t words[kWords];
  int32_t warp_counts[8];
  PlanRows rows;
  StaticShape shape;   // of the rows
  int32_t sink_tiles;  // candidates before the gap
  int32_t gap;         // tiles between the sink and the window
  int32_t candidates;
};
static_assert(sizeof(PlanStorage) <= 1024);

class PrefillPlan final {
 public:
  // The thread that fills the storage calls Begin; all others may use it after a barrier.
  __device__ PrefillPlan(const PageLists& lists, const KeyRanges& ranges, int page_tokens,
                         PlanStorage* storage)
      : lists_(lists), ranges_(ranges), storage_(storage), single_(page_tokens == kKeyTile) {}

  __device__ void Begin(const PlanRows& rows, const StaticShape& shape) const {
    const int end = (rows.first_position + rows.rows - 1) / kKeyTile + 1;
    const int window_first =
        shape.window_tokens == 0 ? 0 : max(0, rows.first_position - shape.window_tokens + 1);
    storage_->rows = rows;
    storage_->shape = shape;
    storage_->sink_tiles = min(end, (shape.sink_tokens + kKeyTile - 1) / kKeyTile);
    storage_->gap = max(0, window_first / kKeyTile - storage_->sink_tiles);
    storage_->candidates = end - storage_->gap;
  }

  // Finds the next batch; returns the tiles in it, 0 when there are no more. All threads call it,
  // after they are done with the batch before.
  __device__ int Next() {
    while (next_ < storage_->candidates) {
      const int kept = NextBatch();
      if (kept > 0) return kept;
    }
    return 0;
  }

  __device__ int Meta(int index) const { return storage_->words[index]; }
  // The page of a tile when pages have 64 tokens; of its groups of 16 keys otherwise.
  __device__ int Page(int index) const { return storage_->words[kSingle + index]; }
  __device__ int4 Pages(int index) const {
    return *reinterpret_cast<const int4*>(&storage_->words[kMulti + index * kGroups]);
  }
  __device__ bool single() const { return single_; }
  __device__ StaticShape shape() const { return storage_->shape; }

 private:
  static constexpr int kSingle = PlanStorage::kWords / 2;
  static constexpr int kMulti = PlanStorage::kWords / (1 + kGroups) / kGroups * kGroups;

  __device__ int NextBatch() {
    const int thread = static_cast<int>(threadIdx.x);
    const int batch = min(single_ ? kSingle : kMulti, static_cast<int>(blockDim.x));
    const int candidate = next_ + thread;
    next_ += batch;
    int pages[kGroups];
    int meta = 0;
    if (thread < batch && candidate < storage_->candidates) {
      const int tile = candidate + (candidate < storage_->sink_tiles ? 0 : storage_->gap);
      const int present = FindPages(tile, pages);
      const int seen = (SeenGroups(0, tile) & present) | (SeenGroups(1, tile) & present) << 4;
      if (seen != 0) meta = tile << 8 | seen;
    }
    const unsigned kept = __ballot_sync(~0u, meta != 0);
    const int warp = thread >> 5;
    if ((thread & 31) == 0) storage_->warp_counts[warp] = __popc(kept);
    __syncthreads();
    int at = __popc(kept & ((1u << (thread & 31)) - 1));
    int total = 0;
    for (int w = 0; w < static_cast<int>(blockDim.x) >> 5; ++w) {
      at += w < warp ? storage_->warp_counts[w] : 0;
      total += storage_->warp_counts[w];
    }
    if (meta != 0) {
      storage_->words[at] = meta;
      if (single_) {
        storage_->words[kSingle + at] = pages[0];
      } else {
#pragma unroll
        for (int g = 0; g < kGroups; ++g) {
          storage_->words[kMulti + at * kGroups + g] = pages[g];
        }
      }
    }
    __syncthreads();
    return total;
  }

  // Entry of the list whose logical index is `target`, or the first one after it.
  __device__ int64_t LowerBound(int target) const {
    int64_t low = storage_->rows.list_begin;
    int64_t high = storage_->rows.list_end;
    if (low >= high) return high;
    const int64_t guess =
        low + max(0, target - lists_.logical[low]);  // right if no page is missing
    if (guess < high && lists_.logical[guess] == target) return guess;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (lists_.logical[middle] < target) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }

  // Bits of the groups of the tile whose pages are listed. Pages after the last row are left out:
  // nothing may have been written to them yet.
  __device__ int FindPages(int tile, int (&pages)[kGroups]) const {
    const int first = single_ ? tile : tile * kGroups;
    int64_t entry = LowerBound(first);
    if (single_) {
      const bool listed = entry < storage_->rows.list_end && lists_.logical[entry] == first;
      pages[0] = listed ? lists_.pages[entry] : -1;
      return listed ? 15 : 0;
    }
    const int last = (storage_->rows.first_position + storage_->rows.rows - 1) / kGroupKeys;
    int present = 0;
#pragma unroll
    for (int g = 0; g < kGroups; ++g) {
      pages[g] = -1;
      if (entry < storage_->rows.list_end && lists_.logical[entry] == first + g &&
          first + g <= last) {
        pages[g] = lists_.pages[entry++];
        present |= 1 << g;
      }
    }
    return present;
  }

  // Bits of the groups of the tile that rows [64 * half, 64 * half + 64) may see.
  __device__ int SeenGroups(int half, int tile) const {
    constexpr int kRows = KeyRanges::kQueryTileTokens;
    const int rows = min(storage_->rows.rows, (half + 1) * kRows);
    const int first = tile * kKeyTile;
    if (rows <= half * kRows || first > storage_->rows.first_position + rows - 1) return 0;
    if (ranges_.begins == nullptr) return 15;
    const int64_t end = storage_->rows.range_end[half];
    int64_t low = storage_->rows.range_first[half];
    for (int64_t high = end; low < high;) {
      const int64_t middle = (low + high) / 2;
      if (ranges_.end[middle] <= first) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    int seen = 0;
    for (; low < end && ranges_.begin[low] < first + kKeyTile; ++low) {
      const int from = max(0, ranges_.begin[low] - first) / kGroupKeys;
      const int to = min(kKeyTile, ranges_.end[low] - first + kGroupKeys - 1) / kGroupKeys;
      if (to > from) seen |= (1 << to) - (1 << from);
    }
    return seen;
  }

  const PageLists& lists_;
  const KeyRanges& ranges_;
  PlanStorage* storage_;
  bool single_;
  int next_ = 0;
};

}  // namespace lacuna::kernels::cuda
