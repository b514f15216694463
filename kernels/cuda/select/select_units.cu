// What stands around the scores of entries: whether a query has turned since its last choice, and
// the way from raw scores to unit scores where that takes more than one pass: softmax over a row's
// entries, heads of several owners.
//
// All sums have an order of their own that no other row changes.
#include <cmath>
#include <cstdint>

#include "kernels/core/checked_math.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/resident_blocks.h"
#include "kernels/cuda/select/select_line.cuh"
#include "kernels/cuda/select/select_score.h"

namespace lacuna::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kUnitsOfChunk = 256;

// ---- RefreshKind::kCosine ----

template <typename V>
__device__ V BlockSum(V value, V* warp_values) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  __syncthreads();
  if (threadIdx.x % 32 == 0) warp_values[threadIdx.x / 32] = value;
  __syncthreads();
  V sum = 0;
  for (int warp = 0; warp < kWarps; ++warp) sum += warp_values[warp];
  return sum;
}

// A block per row. A query without direction has turned.
__global__ void __launch_bounds__(kThreads)
    RefreshKernel(const __grid_constant__ SelectKeysCall call) {
  __shared__ double warp_sums[kWarps];
  LetNextStart();
  WaitForPrevious();
  const int row = call.first_row + static_cast<int>(blockIdx.x);
  const SelectRow& what = call.rows[row];
  const bool may = PlanRowBeforeRefresh(call, row).act == RowPlan::Act::kChoose;
  bool turned = may;
  const int count = call.kv_heads * call.group * call.head_dim;
  float* kept = call.choices.queries + static_cast<int64_t>(what.choice) * count;
  if (may && !what.choose) {
    double dot = 0, norm = 0, kept_norm = 0;
    for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
      const double q = QueryValue(call, row, 0, i), k = kept[i];
      dot += q * k;
      norm += q * q;
      kept_norm += k * k;
    }
    dot = BlockSum(dot, warp_sums);
    norm = BlockSum(norm, warp_sums);
    kept_norm = BlockSum(kept_norm, warp_sums);
    turned = !(dot / sqrt(norm * kept_norm) >= what.refresh_cosine);
  }
  if (threadIdx.x == 0) call.turned[blockIdx.x] = turned ? 1 : 0;
  if (!turned) return;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
    kept[i] = QueryValue(call, row, 0, i);
  }
}

// ---- Softmax ----

__device__ float BlockMax(float value, float* warp_values) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value = fmaxf(value, __shfl_xor_sync(~0u, value, step));
  __syncthreads();
  if (threadIdx.x % 32 == 0) warp_values[threadIdx.x / 32] = value;
  __syncthreads();
  float most = warp_values[0];
  for (int warp = 1; warp < kWarps; ++warp) most = fmaxf(most, warp_values[warp]);
  return most;
}

__device__ inline bool RowHasWindow(const SelectKeysCall& call, int row, int query_row) {
  return HasWindow(call, call.first_row + row, query_row / call.heads);
}

// The maximum and the sum of exponentials of every kSumEntries scores of a query row.
__global__ void __launch_bounds__(kThreads)
    SumChunksKernel(const __grid_constant__ SelectKeysCall call) {
  constexpr int kEach = kSumEntries / kThreads;
  __shared__ ChunkLine line;
  __shared__ float warp_values[kWarps];
  LetNextStart();
  WaitForPrevious();
  MeasureChunks(call, kSumEntries * call.entry_tokens, line);
  const auto sum_chunk = [&](const ChunkRun& run) {
    if (RowHasWindow(call, run.row, run.head)) return;
    const int entries = (line.tokens[run.row] + call.entry_tokens - 1) / call.entry_tokens;
    const int64_t query_row = static_cast<int64_t>(run.row) * call.query_rows + run.head;
    const float* from = call.scores + query_row * call.scores_stride;
    float scores[kEach];
    float most = -INFINITY;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int entry = run.first * kSumEntries + i * kThreads + static_cast<int>(threadIdx.x);
      scores[i] = entry < entries ? from[entry] : -INFINITY;
      most = fmaxf(most, scores[i]);
    }
    most = BlockMax(most, warp_values);
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int entry = run.first * kSumEntries + i * kThreads + static_cast<int>(threadIdx.x);
      if (entry < entries) sum += expf(scores[i] - most);
    }
    sum = BlockSum(sum, warp_values);
    if (threadIdx.x == 0) {
      call.chunk_sums[query_row * call.chunks_max + run.first] = {most, sum};
    }
  };
  VisitRuns(call, line, call.query_rows, sum_chunk, 1);
}

