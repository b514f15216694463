// How the thread blocks of a decode launch divide the page lists among them, computed by every
// block from the list lengths in device memory.
//
// All units laid end to end, each as long as its list, form a line that is cut into equal ranges; a
// unit has one part per range that it meets. Block i takes range i, and when there are more ranges
// than blocks, then whichever is next.
//  - By default the line is measured in stages and there are no more ranges than blocks. Parts
//    depend on the batch. (Handing out a last quarter in short ranges was slower: a part costs more
//    than what unequal multiprocessors lose.) Where the lists are so short that each may be cut
//    into shares by itself, the line is measured in shares: a block never has ends of two units,
//    whose merges it would make one after the other.
//  - In deterministic mode a list is cut into items by its own length alone, the line is measured
//    in items, and every range is an item: bits do not depend on the other rows.
#pragma once

#include <cstdint>

#include "kernels/cuda/attend/attend_decode.h"

namespace lacuna::kernels::cuda {

// Divisions stand on the way to the first copy, and most of their divisors are one.
__device__ inline int Quotient(int a, int b) { return b == 1 ? a : a / b; }

// An entry is a list; its stages are read by `units_per_entry` units, one after the other.
__device__ inline int EntryCount(const DecodeParams& p) { return p.rows * p.lists_per_row; }
__device__ inline int UnitsPerEntry(const DecodeParams& p) {
  return p.lists_per_row == 1 ? p.kv_heads * p.tiles : p.tiles;
}
__device__ inline int StagesOf(const DecodeParams& p, int pages) {
  return p.page_tokens == kStageTokens ? pages : (pages + 3) / 4;
}
__device__ inline int TileHeads(const DecodeParams& p, int tile) {
  return min(p.tile_heads, p.group - tile * p.tile_heads);
}
__device__ inline int ItemStages(const DecodeParams& p, int stages) {
  return max(kItemStagesMin, (stages + p.list_items - 1) / p.list_items);
}
// The line: its length, in stages or in shares (in deterministic mode in items).
struct Line final {
  int length = 0;
  bool shares = false;
};
// Of a list that is cut into shares.
__device__ inline int ShareStages(int stages) {
  return stages <= kWholeStages ? kWholeStages : kShareStagesMin;
}
// Of a list, on the line.
__device__ inline int LengthOf(const DecodeParams& p, bool shares, int pages) {
  const int stages = StagesOf(p, pages);
  if (p.list_items == 0) {
    if (!shares) return stages;
    return stages <= kWholeStages ? min(stages, 1)
                                  : (stages + kShareStagesMin - 1) / kShareStagesMin;
  }
  const int item = ItemStages(p, stages);
  return (stages + item - 1) / item;
}

// The cuts of the line.
struct Ranges final {
  int total = 0;
  bool shares = false;  // see Line
  int share = 1;        // length of a range
  int count = 0;
  int firsts = 0;  // the ranges that blocks start with

  __device__ Ranges(const DecodeParams& p, const Line& line, int blocks)
      : total(line.length), shares(line.shares) {
    if (p.list_items == 0 && !shares) {
      share = max((total + blocks - 1) / blocks, kShareStagesMin);
    }
    count = Quotient(total + share - 1, share);
    firsts = min(count, blocks);
  }
  __device__ int Begin(int range) const { return range * share; }
  __device__ int End(int range) const { return min((range + 1) * share, total); }
  // The range that holds position `at` of the line.
  __device__ int Of(int at) const { return Quotient(at, share); }
};

struct Entry final {
  int64_t begin;  // of its list, in `pages`
  int pages;
  int position;  // of the query
};
__device__ inline Entry ReadEntry(const DecodeParams& p, int entry) {
  const int64_t begin = p.begins[entry];
  return {begin, static_cast<int>(p.ends[entry] - begin),
          p.positions[Quotient(entry, p.lists_per_row)]};
}

// Thread t has looked at the entries [t * run, (t + 1) * run), which start at begins[t] of the
// line.
struct ScheduleScratch final {
  static constexpr int kThreadsMax = 32 * DecodeWarps(kTileHeads);
  int warp_sums[32];
  int begins[kThreadsMax];
  Entry entries[kThreadsMax];  // when run is 1
};

// Whether the producer warp measures the line by itself, a lane an entry: no barrier of the block
// stands between the launch and the first copies.
__device__ inline bool FewEntries(const DecodeParams& p) { return EntryCount(p) <= 32; }

__device__ inline int EntryRun(const DecodeParams& p) {
  if (FewEntries(p)) return 1;
  const int threads = static_cast<int>(blockDim.x);
  return (EntryCount(p) + threads - 1) / threads;
}

__device__ inline int ScanWarp(int value) {
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(~0u, value, step);
    if (static_cast<int>(threadIdx.x) % 32 >= step) value += other;
  }
  return value;
}

