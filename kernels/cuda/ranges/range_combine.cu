// Sums of tiles and tokens to scores of blocks for SelectRanges, and the comparison of a probe with
// its pooled map.
#include <cmath>
#include <cstdint>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ranges/range_kernels.h"
#include "kernels/cuda/vectors.cuh"

namespace lacuna::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kCompareThreads = 1024;
constexpr int kDimMax = 256;
constexpr int kRowsMax = 128;  // stride rows of a block

__device__ float WarpMax(float value) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2)
    value = fmaxf(value, __shfl_xor_sync(~0u, value, lanes));
  return value;
}
template <typename Value>
__device__ Value WarpSum(Value value) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(~0u, value, lanes);
  return value;
}

// Each tile has its own maximum: its sums count by 2^(maximum - that of the row) / the row's sum.
__global__ void __launch_bounds__(kThreads) CombineKernel(const __grid_constant__ RangeWork work) {
  __shared__ float tops[kRowsMax], shares[kRowsMax];
  LetNextStart();
  WaitForPrevious();
  const int block = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
  if (ModeOf(work, work.QHead(head)) != HeadMode::kPooled) return;
  const RangeProduct& product = work.product;
  const RangeSpan span = BlockRows(work, block);
  const int first = span.first / product.stride;  // R
  const int rows = (span.end - 1) / product.stride + 1 - first;
  const int64_t row_at = int64_t{head} * product.rows + first - product.first_row;
  const float2* tiles = work.tile_sums + row_at * product.key_tiles;
  const float* sums = work.block_sums + row_at * work.sums_stride;
  for (int row = static_cast<int>(threadIdx.x) / 32; row < rows; row += kWarps) {
    const int lane = static_cast<int>(threadIdx.x) & 31;
    const float2* of_row = tiles + int64_t{row} * product.key_tiles;
    const int count = (first + row) / kRangeTileRows + 1;
    float top = -INFINITY;
    for (int tile = lane; tile < count; tile += 32) top = fmaxf(top, of_row[tile].x);
    top = WarpMax(top);
    float total = 0.0f;
    for (int tile = lane; tile < count; tile += 32) {
      total = fmaf(exp2f(of_row[tile].x - top), of_row[tile].y, total);
    }
    total = WarpSum(total);
    if (lane == 0) {
      tops[row] = top;
      shares[row] = 1.0f / total;
    }
  }
  __syncthreads();
  const int tile_shift = 7 - product.sum_shift;  // blocks of a tile
  float* scores = work.scores + (int64_t{head} * work.blocks + block) * work.key_blocks;
  for (int key = static_cast<int>(threadIdx.x); key <= work.first_block() + block;
       key += kThreads) {
    float score = 0.0f;
#pragma unroll 8
    for (int row = 0; row < rows; ++row) {
      const float top = tiles[int64_t{row} * product.key_tiles + (key >> tile_shift)].x;
      const float weight = exp2f(top - tops[row]) * shares[row];
      score = fmaf(weight, sums[int64_t{row} * work.sums_stride + key], score);
    }
    scores[key] = score;
  }
}

// Each probe row's log2 of its sum of exponentials; a warp for each row.
__global__ void __launch_bounds__(kThreads) LseKernel(const __grid_constant__ RangeWork work) {
  LetNextStart();
  WaitForPrevious();
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int64_t row = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (row >= int64_t{work.head_count()} * work.product.rows) return;
  const int visible = work.visible[row % work.product.rows];
  const float2* tiles = work.tile_sums + row * work.product.key_tiles;
  // Of single columns the keys are packed by chunks: both tiles of a chunk hold what is visible.
  const int pair = work.spreads() ? 2 : 1;
  const int count = visible < 0 ? 0 : (visible / (pair * kRangeTileRows) + 1) * pair;
  float top = kNoLogit;
  for (int tile = lane; tile < count; tile += 32) top = fmaxf(top, tiles[tile].x);
  top = WarpMax(top);
  float total = 0.0f;
  for (int tile = lane; tile < count; tile += 32) {
    total = fmaf(exp2f(tiles[tile].x - top), tiles[tile].y, total);
  }
  total = WarpSum(total);
  if (lane == 0) work.lse[row] = total > 0.0f ? top + log2f(total) : kNoRow;
}