// Log of the sum of exponentials of a query row. By a whole warp.
__device__ float LogSum(const SelectKeysCall& call, int row, int query_row, int entries) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int chunks = (entries + kSumEntries - 1) / kSumEntries;
  const float2* from =
      call.chunk_sums + (static_cast<int64_t>(row) * call.query_rows + query_row) * call.chunks_max;
  float most = -INFINITY;
  for (int i = lane; i < chunks; i += 32) most = fmaxf(most, from[i].x);
#pragma unroll
  for (int step = 16; step > 0; step /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, step));
  float sum = 0.0f;
  for (int i = lane; i < chunks; i += 32) sum += from[i].y * expf(from[i].x - most);
#pragma unroll
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
  return most + logf(sum);
}

// ---- Heads and units ----

// Of one query row of the unit row at hand. 16 bytes: the compiler reads whole words of four, also
// of the last.
struct alignas(16) ReduceTerms final {
  float shift;      // off the score, before the exponential
  float threshold;  // off the result
  int32_t row;      // query row; -1: its head has a window
};

struct QueryRows final {
  int first, end;
};
__device__ QueryRows QueryRowsOf(const SelectKeysCall& call, int unit_row) {
  if (call.per_head) return {unit_row, unit_row + 1};
  if (call.path.owner == OwnerKind::kLayer) return {0, call.query_rows};
  return {unit_row * call.heads, (unit_row + 1) * call.heads};
}

// By all threads of a block; returns how many rows have no window.
__device__ int FillTerms(const SelectKeysCall& call, int row, int unit_row, int entries,
                         ReduceTerms* terms) {
  const QueryRows rows = QueryRowsOf(call, unit_row);
  __syncthreads();
  for (int i = rows.first + static_cast<int>(threadIdx.x) / 32; i < rows.end; i += kWarps) {
    const bool window = RowHasWindow(call, row, i);
    const float shift = call.normalises && !window ? LogSum(call, row, i, entries) : 0.0f;
    const float threshold =
        call.path.head_thresholds ? call.thresholds[i * call.group / call.heads] : 0.0f;
    if (threadIdx.x % 32 == 0) terms[i - rows.first] = {shift, threshold, window ? -1 : i};
  }
  __syncthreads();
  int count = 0;
  for (int i = 0; i < rows.end - rows.first; ++i) count += terms[i].row >= 0 ? 1 : 0;
  return count;
}

__device__ float ReducedEntry(const SelectKeysCall& call, const float* scores,
                              const ReduceTerms* terms, int rows, int count, int entry) {
  const bool max = call.per_head || call.path.reduce == ReduceKind::kMax;
  float out = max ? -INFINITY : 0.0f;
  for (int i = 0; i < rows; ++i) {
    const ReduceTerms term = terms[i];
    if (term.row < 0) continue;
    float score = scores[term.row * call.scores_stride + entry] - term.shift;
    score = (call.normalises ? expf(score) : score) - term.threshold;
    out = max ? fmaxf(out, score) : out + score;
  }
  return call.path.reduce == ReduceKind::kMean ? out / static_cast<float>(count) : out;
}

