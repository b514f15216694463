// Packs keys and queries for the products of SelectRanges.
//
// A tile is [128 rows][64 inner elements]. Of 16-bit types the 16-byte chunks of row r are permuted
// by chunk ^ r % 8: an operand of wgmma as it lies, and free of bank conflicts for ldmatrix. Of f32
// it is plain. One copy of the keys costs 2 bytes of traffic for each byte, and lets the product
// run on whole 16 KB copies whatever the pages, strides and head sizes are.
#include <cstdint>

#include "kernels/core/checked_math.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/range_kernels.h"
#include "kernels/cuda/range_keys.cuh"
#include "kernels/cuda/vectors.cuh"

namespace lacuna::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTileElements = kRangeTileRows * kRangeTileColumns;
constexpr int kRowChunks = kRangeTileColumns / kVector;
constexpr int kPacks = kRangeTileRows * kRowChunks / kThreads;  // of a thread

// Row of a tile that pack `i` of a thread belongs to.
__device__ int RowOf(int thread, int i) { return (i * kThreads + thread) / kRowChunks; }

// Where chunk `chunk` of a row lies in its tile.
template <typename T>
__device__ int ChunkAt(int row, int chunk) {
  if constexpr (sizeof(T) == 2) chunk ^= row & 7;
  return row * kRangeTileColumns + chunk * kVector;
}

// Eight inner elements from `inner` on; element (r, channel) of a row is read by
// fn(r, channel, pack) for eight channels, or one by one where head_dim is odd to eight.
template <typename T, typename Vector, typename One>
__device__ Pack<T> PackOfInner(const RangeWork& work, int inner, Vector&& vector, One&& one) {
  Pack<T> pack{};
  const int dim = work.head_dim;
  if (dim % kVector == 0) {
    const int r = inner / dim;
    if (r < work.product.stride) vector(r, inner - r * dim, &pack);
    return pack;
  }
  auto* values = reinterpret_cast<T*>(pack.words);
  for (int i = 0; i < kVector; ++i) {
    const int r = (inner + i) / dim;
    if (r < work.product.stride) values[i] = one(r, inner + i - r * dim);
  }
  return pack;
}

// Sums of the keys of a tile's blocks, eight channels of a thread: of its four rows the first two
// lie in the tile's first 64 rows. Adds them up and writes the means of the blocks (FlexPrefill's
// pooled keys), so that they need no reading of their own.
template <typename T>
__device__ void WriteMeans(const RangeWork& work, int kv, int tile, int step,
                           const Pack<T> (&packs)[kPacks]) {
  __shared__ float sums[kThreads / 32][2][kRangeTileColumns];
  const int thread = static_cast<int>(threadIdx.x);
  float sum[2][kVector] = {};
#pragma unroll
  for (int i = 0; i < kPacks; ++i) {
    float values[kVector];
    Unpack(packs[i], values);
#pragma unroll
    for (int e = 0; e < kVector; ++e) sum[2 * i / kPacks][e] += values[e];
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int e = 0; e < kVector; ++e) {
      float value = sum[half][e];
      value += __shfl_xor_sync(~0u, value, kRowChunks);
      value += __shfl_xor_sync(~0u, value, 2 * kRowChunks);
      if (thread % 32 < kRowChunks) sums[thread / 32][half][thread % 32 * kVector + e] = value;
    }
  }
  __syncthreads();
  const int size = work.path.block_tokens, halves = size / 64;  // of a block
  const int part = thread / kRangeTileColumns, column = thread % kRangeTileColumns;
  const int channel = step * kRangeTileColumns + column;
  const int block = tile * (kRangeTileRows / size) + part;
  if (part * halves >= 2 || channel >= work.head_dim || block >= work.key_blocks) return;
  float total = 0.0f;
  for (int half = part * halves; half < (part + 1) * halves; ++half) {
    for (int warp = 0; warp < kThreads / 32; ++warp) total += sums[warp][half][column];
  }
  const int count = min(work.keys - block * size, size);
  work.mean_keys[(int64_t{kv} * work.head_dim + channel) * work.key_blocks + block] =
      total / static_cast<float>(count);
}

template <typename T>
__global__ void __launch_bounds__(kThreads) PackKeysKernel(const __grid_constant__ RangeWork work) {
  LetNextStart();
  WaitForPrevious();
  const int step = static_cast<int>(blockIdx.x) % work.product.steps;
  const int tile = static_cast<int>(blockIdx.x) / work.product.steps;
  const int kv = static_cast<int>(blockIdx.y);
  auto* to =
      static_cast<T*>(work.packed_keys) +
      (int64_t{kv} * work.product.key_tiles * work.product.steps + blockIdx.x) * kTileElements;
  const RangeKeys<T> keys(work, work.first_kv + kv);
  const int thread = static_cast<int>(threadIdx.x), chunk = thread % kRowChunks;
  Pack<T> packs[kPacks];
#pragma unroll
  for (int i = 0; i < kPacks; ++i) {
    const int packed = tile * kRangeTileRows + RowOf(thread, i);
    const int token = (work.spreads() ? ChunkKey(packed) : packed) * work.product.stride;
    packs[i] = PackOfInner<T>(
        work, step * kRangeTileColumns + chunk * kVector,
        [&](int r, int channel, Pack<T>* out) { keys.Load(token + r, channel, out); },
        [&](int r, int channel) { return keys.Load(token + r, channel); });
  }
#pragma unroll
  for (int i = 0; i < kPacks; ++i) {
    *reinterpret_cast<Pack<T>*>(to + ChunkAt<T>(RowOf(thread, i), chunk)) = packs[i];
  }
  if (work.path.estimate == EstimateKind::kProbePooled) {
    WriteMeans(work, kv, tile, step, packs);
  }
}

