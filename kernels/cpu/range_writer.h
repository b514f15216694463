// RangeWriter: turns what was chosen for a slice into the ranges and counts of each tile. Engine
// thread, work over the pool.
#pragma once

#include <cstdint>

#include "kernels/cpu/range_choice.h"
#include "kernels/cpu/range_slice.h"
#include "kernels/cpu/select_ranges.h"

namespace lacuna::kernels::cpu {

inline constexpr int64_t kRangeGroupTokens = 16;

// The first position of the prompt whose query attends densely.
int64_t DenseFrom(const RangeSlice& slice);

// Writes the lists of all heads and of the tiles that begin in the slice.
void WriteRanges(const RangeSlice& slice, SelectRangesScratch& scratch);

// The kept blocks of one row of blocks, in scratch.kept.
UnitSet KeptBlocks(const RangeSlice& slice, const SelectRangesScratch& scratch, int64_t q_head,
                   int64_t query_block);

}  // namespace lacuna::kernels::cpu