// Where FewEntries, by one warp: fills `scratch`.
__device__ inline Line MeasureFew(const DecodeParams& p, ScheduleScratch& scratch, int blocks) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  Entry entry{};
  if (lane < EntryCount(p)) entry = ReadEntry(p, lane);
  const auto measure = [&](bool shares) {
    return LengthOf(p, shares, entry.pages) * UnitsPerEntry(p);
  };
  Line line;
  int length = measure(true);
  int scan = ScanWarp(length);
  line.length = __shfl_sync(~0u, scan, 31);
  line.shares = true;
  if (line.length > blocks && p.list_items == 0) {
    length = measure(false);
    scan = ScanWarp(length);
    line.length = __shfl_sync(~0u, scan, 31);
    line.shares = false;
  }
  scratch.entries[lane] = entry;
  scratch.begins[lane] = scan - length;
  __syncwarp();
  return line;
}

// By all threads of the block, which it synchronises: fills `scratch`.
__device__ inline Line MeasureLine(const DecodeParams& p, ScheduleScratch& scratch) {
  const int thread = static_cast<int>(threadIdx.x);
  const int run = EntryRun(p);
  int sum = 0;
  for (int i = 0; i < run; ++i) {
    const int index = thread * run + i;
    if (index >= EntryCount(p)) break;
    const Entry entry = ReadEntry(p, index);
    if (run == 1) scratch.entries[thread] = entry;
    sum += LengthOf(p, false, entry.pages);
  }
  sum *= UnitsPerEntry(p);
  const int scan = ScanWarp(sum);
  if (thread % 32 == 31) scratch.warp_sums[thread / 32] = scan;
  __syncthreads();
  int before = 0;
  int total = 0;
#pragma unroll 1
  for (int warp = 0; warp < static_cast<int>(blockDim.x) / 32; ++warp) {
    const int warp_sum = scratch.warp_sums[warp];
    if (warp < thread / 32) before += warp_sum;
    total += warp_sum;
  }
  scratch.begins[thread] = before + scan - sum;
  __syncthreads();
  return {total, false};
}

// By one warp: the last thread that measured whose entries start at or before `at`.
__device__ inline int FindRun(const DecodeParams& p, const ScheduleScratch& scratch, int at) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int threads = min(EntryCount(p), static_cast<int>(blockDim.x));
  int found = 0;
#pragma unroll 1
  for (int base = 0; base < threads; base += 32) {
    const unsigned before = __ballot_sync(~0u, scratch.begins[base + lane] <= at);
    if (before == 0) break;
    found = base + 31 - __clz(static_cast<int>(before));
  }
  return found;
}

// What a block computes at a time: stages [begin, end) of one unit, one of `parts` partial results.
struct Segment final {
  int64_t list_begin;  // of the unit's list, in `pages`
  int list_pages;
  int row;
  int kv_head;
  int tile;
  int position;
  int begin;
  int end;
  int part;
  int parts;
  int slot_base;  // see SlotOf
};

// The workspace slot of a part. By default a range has at most two partial units: one that began in
// an earlier range (slot 2 * range) and one that goes on in a later range (part 0, slot 2 * range +
// 1).
__device__ inline int SlotOf(const DecodeParams& p, int slot_base, int part) {
  if (p.list_items > 0) return slot_base + part;
  return slot_base + 2 * part + (part == 0 ? 1 : 0);
}

