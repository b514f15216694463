// How the thread blocks of a decode launch divide the page lists among them, computed by every
// block from the list lengths in device memory.
//
// All units laid end to end, each as long as its list in stages, are cut into equal shares, one per
// block. By default a share is cut wherever it falls; a unit then has one part per block that its
// stages touch. In deterministic mode a list is cut into items by its own length alone, and a block
// takes the items that start in its share: bits do not depend on the other rows.
#pragma once

#include <cstdint>

#include "kernels/cuda/attend_decode.h"

namespace lacuna::kernels::cuda {

// An entry is a list; its stages are read by `units_per_entry` units, one after the other.
__device__ inline int EntryCount(const DecodeParams& p) { return p.rows * p.lists_per_row; }
__device__ inline int UnitsPerEntry(const DecodeParams& p) {
  return p.lists_per_row == 1 ? p.kv_heads * p.tiles : p.tiles;
}
__device__ inline int StagesOf(const DecodeParams& p, int64_t pages) {
  const int per_stage = kStageTokens / p.page_tokens;
  return pages <= 0 ? 0 : static_cast<int>((pages + per_stage - 1) / per_stage);
}

__device__ inline int TileHeads(const DecodeParams& p, int tile) {
  return min(p.tile_heads, p.group - tile * p.tile_heads);
}

// The stages [begin, end) of this block, of `total` that `blocks` blocks share.
struct Share final {
  int begin = 0;
  int end = 0;
  int total = 0;
  int blocks = 0;

  __device__ static int Cut(int block, int total, int blocks) {
    return static_cast<int>(static_cast<int64_t>(block) * total / blocks);
  }
  // The block whose share holds `stage`.
  __device__ int BlockOf(int stage) const {
    return static_cast<int>(((static_cast<int64_t>(stage) + 1) * blocks - 1) / total);
  }
};

// Where to begin looking for the entry of a share: `first_entry` starts at `first_stage`.
struct ScheduleStart final {
  int entry = 0;
  int stage = 0;
};

// Shared memory of the scan.
struct ScheduleScratch final {
  int warp_sums[32];
  int chunk_begins[32 * DecodeWarps(kTileHeads)];
};

// By all threads of the block. Thread t sums a run of entries; the runs' first stages stay in
// `scratch` for FindStart.
__device__ inline Share ComputeShare(const DecodeParams& p, ScheduleScratch& scratch) {
  const int threads = static_cast<int>(blockDim.x);
  const int thread = static_cast<int>(threadIdx.x);
  const int entries = EntryCount(p);
  const int run = (entries + threads - 1) / threads;
  int sum = 0;
  for (int i = 0; i < run; ++i) {
    const int entry = thread * run + i;
    if (entry < entries) sum += StagesOf(p, p.ends[entry] - p.begins[entry]);
  }
  sum *= UnitsPerEntry(p);
  int scan = sum;
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(~0u, scan, step);
    if (thread % 32 >= step) scan += other;
  }
  if (thread % 32 == 31) scratch.warp_sums[thread / 32] = scan;
  __syncthreads();
  int before = 0;
  int total = 0;
  for (int warp = 0; warp < threads / 32; ++warp) {
    const int warp_sum = scratch.warp_sums[warp];
    if (warp < thread / 32) before += warp_sum;
    total += warp_sum;
  }
  scratch.chunk_begins[thread] = before + scan - sum;
  __syncthreads();

  Share share;
  share.total = total;
  const int used = (total + p.block_stages_min - 1) / p.block_stages_min;
  share.blocks = max(1, min(static_cast<int>(gridDim.x), used));
  const int block = static_cast<int>(blockIdx.x);
  if (block < share.blocks) {
    share.begin = Share::Cut(block, total, share.blocks);
    share.end = Share::Cut(block + 1, total, share.blocks);
  }
  return share;
}

// By one warp: the last run that starts at or before `stage`.
__device__ inline ScheduleStart FindStart(const DecodeParams& p, const ScheduleScratch& scratch,
                                          int stage) {
  const int threads = static_cast<int>(blockDim.x);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int found = 0;
  for (int base = 0; base < threads; base += 32) {
    const unsigned at = __ballot_sync(~0u, scratch.chunk_begins[base + lane] <= stage);
    if (at != 0) found = base + 31 - __clz(static_cast<int>(at));
  }
  const int run = (EntryCount(p) + threads - 1) / threads;
  return {found * run, scratch.chunk_begins[found]};
}

