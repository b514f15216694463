// Block maps of pooled queries and keys for SelectRanges: means of blocks, their products, softmax.
// With bands, one map for each band of rotary frequencies (Prism, Wang et al. 2026).
//
// A block of threads makes up to 16 rows of one cell of one head, so that it reads the key means
// once for all of them. Sums are made in an order that depends on absolute positions only.
#include <cmath>
#include <cstdint>

#include "kernels/core/checked_math.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ranges/range_kernels.h"
#include "kernels/cuda/ranges/range_keys.cuh"
#include "kernels/cuda/vectors.cuh"

namespace lacuna::kernels::cuda {
namespace {

constexpr int kMeanThreads = 256;
constexpr int kMapThreads = 1024;
constexpr int kDimMax = 256;
constexpr int kMapTokens = kCellTokensMin;  // rows of a block of threads: cells are multiples
constexpr int kMapRowsMax = kMapTokens / 64;

// Whether a head chooses blocks of rows by their means.
__device__ bool NeedsMap(const RangeWork& work, int head) {
  const HeadMode mode = ModeOf(work, work.QHead(head));
  return mode == HeadMode::kPooled ||
         (mode == HeadMode::kProbe && work.path.estimate == EstimateKind::kProbePooled);
}

// ---- means ----

// Sums of `count` tokens of `dim` channels: store(channel, sum). A group of threads, one for each
// eight channels, takes every groups-th token, in order; load(token, channel, &pack) reads eight.
template <typename T, typename Load, typename Store>
__device__ void SumTokens(int count, int dim, Load&& load, Store&& store) {
  constexpr int kUnroll = 4;  // loads of a thread that are under way
  __shared__ float sums[kMeanThreads][kVector];
  const int thread = static_cast<int>(threadIdx.x);
  const int vectors = dim / kVector, groups = kMeanThreads / vectors;
  const int group = thread / vectors, channel = thread % vectors * kVector;
  float sum[kVector] = {};
  for (int first = group; group < groups && first < count; first += kUnroll * groups) {
    Pack<T> packs[kUnroll] = {};
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      if (first + i * groups < count) load(first + i * groups, channel, &packs[i]);
    }
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      float values[kVector];
      Unpack(packs[i], values);
#pragma unroll
      for (int e = 0; e < kVector; ++e) sum[e] += values[e];
    }
  }
#pragma unroll
  for (int e = 0; e < kVector; ++e) sums[thread][e] = sum[e];
  __syncthreads();
  if (thread >= dim) return;
  float total = 0.0f;
  for (int i = 0; i < groups; ++i) total += sums[i * vectors + thread / kVector][thread % kVector];
  store(thread, total);
}
// The same where dim is no multiple of eight; load(token, channel) reads one.
template <typename Load, typename Store>
__device__ void SumTokensOneByOne(int count, int dim, Load&& load, Store&& store) {
  for (int channel = static_cast<int>(threadIdx.x); channel < dim; channel += kMeanThreads) {
    float sum = 0.0f;
    for (int i = 0; i < count; ++i) sum += load(i, channel);
    store(channel, sum);
  }
}

// Mean over the tokens of a key block.
template <typename T>
__global__ void __launch_bounds__(kMeanThreads)
    MeanKeysKernel(const __grid_constant__ RangeWork work) {
  LetNextStart();
  WaitForPrevious();
  const int block = static_cast<int>(blockIdx.x), kv = static_cast<int>(blockIdx.y);
  const int dim = work.head_dim;
  bool needed = false;
  for (int i = 0; i < work.members; ++i) needed = needed || NeedsMap(work, kv * work.members + i);
  if (!needed) return;
  const int begin = block * work.path.block_tokens;
  const int count = min(work.keys - begin, work.path.block_tokens);
  const RangeKeys<T> keys(work, work.first_kv + kv);
  float* means =
      work.mean_keys + int64_t{kv} * dim * work.key_blocks + block;  // channels key_blocks apart
  const float share = 1.0f / static_cast<float>(max(count, 1));
  const auto store = [&](int channel, float sum) {
    means[int64_t{channel} * work.key_blocks] = sum * share;
  };
  if (dim % kVector != 0) {
    SumTokensOneByOne(
        count, dim, [&](int i, int channel) { return ToF32(keys.Load(begin + i, channel)); },
        store);
    return;
  }
  SumTokens<T>(
      count, dim, [&](int i, int channel, Pack<T>* pack) { keys.Load(begin + i, channel, pack); },
      store);
}