// Position of probe row `row` of a head, or -1. Of a cell the last probe_rows (kLast), or the last
// of each of `runs` equal parts.
__device__ int ProbePosition(const RangeWork& work, int row) {
  const int cell_rows = work.product.runs * work.product.run_rows;
  const int wanted = work.dials.probe_rows, tokens = work.path.cell_tokens;
  const RangeSpan rows = CellRows(work, row / cell_rows);
  const int run = row % cell_rows / work.product.run_rows;
  int begin = rows.first, end = rows.end;
  if (work.path.probe_place == ProbePlace::kTails) {
    const int cell = rows.first / tokens * tokens;
    begin = max(begin, cell + run * tokens / work.product.runs);
    end = min(end, cell + (run + 1) * tokens / work.product.runs);
  }
  const int position = max(end - wanted, begin) + row % work.product.run_rows;
  return position < end ? position : -1;
}

template <typename T>
__device__ Pack<T> QueryPack(const RangeWork& work, int q_head, int row, int inner) {
  const int last = work.antidiagonal()
                       ? (work.product.first_row + row + 1) * work.product.stride - 1
                       : ProbePosition(work, row);
  const T* q = static_cast<const T*>(work.q) + q_head * work.q_head +
               int64_t{work.chunk.first_row - work.chunk.first_position} * work.q_row;
  const auto exists = [&](int r) { return last - r >= work.first && last - r < work.end; };
  return PackOfInner<T>(
      work, inner,
      [&](int r, int channel, Pack<T>* out) {
        if (!exists(r)) return;
        const T* from = q + (last - r) * work.q_row + channel;
        if (work.q_aligned) {
          *out = *reinterpret_cast<const Pack<T>*>(from);
          return;
        }
        auto* values = reinterpret_cast<T*>(out->words);
#pragma unroll
        for (int i = 0; i < kVector; ++i) values[i] = from[i];
      },
      [&](int r, int channel) {
        return exists(r) ? q[(last - r) * work.q_row + channel] : FromF32<T>(0.0f);
      });
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    PackQueriesKernel(const __grid_constant__ RangeWork work) {
  LetNextStart();
  WaitForPrevious();
  const RangeProduct& product = work.product;
  const int thread = static_cast<int>(threadIdx.x);
  if (blockIdx.x == 0 && blockIdx.y == 0) {
    for (int row = thread; row < product.rows; row += kThreads) {
      work.visible[row] = work.antidiagonal() ? product.first_row + row : ProbePosition(work, row);
    }
  }
  const int step = static_cast<int>(blockIdx.x) % product.steps;
  const int tile = static_cast<int>(blockIdx.x) / product.steps;
  const int kv = static_cast<int>(blockIdx.y);
  auto* to = static_cast<T*>(work.packed_queries) +
             (int64_t{kv} * product.row_tiles * product.steps + blockIdx.x) * kTileElements;
  for (int at = thread; at < kRangeTileRows * kRowChunks; at += kThreads) {
    const int row = at / kRowChunks, chunk = at % kRowChunks;
    const int packed = tile * kRangeTileRows + row;
    const int in_group = work.spreads() ? PieceRow(packed) : packed;
    Pack<T> pack{};
    if (in_group < work.members * product.rows) {
      const int q_head = work.QHead(kv * work.members + in_group / product.rows);
      pack = QueryPack<T>(work, q_head, in_group % product.rows,
                          step * kRangeTileColumns + chunk * kVector);
    }
    *reinterpret_cast<Pack<T>*>(to + ChunkAt<T>(row, chunk)) = pack;
  }
}

}  // namespace

Status PackRangeKeys(const RangeWork& work, DType dtype, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(work.product.key_tiles * work.product.steps),
                  static_cast<unsigned>(work.kvs));
  return WithType(dtype, [&](auto type) {
    return Launch(PackKeysKernel<decltype(type)>, grid, dim3(kThreads), 0, stream, work);
  });
}

Status PackRangeQueries(const RangeWork& work, DType dtype, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(work.product.row_tiles * work.product.steps),
                  static_cast<unsigned>(work.kvs));
  return WithType(dtype, [&](auto type) {
    return Launch(PackQueriesKernel<decltype(type)>, grid, dim3(kThreads), 0, stream, work);
  });
}

}  // namespace lacuna::kernels::cuda
