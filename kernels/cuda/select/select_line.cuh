// The line of work of a scoring kernel: chunks of the rows that choose, cut evenly among the thread
// blocks of a fixed grid, so that long and short rows mix and counts stay on the device. Device
// code.
//
// The line is ordered by row, head (whatever a kernel means by it), chunk: consecutive chunks of a
// block mostly share their head. What a chunk's results are never depends on who computes it.
#pragma once

#include <cstdint>

#include "kernels/cuda/select/select_keys.h"

namespace lacuna::kernels::cuda {

struct ChunkLine final {
  int32_t ends[kSelectRowsMax];  // chunks of one head of the rows up to this one
  int32_t tokens[kSelectRowsMax];
  int64_t first_entry[kSelectRowsMax];  // of its pages
};

// By all threads of a block.
__device__ inline void MeasureChunks(const SelectKeysCall& call, int chunk_tokens,
                                     ChunkLine& line) {
  const int thread = static_cast<int>(threadIdx.x);
  for (int i = thread; i < call.group_rows; i += static_cast<int>(blockDim.x)) {
    const RowPlan plan = PlanRow(call, call.first_row + i);
    const bool chooses = plan.act == RowPlan::Act::kChoose;
    line.ends[i] = chooses ? (plan.tokens + chunk_tokens - 1) / chunk_tokens : 0;
    line.tokens[i] = plan.tokens;
    line.first_entry[i] = plan.first_entry;
  }
  __syncthreads();
  if (thread < 32) {
    int before = 0;
    for (int first = 0; first < call.group_rows; first += 32) {
      const int i = first + thread;
      int sum = i < call.group_rows ? line.ends[i] : 0;
#pragma unroll
      for (int step = 1; step < 32; step *= 2) {
        const int other = __shfl_up_sync(~0u, sum, static_cast<unsigned>(step));
        if (thread >= step) sum += other;
      }
      if (i < call.group_rows) line.ends[i] = before + sum;
      before += __shfl_sync(~0u, sum, 31);
    }
  }
  __syncthreads();
}

// Consecutive chunks of one head of one row.
struct ChunkRun final {
  int row = 0;  // in the group
  int head = 0;
  int first = 0, end = 0;
};

// Calls visit(run) for each run of this block's share of the line; of run_max chunks at most.
template <typename Visit>
__device__ inline void VisitRuns(const SelectKeysCall& call, const ChunkLine& line, int heads,
                                 Visit&& visit, int run_max = 1 << 20) {
  const int64_t total = static_cast<int64_t>(line.ends[call.group_rows - 1]) * heads;
  int64_t at = total * blockIdx.x / gridDim.x;
  const int64_t end = total * (blockIdx.x + 1) / gridDim.x;
  while (at < end) {
    int low = 0, high = call.group_rows - 1;  // the first row that ends behind `at`
    while (low < high) {
      const int middle = (low + high) / 2;
      if (static_cast<int64_t>(line.ends[middle]) * heads > at) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    const int before = low == 0 ? 0 : line.ends[low - 1];
    const int chunks = line.ends[low] - before;
    const auto in_row = static_cast<int>(at - static_cast<int64_t>(before) * heads);
    ChunkRun run;
    run.row = low;
    run.head = in_row / chunks;
    run.first = in_row % chunks;
    run.end = min(chunks, run.first + run_max);
    if (run.end - run.first > end - at) run.end = run.first + static_cast<int>(end - at);
    at += run.end - run.first;
    visit(run);
  }
}

}  // namespace lacuna::kernels::cuda