// What a block computes at a time: stages [begin, end) of one unit, one of `parts` partial results.
struct Segment final {
  int64_t list_begin = 0;  // of the unit's list, in `pages`
  int list_pages = 0;
  int row = 0;
  int kv_head = 0;
  int tile = 0;
  int position = 0;
  int begin = 0;
  int end = 0;
  int part = 0;
  int parts = 1;
  int slot_base = 0;  // see SlotOf
};

// The workspace slot of a part. When shares are cut anywhere a block has at most two partial units:
// one that began in an earlier block (slot 2 * block) and one that goes on in a later block (part
// 0, slot 2 * block + 1).
__device__ inline int SlotOf(const DecodeParams& p, int slot_base, int part) {
  if (p.list_items > 0) return slot_base + part;
  return slot_base + 2 * part + (part == 0 ? 1 : 0);
}

// By one warp: calls visit(segment) for the segments of a unit whose first stage is `unit_begin` of
// all and which has `stages`.
template <typename Visit>
__device__ void VisitUnit(const DecodeParams& p, const Share& share, int unit_begin, int stages,
                          Segment segment, Visit&& visit) {
  const int from = max(share.begin - unit_begin, 0);
  const int to = min(share.end - unit_begin, stages);
  if (p.list_items == 0) {
    const int first_block = share.BlockOf(unit_begin);
    segment.begin = from;
    segment.end = to;
    segment.parts = share.BlockOf(unit_begin + stages - 1) - first_block + 1;
    segment.part = static_cast<int>(blockIdx.x) - first_block;
    segment.slot_base = 2 * first_block;
    visit(segment);
    return;
  }
  const int item = max(kItemStagesMin, (stages + p.list_items - 1) / p.list_items);
  segment.parts = (stages + item - 1) / item;
  segment.slot_base =
      ((segment.row * p.kv_heads + segment.kv_head) * p.tiles + segment.tile) * kListItemsMax;
  for (segment.part = (from + item - 1) / item; segment.part * item < to; ++segment.part) {
    segment.begin = segment.part * item;
    segment.end = min(segment.begin + item, stages);
    visit(segment);
  }
}

// By one warp: calls visit(segment) for every segment of the block's share, in order.
template <typename Visit>
__device__ void VisitShare(const DecodeParams& p, const Share& share,
                           const ScheduleScratch& scratch, Visit&& visit) {
  if (share.begin >= share.end) return;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int entries = EntryCount(p);
  const int units = UnitsPerEntry(p);
  const ScheduleStart start = FindStart(p, scratch, share.begin);
  int entry_begin = start.stage;
  int64_t lane_begin = 0;  // of the entry that this lane holds of the current 32
  int lane_pages = 0;
  int lane_position = 0;
  for (int index = 0; entry_begin < share.end; ++index) {
    if (index % 32 == 0) {
      const int mine = start.entry + index + lane;
      lane_pages = 0;
      if (mine < entries) {
        lane_begin = p.begins[mine];
        lane_pages = static_cast<int>(p.ends[mine] - lane_begin);
        lane_position = p.positions[mine / p.lists_per_row];
      }
    }
    Segment segment;
    segment.list_pages = __shfl_sync(~0u, lane_pages, index % 32);
    const int stages = StagesOf(p, segment.list_pages);
    const int entry_end = entry_begin + stages * units;
    if (entry_end > share.begin && stages > 0) {
      const int entry = start.entry + index;
      segment.list_begin = __shfl_sync(~0u, lane_begin, index % 32);
      segment.position = __shfl_sync(~0u, lane_position, index % 32);
      segment.row = entry / p.lists_per_row;
      for (int unit = max(share.begin - entry_begin, 0) / stages;
           unit < units && entry_begin + unit * stages < share.end; ++unit) {
        const int head_and_tile = (entry % p.lists_per_row) * p.tiles + unit;
        segment.kv_head = head_and_tile / p.tiles;
        segment.tile = head_and_tile % p.tiles;
        VisitUnit(p, share, entry_begin + unit * stages, stages, segment, visit);
      }
    }
    entry_begin = entry_end;
  }
}

}  // namespace lacuna::kernels::cuda