// The segment of a unit, of length `length` from `unit_begin` on, in a range.
__device__ inline void CutSegment(const DecodeParams& p, const Ranges& ranges, int range,
                                  int unit_begin, int length, Segment* segment) {
  const int from = max(ranges.Begin(range) - unit_begin, 0);
  if (p.list_items == 0) {
    const int first_range = ranges.Of(unit_begin);
    const int stages = StagesOf(p, segment->list_pages);
    const int unit = ranges.shares ? ShareStages(stages) : 1;
    segment->begin = from * unit;
    segment->end = min((ranges.End(range) - unit_begin) * unit, stages);
    segment->parts = ranges.Of(unit_begin + length - 1) - first_range + 1;
    segment->part = range - first_range;
    segment->slot_base = 2 * first_range;
  } else {
    const int stages = StagesOf(p, segment->list_pages);
    const int item = ItemStages(p, stages);
    segment->begin = from * item;
    segment->end = min(segment->begin + item, stages);
    segment->parts = length;
    segment->part = from;
    segment->slot_base =
        ((segment->row * p.kv_heads + segment->kv_head) * p.tiles + segment->tile) * kListItemsMax;
  }
}

// By one warp: calls visit(segment) for every segment of a range, in order.
template <typename Visit>
__device__ void VisitRange(const DecodeParams& p, const ScheduleScratch& scratch,
                           const Ranges& ranges, int range, Visit&& visit) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int units = UnitsPerEntry(p);
  const int run = EntryRun(p);
  const int begin = ranges.Begin(range);
  const int end = ranges.End(range);
  const int found = FindRun(p, scratch, begin);
  const int first_entry = found * run;
  int entry_begin = scratch.begins[found];
  Entry held{};  // by each lane, one of the current 32
#pragma unroll 1
  for (int index = 0; entry_begin < end; ++index) {
    if (index % 32 == 0) {
      const int mine = first_entry + index + lane;
      held.pages = 0;
      if (mine < EntryCount(p)) held = run == 1 ? scratch.entries[mine] : ReadEntry(p, mine);
    }
    Segment segment;
    segment.list_pages = __shfl_sync(~0u, held.pages, index % 32);
    const int length = LengthOf(p, ranges.shares, segment.list_pages);
    const int entry_end = entry_begin + length * units;
    if (length > 0 && entry_end > begin) {
      const int entry = first_entry + index;
      segment.list_begin = __shfl_sync(~0u, held.begin, index % 32);
      segment.position = __shfl_sync(~0u, held.position, index % 32);
      segment.row = Quotient(entry, p.lists_per_row);
#pragma unroll 1
      for (int unit = max(begin - entry_begin, 0) / length;
           unit < units && entry_begin + unit * length < end; ++unit) {
        const int head_and_tile = (entry - segment.row * p.lists_per_row) * p.tiles + unit;
        segment.kv_head = Quotient(head_and_tile, p.tiles);
        segment.tile = head_and_tile - segment.kv_head * p.tiles;
        CutSegment(p, ranges, range, entry_begin + unit * length, length, &segment);
        visit(segment);
      }
    }
    entry_begin = entry_end;
  }
}

// By one warp: the ranges of this block, one after the other.
template <typename Visit>
__device__ void VisitRanges(const DecodeParams& p, const ScheduleScratch& scratch,
                            const Ranges& ranges, Visit&& visit) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int range = static_cast<int>(blockIdx.x);
  while (range < ranges.count) {
    VisitRange(p, scratch, ranges, range, visit);
    if (ranges.count == ranges.firsts) return;
    if (lane == 0) range = ranges.firsts + atomicAdd(&p.counters->next, 1);
    range = __shfl_sync(~0u, range, 0);
  }
  // The last block to come here leaves the counters as they were.
  if (ranges.count == ranges.firsts || lane != 0) return;
  if (atomicAdd(&p.counters->done, 1) == static_cast<int>(gridDim.x) - 1) {
    p.counters->next = 0;
    p.counters->done = 0;
  }
}

}  // namespace lacuna::kernels::cuda
