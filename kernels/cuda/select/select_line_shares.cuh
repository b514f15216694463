// The line of work of the scoring kernels whose warps work on their own: shares of the chunks of
// one (row, head), as even as can be, one to a warp. Device code.
//
// One level of loads: a row counts when its own words say that it may choose. A list with a gap,
// which only its entries show (PlanRow), is scored in vain; nobody reads those scores.
#pragma once

#include <cstdint>

#include "kernels/cuda/select/select_keys.h"

namespace lacuna::kernels::cuda {

// Consecutive chunks of one head of one row.
struct Share final {
  int row = 0;  // in the group
  int head = 0;
  int first = 0, end = 0;
  int tokens = 0;           // of the row
  int64_t first_entry = 0;  // of its pages
};

// All members by whole warps; every warp of the grid sees the same line.
class ShareLine final {
 public:
  __device__ ShareLine(const SelectKeysCall& call, int chunk_tokens, int warps)
      : call_(call), lane_(static_cast<int>(threadIdx.x) % 32), chunk_tokens_(chunk_tokens) {
    near_ = LoadRow(lane_);
    unsigned total = 0, rows = 0;
    for (int first = 0; first < call.group_rows; first += 32) {
      const int chunks = RowAt(first).chunks;
      total += Sum(chunks);
      rows += static_cast<unsigned>(__popc(__ballot_sync(~0u, chunks > 0)));
    }
    // Every (row, head) rounds up to whole shares.
    const unsigned pairs = rows * static_cast<unsigned>(call.kv_heads);
    const auto all = static_cast<unsigned>(warps);
    const unsigned even = all > 2 * pairs ? all - pairs : max(all / 2, 1u);
    total *= static_cast<unsigned>(call.kv_heads);
    share_chunks_ = static_cast<int>(max((total + even - 1) / even, 1u));
  }

  // False behind the last share.
  __device__ bool Find(int index, Share* share) const {
    int before = 0;
    for (int first = 0; first < call_.group_rows; first += 32) {
      const Row row = RowAt(first);
      const int shares = (row.chunks + share_chunks_ - 1) / share_chunks_;
      int ends = shares;
#pragma unroll
      for (int step = 1; step < 32; step *= 2) {
        const int other = __shfl_up_sync(~0u, ends, static_cast<unsigned>(step));
        if (lane_ >= step) ends += other;
      }
      const unsigned behind = __ballot_sync(~0u, (before + ends) * call_.kv_heads > index);
      if (behind != 0) {
        const int owner = __ffs(static_cast<int>(behind)) - 1;
        const int of_row = __shfl_sync(~0u, shares, owner);
        const int chunks = __shfl_sync(~0u, row.chunks, owner);
        const int row_before = before + __shfl_sync(~0u, ends, owner) - of_row;
        const int in_row = index - row_before * call_.kv_heads;
        share->row = first + owner;
        share->head = in_row / of_row;
        const int part = in_row - share->head * of_row;
        share->first = Cut(chunks, part, of_row);
        share->end = Cut(chunks, part + 1, of_row);
        share->tokens = __shfl_sync(~0u, row.tokens, owner);
        share->first_entry = __shfl_sync(~0u, row.first_entry, owner);
        return true;
      }
      before += __shfl_sync(~0u, ends, 31);
    }
    return false;
  }

 private:
  struct Row final {
    int chunks = 0;  // of one head; 0: the row chooses nothing
    int tokens = 0;
    int64_t first_entry = 0;
  };

  // Shares of a row are about as many as warps at most, so the product holds.
  __device__ static int Cut(int chunks, int part, int parts) {
    return static_cast<int>(static_cast<unsigned>(chunks) * static_cast<unsigned>(part) /
                            static_cast<unsigned>(parts));
  }
  // ceil(tokens / size); sizes are powers of two.
  __device__ static int Pieces(int tokens, int size) {
    return (tokens + size - 1) >> (31 - __clz(size));
  }
  __device__ static unsigned Sum(int value) {
#pragma unroll
    for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
    return static_cast<unsigned>(value);
  }
  __device__ Row RowAt(int first) const { return first == 0 ? near_ : LoadRow(first + lane_); }
  __device__ Row LoadRow(int i) const {
    Row row;
    if (i >= call_.group_rows) return row;
    const int at = call_.first_row + i;
    const SelectRow& what = call_.rows[at];
    const DecodeCounts counts = what.counts;
    const int choice = what.choice;
    const bool anew =
        call_.path.refresh == RefreshKind::kCosine ? call_.turned[i] != 0 : what.choose;
    row.tokens = max(call_.positions[at], -1) + 1;
    row.first_entry = call_.pages.begins[at];
    const int64_t listed = call_.pages.ends[at] - row.first_entry;
    const int needed = Pieces(row.tokens, call_.page_tokens);
    const int units = Pieces(row.tokens, call_.path.unit_tokens);
    const bool sound = !counts.dense && row.tokens > 0 && counts.units == units &&
                       counts.sink_units >= 0 && counts.local_units >= 0 &&
                       counts.local_units <= counts.units - counts.sink_units;
    if (sound && anew && choice >= 0 && needed <= listed && needed <= call_.pages_max) {
      row.chunks = Pieces(row.tokens, chunk_tokens_);
    }
    return row;
  }

  const SelectKeysCall& call_;
  const int lane_, chunk_tokens_;
  Row near_;  // of the first 32
  int share_chunks_ = 1;
};

}  // namespace lacuna::kernels::cuda
