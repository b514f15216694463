// SelectRanges on the CPU. One caller at a time; the work spreads over the pool.
//
// A chunk goes in slices of whole cells (range_slice.h). Each slice: estimate (range_probe.h,
// range_pooled.h, both over range_product.h), choose (range_choice.h), write the ranges of each
// tile. Every tile's ranges are those of a bitmap of 16-key groups.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/core/status.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/range_choice.h"
#include "kernels/cpu/range_pooled.h"
#include "kernels/cpu/range_probe.h"
#include "kernels/cpu/range_product.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/ops/select_ranges.h"

namespace lacuna::kernels::cpu {

// What SelectRanges writes besides its outputs; grows to the largest slice and keeps its memory.
struct SelectRangesScratch final {
  // What the tiles of a cell read of one probed head.
  struct CellChoice final {
    std::vector<uint64_t> groups;  // of 16 keys: columns
    std::vector<Span> distances;   // ascending, disjoint
    bool reads_map = false;        // and the blocks kept of each row
  };
  struct Worker final {
    std::vector<uint64_t> order, words;
    std::vector<float> sums;
  };

  explicit SelectRangesScratch(int threads) : workers(static_cast<size_t>(threads)) {}

  RangeProduct product;
  AntidiagonalMap antidiagonal;
  BlockMeans means;
  BlockScores scores, second_scores;
  RangeProbe probe;
  AlignedArray<uint64_t> kept;    // [q_heads][query_blocks][words of key_blocks]
  std::vector<CellChoice> cells;  // [q_heads][cells]
  std::vector<Worker> workers;
};

// head_dim up to kHeadDimMax, units of four bytes; else kInvalidArgument. kExhausted when scratch
// finds no memory. The same ranges for any number of threads.
Status SelectRangesCpu(const SelectRangesArgs& args, Isa isa, ThreadPool& pool,
                       SelectRangesScratch& scratch);

}  // namespace lacuna::kernels::cpu