// Sums of blocks of a cell's columns and distances; a thread has one of each. Loads of several rows
// are under way at once: few warps share a multiprocessor.
__global__ void __launch_bounds__(kThreads)
    CombinePartsKernel(const __grid_constant__ RangeWork work) {
  __shared__ float row_lse[kProbeRowsMax];
  __shared__ int32_t row_visible[kProbeRowsMax];
  LetNextStart();
  WaitForPrevious();
  const int list = static_cast<int>(blockIdx.y);  // head * cells + cell
  const int head = list / work.cells, cell = list % work.cells;
  if (ModeOf(work, work.QHead(head)) != HeadMode::kProbe) return;
  const int shift = work.product.sum_shift, tile_shift = 7 - shift;
  const int block = static_cast<int>(blockIdx.x * kThreads + threadIdx.x);
  const int cell_rows = work.product.runs * work.product.run_rows;
  const int64_t first = int64_t{head} * work.product.rows + cell * cell_rows;
  for (int i = static_cast<int>(threadIdx.x); i < cell_rows; i += kThreads) {
    row_lse[i] = work.lse[first + i];
    row_visible[i] = work.visible[cell * cell_rows + i];
  }
  __syncthreads();
  if (block > (CellRows(work, cell).end - 1) >> shift) return;
  float column = 0.0f, distance = 0.0f;
#pragma unroll 4
  for (int i = 0; i < cell_rows; ++i) {
    const float lse = row_lse[i];
    const float2* tiles = work.tile_sums + (first + i) * work.product.key_tiles;
    const float2* parts = work.part_sums + (first + i) * work.sums_stride;
    const int last = (row_visible[i] >> shift) - block;  // negative: this row does not see it
    const bool sees = last >= 0, more = last >= 1;
    const float2 none = make_float2(0.0f, 0.0f), hidden = make_float2(kNoLogit, 0.0f);
    const float2 sums = sees ? parts[block] : none, near = sees ? parts[last] : none;
    const float2 far = more ? parts[last - 1] : none;
    const float top = (sees ? tiles[block >> tile_shift] : hidden).x;
    const float near_top = (sees ? tiles[last >> tile_shift] : hidden).x;
    const float far_top = (more ? tiles[(last - 1) >> tile_shift] : hidden).x;
    column = fmaf(exp2f(top - lse), sums.x + sums.y, column);
    distance = fmaf(exp2f(near_top - lse), near.x, distance);
    distance = fmaf(exp2f(far_top - lse), far.y, distance);
  }
  float* to = work.unit_sums + int64_t{list} * work.key_blocks + block;
  to[0] = column;
  to[int64_t{work.head_count()} * work.cells * work.key_blocks] = distance;
}

// Over the kCompareThreads of a block, for all of them, in one order.
template <typename Value, typename Join>
__device__ Value JoinWarps(Value of_warp, Value* scratch, Join&& join) {
  if ((threadIdx.x & 31) == 0) scratch[threadIdx.x / 32] = of_warp;
  __syncthreads();
  Value value = scratch[0];
  for (int warp = 1; warp < kCompareThreads / 32; ++warp) value = join(value, scratch[warp]);
  return value;
}

// Means of the channels of the cell's probe rows, whose number it returns; by all threads. Groups
// of head_dim threads take every groups-th row. `sums` has room for a float of each thread.
template <typename T>
__device__ int MeanOfProbe(const RangeWork& work, int head, int cell, float* sums, float* mean) {
  const int cell_rows = work.product.runs * work.product.run_rows, dim = work.head_dim;
  const int32_t* positions = work.visible + int64_t{cell} * cell_rows;
  const T* q = static_cast<const T*>(work.q) + work.QHead(head) * work.q_head +
               int64_t{work.chunk.first_row - work.chunk.first_position} * work.q_row;
  const int thread = static_cast<int>(threadIdx.x), groups = kCompareThreads / dim;
  const int group = thread / dim, channel = thread % dim;
  int count = 0;
  for (int first = 0; first < cell_rows; first += kCompareThreads) {
    const int row = first + thread;
    count += __syncthreads_count(row < cell_rows && positions[row] >= 0);
  }
  float sum = 0.0f;
#pragma unroll 4
  for (int row = group; row < cell_rows; row += groups) {
    const int position = group < groups ? positions[row] : -1;
    if (position >= 0) sum += ToF32(q[position * work.q_row + channel]);
  }
  sums[thread] = sum;
  __syncthreads();
  if (thread < dim) {
    float total = 0.0f;
    for (int i = 0; i < groups; ++i) total += sums[i * dim + thread];
    mean[thread] = total / static_cast<float>(count);
  }
  __syncthreads();
  return count;
}