// The same of the queries of a block of rows.
template <typename T>
__global__ void __launch_bounds__(kMeanThreads)
    MeanQueriesKernel(const __grid_constant__ RangeWork work) {
  LetNextStart();
  WaitForPrevious();
  const int block = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
  if (!NeedsMap(work, head)) return;
  const RangeSpan rows = BlockRows(work, block);
  const T* q = static_cast<const T*>(work.q) + work.QHead(head) * work.q_head +
               int64_t{work.chunk.first_row - work.chunk.first_position + rows.first} * work.q_row;
  float* means = work.mean_queries + (int64_t{head} * work.blocks + block) * work.head_dim;
  const auto store = [&](int channel, float sum) {
    means[channel] = sum / static_cast<float>(rows.tokens());
  };
  if (!work.q_aligned || work.head_dim % kVector != 0) {
    SumTokensOneByOne(
        rows.tokens(), work.head_dim,
        [&](int i, int channel) { return ToF32(q[i * work.q_row + channel]); }, store);
    return;
  }
  SumTokens<T>(
      rows.tokens(), work.head_dim,
      [&](int i, int channel, Pack<T>* pack) {
        *pack = *reinterpret_cast<const Pack<T>*>(q + i * work.q_row + channel);
      },
      store);
}

// ---- maps ----

struct Band final {
  int first, count, half;  // channels [first, first + count) and the same `half` later
  __device__ int dims() const { return half == 0 ? count : 2 * count; }
  __device__ int Channel(int index) const {
    return index < count ? first + index : first + half + index - count;
  }
};
// Map 0: all channels, or the low band (the last of each half); map 1: the high band (the first).
__device__ Band BandOf(const RangeWork& work, int map) {
  if (!work.bands()) return {0, work.head_dim, 0};
  const int half = work.head_dim / 2;
  const int wanted = map == 0 ? work.dials.low_channels : work.dials.high_channels;
  const int count = min(max(wanted / 2, 1), half);
  return {map == 0 ? half - count : 0, count, half};
}

// Sum over the block, in a fixed order; for all threads.
__device__ double BlockSum(double value, double* scratch) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(~0u, value, lanes);
  __syncthreads();
  if ((threadIdx.x & 31) == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  double sum = 0.0;
  for (int warp = 0; warp < kMapThreads / 32; ++warp) sum += scratch[warp];
  return sum;
}

// Root mean square of a cell's block means of queries, times that of all keys up to its end.
__device__ double Energy(const RangeWork& work, const float* queries, int rows, const float* keys,
                         int blocks, const Band& band, double* scratch) {
  double query_sum = 0.0, key_sum = 0.0;
  const int dims = band.dims();
  for (int i = static_cast<int>(threadIdx.x); i < rows * dims; i += kMapThreads) {
    const double mean =
        static_cast<double>(queries[i / dims * work.head_dim + band.Channel(i % dims)]);
    query_sum += mean * mean;
  }
  for (int block = static_cast<int>(threadIdx.x); block < blocks; block += kMapThreads) {
    for (int i = 0; i < dims; ++i) {
      const double mean =
          static_cast<double>(keys[int64_t{band.Channel(i)} * work.key_blocks + block]);
      key_sum += mean * mean;
    }
  }
  query_sum = BlockSum(query_sum, scratch);
  key_sum = BlockSum(key_sum, scratch);
  return sqrt(query_sum / (static_cast<double>(dims) * rows)) *
         sqrt(key_sum / (static_cast<double>(dims) * blocks));
}

// Prism's temperature is sqrt(band / head_dim) * energy(band) / energy(all channels), and its
// logits are q . k / (sqrt(band) * temperature).
__device__ float ScaleOf(const RangeWork& work, const float* queries, int rows, const float* keys,
                         int blocks, const Band& band, double* scratch) {
  if (!work.bands()) return work.scale;
  const double of_band = Energy(work, queries, rows, keys, blocks, band, scratch);
  const double of_all =
      Energy(work, queries, rows, keys, blocks, Band{0, work.head_dim, 0}, scratch);
  const double ratio = of_band > 0.0 ? of_band / of_all : 1.0;
  return static_cast<float>(static_cast<double>(work.scale) * static_cast<double>(work.head_dim) /
                            (band.dims() * ratio));
}

// Softmax of a row by one warp, in an order that depends on the row's length only.
__device__ void WarpSoftmax(float* row, int count) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  float top = -INFINITY;
  for (int i = lane; i < count; i += 32) top = fmaxf(top, row[i]);
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    top = fmaxf(top, __shfl_xor_sync(~0u, top, lanes));
  }
  float sum = 0.0f;
  for (int i = lane; i < count; i += 32) {
    row[i] = expf(row[i] - top);
    sum += row[i];
  }
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
  const float share = 1.0f / sum;
  for (int i = lane; i < count; i += 32) row[i] *= share;
}