// The entries of a unit are spread over a group of lanes.
__device__ void ReduceRun(const SelectKeysCall& call, const ChunkRun& run, int entries,
                          const ReduceTerms* terms, int count) {
  const QueryRows query_rows = QueryRowsOf(call, run.head);
  const int rows = query_rows.end - query_rows.first;
  const int unit_entries = call.path.unit_tokens / call.entry_tokens;
  const int lanes = min(unit_entries, 32), groups = 32 / lanes;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const bool adds = call.path.pool == PoolKind::kSum || call.path.pool == PoolKind::kMean;
  const int units = (entries + unit_entries - 1) / unit_entries;
  const int end = min(run.end * kUnitsOfChunk, units);
  const float* scores =
      call.scores + static_cast<int64_t>(run.row) * call.query_rows * call.scores_stride;
  float* to = UnitScores(call, call.first_row + run.row, run.head);
  for (int base = run.first * kUnitsOfChunk + static_cast<int>(threadIdx.x) / 32 * groups;
       base < end; base += kWarps * groups) {
    const int unit = base + lane / lanes;
    const int last = min((unit + 1) * unit_entries, unit < end ? entries : 0);
    float out = adds ? 0.0f : -INFINITY;
    for (int entry = unit * unit_entries + lane % lanes; entry < last; entry += lanes) {
      const float score = ReducedEntry(call, scores, terms, rows, count, entry);
      out = adds ? out + score : fmaxf(out, score);
    }
    for (int step = 1; step < lanes; step *= 2) {
      const float other = __shfl_xor_sync(~0u, out, step);
      out = adds ? out + other : fmaxf(out, other);
    }
    if (call.path.pool == PoolKind::kMean) out /= static_cast<float>(last - unit * unit_entries);
    if (unit < end && lane % lanes == 0) to[unit] = out;
  }
}

__global__ void __launch_bounds__(kThreads)
    ReduceKernel(const __grid_constant__ SelectKeysCall call) {
  LACUNA_DYNAMIC_SHARED(16, char, memory);
  __shared__ ChunkLine line;
  auto* terms = reinterpret_cast<ReduceTerms*>(memory);
  LetNextStart();
  WaitForPrevious();
  MeasureChunks(call, kUnitsOfChunk * call.path.unit_tokens, line);
  VisitRuns(call, line, call.unit_rows, [&](const ChunkRun& run) {
    const int entries = (line.tokens[run.row] + call.entry_tokens - 1) / call.entry_tokens;
    const int count = FillTerms(call, run.row, run.head, entries, terms);
    if (count > 0) ReduceRun(call, run, entries, terms, count);
  });
}

Result<int64_t> BlocksOf(void (*kernel)(SelectKeysCall), const SelectKeysCall& call,
                         int64_t chunk_tokens, int64_t heads, size_t shared_bytes) {
  const int64_t chunks = CeilDiv(int64_t{call.pages_max} * call.page_tokens, chunk_tokens);
  return ResidentBlocks(kernel, chunks * heads * call.group_rows, kThreads, shared_bytes);
}

}  // namespace

Status RefreshQueries(const SelectKeysCall& call, cudaStream_t stream) {
  return Launch(RefreshKernel, dim3(static_cast<unsigned>(call.group_rows)), dim3(kThreads), 0,
                stream, call);
}

Status ReduceScores(const SelectKeysCall& call, cudaStream_t stream) {
  if (call.normalises) {
    LACUNA_ASSIGN_OR_RETURN(const int64_t blocks,
                            BlocksOf(SumChunksKernel, call,
                                     int64_t{kSumEntries} * call.entry_tokens, call.query_rows, 0));
    LACUNA_RETURN_IF_ERROR(Launch(SumChunksKernel, dim3(static_cast<unsigned>(blocks)),
                                  dim3(kThreads), 0, stream, call));
  }
  const size_t shared_bytes = sizeof(ReduceTerms) * static_cast<size_t>(call.query_rows);
  LACUNA_ASSIGN_OR_RETURN(
      const int64_t blocks,
      BlocksOf(ReduceKernel, call, int64_t{kUnitsOfChunk} * call.path.unit_tokens, call.unit_rows,
               shared_bytes));
  return Launch(ReduceKernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), shared_bytes,
                stream, call);
}

}  // namespace lacuna::kernels::cuda