// The square root of the Jensen-Shannon divergence between what a cell's probe reads of the blocks
// and the pooled row of its mean (FlexPrefill, Lai et al. 2025), against js_threshold.
template <typename T>
__global__ void __launch_bounds__(kCompareThreads)
    CompareMapsKernel(const __grid_constant__ RangeWork work) {
  __shared__ float mean[kDimMax], row_sums[kCompareThreads], tops[32], totals[32];
  __shared__ double sums[32];
  LetNextStart();
  WaitForPrevious();
  const int cell = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
  if (ModeOf(work, work.QHead(head)) != HeadMode::kProbe) return;
  const int count = MeanOfProbe<T>(work, head, cell, row_sums, mean);
  const int blocks = (CellRows(work, cell).end - 1) / work.path.block_tokens + 1;
  const int64_t list = int64_t{head} * work.cells + cell;
  float* pooled = work.pooled + list * work.key_blocks;
  const float* keys =
      work.mean_keys + int64_t{head / work.members} * work.head_dim * work.key_blocks;
  float top = -INFINITY, total = 0.0f;
  for (int block = static_cast<int>(threadIdx.x); block < blocks; block += kCompareThreads) {
    float sum = 0.0f;
#pragma unroll 8
    for (int i = 0; i < work.head_dim; ++i) {
      sum = fmaf(mean[i] * work.scale, keys[int64_t{i} * work.key_blocks + block], sum);
    }
    pooled[block] = sum;
    top = fmaxf(top, sum);
  }
  top = JoinWarps(WarpMax(top), tops, [](float x, float y) { return fmaxf(x, y); });
  for (int block = static_cast<int>(threadIdx.x); block < blocks; block += kCompareThreads) {
    pooled[block] = expf(pooled[block] - top);
    total += pooled[block];
  }
  total = JoinWarps(WarpSum(total), totals, [](float x, float y) { return x + y; });
  const float* probed = work.unit_sums + list * work.key_blocks;
  double divergence = 0.0;
  for (int block = static_cast<int>(threadIdx.x); block < blocks; block += kCompareThreads) {
    const double a = static_cast<double>(pooled[block] / total);
    const double b = static_cast<double>(probed[block] / static_cast<float>(count));
    const double middle = (a + b) / 2.0;
    if (a > 0.0) divergence += a * log(a / middle) / 2.0;
    if (b > 0.0) divergence += b * log(b / middle) / 2.0;
  }
  divergence = JoinWarps(WarpSum(divergence), sums, [](double x, double y) { return x + y; });
  if (threadIdx.x != 0) return;
  const auto distance = static_cast<float>(sqrt(fmax(divergence, 0.0)));
  work.reads_map[int64_t{head} * work.chunk_cells + work.CellOffset() + cell] =
      distance < work.dials.js_threshold ? 1 : 0;
}

}  // namespace

Status CombineRangeScores(const RangeWork& work, cudaStream_t stream) {
  return Launch(CombineKernel,
                dim3(static_cast<unsigned>(work.blocks), static_cast<unsigned>(work.head_count())),
                dim3(kThreads), 0, stream, work);
}

Status RangeLse(const RangeWork& work, cudaStream_t stream) {
  const int64_t rows = int64_t{work.head_count()} * work.product.rows;
  return Launch(LseKernel, dim3(static_cast<unsigned>((rows + kWarps - 1) / kWarps)),
                dim3(kThreads), 0, stream, work);
}

Status CombineRangeParts(const RangeWork& work, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>((work.key_blocks + kThreads - 1) / kThreads),
                  static_cast<unsigned>(work.head_count() * work.cells));
  return Launch(CombinePartsKernel, grid, dim3(kThreads), 0, stream, work);
}

Status CompareRangeMaps(const RangeWork& work, DType dtype, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(work.cells), static_cast<unsigned>(work.head_count()));
  return WithType(dtype, [&](auto type) {
    return Launch(CompareMapsKernel<decltype(type)>, grid, dim3(kCompareThreads), 0, stream, work);
  });
}

}  // namespace lacuna::kernels::cuda