// Logits of kRows rows of the cell from row `from` on.
template <int kRows>
__device__ void MapRows(const RangeWork& work, const float* queries, int from, int rows,
                        const float* keys, int blocks, const Band& band, float scale,
                        float* scores) {
  for (int block = static_cast<int>(threadIdx.x); block < blocks; block += kMapThreads) {
    float sums[kRows] = {};
    for (int i = 0; i < band.dims(); ++i) {
      const int channel = band.Channel(i);
      const float key = keys[int64_t{channel} * work.key_blocks + block];
#pragma unroll
      for (int row = 0; row < kRows; ++row) {
        sums[row] = fmaf(queries[(from + row) * work.head_dim + channel] * scale, key, sums[row]);
      }
    }
#pragma unroll
    for (int row = 0; row < kRows; ++row) {
      if (from + row < rows) scores[int64_t{from + row} * work.key_blocks + block] = sums[row];
    }
  }
}

__global__ void __launch_bounds__(kMapThreads)
    MeanMapKernel(const __grid_constant__ RangeWork work) {
  __shared__ float queries[kMapRowsMax * kDimMax];
  __shared__ double scratch[kMapThreads / 32];
  LetNextStart();
  WaitForPrevious();
  const int head = static_cast<int>(blockIdx.y);
  if (!NeedsMap(work, head)) return;
  const RangeSpan span = UnitRows(work, static_cast<int>(blockIdx.x), kMapTokens);
  const int size = work.path.block_tokens;
  const int first = span.first / size;
  const int rows = (span.end - 1) / size + 1 - first;
  const float* means =
      work.mean_queries + (int64_t{head} * work.blocks - work.first_block()) * work.head_dim;
  for (int i = static_cast<int>(threadIdx.x); i < kMapRowsMax * work.head_dim; i += kMapThreads) {
    queries[i] = i < rows * work.head_dim ? means[int64_t{first} * work.head_dim + i] : 0.0f;
  }
  __syncthreads();
  const RangeSpan cell = CellRows(work, span.first / work.path.cell_tokens - work.first_cell());
  const int cell_first = cell.first / size, cell_blocks = (cell.end - 1) / size + 1;
  const float* keys =
      work.mean_keys + int64_t{head / work.members} * work.head_dim * work.key_blocks;
  for (int map = 0; map < (work.bands() ? 2 : 1); ++map) {
    const Band band = BandOf(work, map);
    const int blocks = first + rows;
    const float scale = ScaleOf(work, means + int64_t{cell_first} * work.head_dim,
                                cell_blocks - cell_first, keys, cell_blocks, band, scratch);
    float* scores = work.scores + ((int64_t{map} * work.head_count() + head) * work.blocks + first -
                                   work.first_block()) *
                                      work.key_blocks;
    for (int at = 0; at < rows; at += 8) {
      MapRows<8>(work, queries, at, rows, keys, blocks, band, scale, scores);
    }
    __syncthreads();
    for (int row = static_cast<int>(threadIdx.x) / 32; row < rows; row += kMapThreads / 32) {
      WarpSoftmax(scores + int64_t{row} * work.key_blocks, first + row + 1);
    }
  }
}

}  // namespace

Status RangeMeanKeys(const RangeWork& work, DType dtype, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(work.key_blocks), static_cast<unsigned>(work.kvs));
  return WithType(dtype, [&](auto type) {
    return Launch(MeanKeysKernel<decltype(type)>, grid, dim3(kMeanThreads), 0, stream, work);
  });
}

Status RangeMeanMap(const RangeWork& work, DType dtype, cudaStream_t stream) {
  const auto heads = static_cast<unsigned>(work.head_count());
  LACUNA_RETURN_IF_ERROR(WithType(dtype, [&](auto type) {
    return Launch(MeanQueriesKernel<decltype(type)>,
                  dim3(static_cast<unsigned>(work.blocks), heads), dim3(kMeanThreads), 0, stream,
                  work);
  }));
  const int parts = (work.end - 1) / kMapTokens + 1 - work.first / kMapTokens;
  return Launch(MeanMapKernel, dim3(static_cast<unsigned>(parts), heads), dim3(kMapThreads), 0,
                stream, work);
}

}  // namespace lacuna::kernels::cuda
