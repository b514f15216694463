// RangeSlice: the rows of one chunk that SelectRanges works on together, and what its stages share.
// Lives on the engine thread's stack; the stages run over the pool.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/cpu/aligned_array.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/range_keys.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/ops/range_limits.h"
#include "kernels/ops/select_ranges.h"

namespace lacuna::kernels::cpu {

// Positions [first, end).
struct Span final {
  int64_t first = 0, end = 0;
  int64_t tokens() const { return end - first; }
};

struct RangeSlice final {
  const SelectRangesArgs& args;
  Isa isa;
  ThreadPool& pool;
  size_t chunk;
  Span rows;
  std::vector<HeadMode> modes;  // [q_heads]

  const RangeChunk& part() const { return args.chunks[chunk]; }
  const PrefillDials& dials() const { return part().dials; }
  int64_t q_heads() const { return args.q.dim(1); }
  int64_t group() const { return q_heads() / args.pool.kv_heads; }
  int64_t block() const { return args.path.block_tokens; }

  // Blocks of queries that the slice touches, and all blocks of keys.
  int64_t first_block() const { return rows.first / block(); }
  int64_t query_blocks() const { return CeilDiv(rows.end, block()) - first_block(); }
  int64_t key_blocks() const { return CeilDiv(rows.end, block()); }
  // The slice's rows of query block `index`, counted from first_block.
  Span BlockRows(int64_t index) const {
    const int64_t begin = (first_block() + index) * block();
    return {std::max(begin, rows.first), std::min(begin + block(), rows.end)};
  }

  int64_t cell_tokens() const { return args.path.cell_tokens; }
  int64_t first_cell() const { return rows.first / cell_tokens(); }
  int64_t cells() const { return CeilDiv(rows.end, cell_tokens()) - first_cell(); }
  Span CellRows(int64_t index) const {
    const int64_t begin = (first_cell() + index) * cell_tokens();
    return {std::max(begin, rows.first), std::min(begin + cell_tokens(), rows.end)};
  }

  KeySource Keys() const {
    return {args.pool, args.lists, args.lists.begins[chunk], args.lists.ends[chunk], rows.end};
  }
  const std::byte* Query(int64_t position, int64_t q_head) const {
    const int64_t row = part().chunk.first_row + position - part().chunk.first_position;
    return args.q.as<std::byte>() + (row * args.q.stride(0) + q_head * args.q.stride(1)) *
                                        static_cast<int64_t>(DTypeBytes(args.q.dtype()));
  }
};

// Newest tokens that a query at `position` sees in any case.
inline int64_t LocalTokens(const PrefillDials& dials, int64_t position) {
  const auto share = static_cast<int64_t>(dials.local_fraction * static_cast<double>(position));
  return std::max<int64_t>(dials.local_tokens, share);
}
// The oldest of them over rows [first, ...): later rows start no earlier.
inline int64_t LocalBegin(const PrefillDials& dials, int64_t first) {
  return std::max<int64_t>(first - LocalTokens(dials, first) + 1, 0);
}

// scores[(q_head * query_blocks + query block) * key_blocks + key block]: a distribution over the
// causal blocks of each row, times the rows that it sums up.
struct BlockScores final {
  int64_t query_blocks = 0, key_blocks = 0;
  AlignedArray<float> values;

  Status Fit(const RangeSlice& slice) {
    query_blocks = slice.query_blocks();
    key_blocks = slice.key_blocks();
    return values.Fit(slice.q_heads() * query_blocks * key_blocks);
  }
  float* Row(int64_t q_head, int64_t query_block) const {
    return values.data() + (q_head * query_blocks + query_block) * key_blocks;
  }
};

}  // namespace lacuna::kernels::cpu
