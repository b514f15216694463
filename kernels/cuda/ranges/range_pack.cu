// Packs keys and queries for the products of SelectRanges.
//
// A tile is [128 rows][64 inner elements]. Of 16-bit types the 16-byte chunks of row r are permuted
// by chunk ^ r % 8: an operand of wgmma as it lies, and free of bank conflicts for ldmatrix. Of f32
// it is plain. One copy of the keys costs 2 bytes of traffic for each byte, and lets the product
// run on whole 16 KB copies whatever the pages, strides and head sizes are.
#include <cstdint>

#include "kernels/core/checked_math.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ranges/range_kernels.h"
#include "kernels/cuda/ranges/range_keys.cuh"
#include "kernels/cuda/vectors.cuh"

namespace lacuna::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kTileElements = kRangeTileRows * kRangeTileColumns;
constexpr int kRowChunks = kRangeTileColumns / kVector;
constexpr int kRowsApart = kThreads / kRowChunks;  // of a thread, whose chunks are below each other
constexpr int kThreadRows = kRangeTileRows / kRowsApart;
constexpr int kBlockSteps = 4;  // of a tile of keys, which a block packs

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
                           const Pack<T> (&packs)[kThreadRows]) {
  __shared__ float sums[kThreads / 32][2][kRangeTileColumns];
  const int thread = static_cast<int>(threadIdx.x);
  __syncthreads();  // of the step before
  float sum[2][kVector] = {};
#pragma unroll
  for (int i = 0; i < kThreadRows; ++i) {
    float values[kVector];
    Unpack(packs[i], values);
#pragma unroll
    for (int e = 0; e < kVector; ++e) sum[2 * i / kThreadRows][e] += values[e];
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

// Row i of the thread's in a tile.
__device__ int ThreadRow(int i) {
  return static_cast<int>(threadIdx.x) / kRowChunks + i * kRowsApart;
}
// Fills a tile with chunk(i, index of the chunk), which stay in `packs`; a thread's loads are all
// under way at once.
template <typename T, typename Chunk>
__device__ void FillTile(T* to, Pack<T> (&packs)[kThreadRows], Chunk&& chunk) {
  const int index = static_cast<int>(threadIdx.x) % kRowChunks;
#pragma unroll
  for (int i = 0; i < kThreadRows; ++i) packs[i] = chunk(i, index);
#pragma unroll
  for (int i = 0; i < kThreadRows; ++i) {
    *reinterpret_cast<Pack<T>*>(to + ChunkAt<T>(ThreadRow(i), index)) = packs[i];
  }
}

// The keys of a packed row, most of which lie in the page of the first.
template <typename T>
class PackedKey final {
 public:
  __device__ void Find(const RangeWork& work, const RangeKeys<T>& keys, int token) {
    token_ = token;
    in_page_ = token % work.page_tokens;
    page_ = keys.Find(token);
  }
  __device__ void Load(const RangeWork& work, const RangeKeys<T>& keys, int r, int channel,
                       Pack<T>* out) const {
    if (in_page_ + r >= work.page_tokens) {
      keys.Load(token_ + r, channel, out);
    } else if (page_ != nullptr && token_ + r < work.keys) {
      *out = *keys.At(page_, in_page_ + r, channel);
    }
  }
  __device__ int token() const { return token_; }

 private:
  const T* page_ = nullptr;
  int token_ = 0, in_page_ = 0;
};

template <typename T>
__global__ void __launch_bounds__(kThreads) PackKeysKernel(const __grid_constant__ RangeWork work) {
  LetNextStart();
  WaitForPrevious();
  const int steps = work.product.steps;
  const int groups = (steps + kBlockSteps - 1) / kBlockSteps;
  const int tile = static_cast<int>(blockIdx.x) / groups;
  const int begin = static_cast<int>(blockIdx.x) % groups * kBlockSteps;
  const int end = min(begin + kBlockSteps, steps);
  const int kv = static_cast<int>(blockIdx.y);
  auto* to = static_cast<T*>(work.packed_keys) +
             (int64_t{kv} * work.product.key_tiles + tile) * steps * kTileElements;
  const RangeKeys<T> keys(work, work.first_kv + kv);
  PackedKey<T> rows[kThreadRows];
#pragma unroll
  for (int i = 0; i < kThreadRows; ++i) {
    const int packed = tile * kRangeTileRows + ThreadRow(i);
    rows[i].Find(work, keys, (work.spreads() ? ChunkKey(packed) : packed) * work.product.stride);
  }
  Pack<T> packs[kThreadRows];
  for (int step = begin; step < end; ++step) {
    FillTile(to + int64_t{step} * kTileElements, packs, [&](int i, int chunk) {
      return PackOfInner<T>(
          work, step * kRangeTileColumns + chunk * kVector,
          [&](int r, int channel, Pack<T>* out) { rows[i].Load(work, keys, r, channel, out); },
          [&](int r, int channel) { return keys.Load(rows[i].token() + r, channel); });
    });
    if (work.path.estimate == EstimateKind::kProbePooled) WriteMeans(work, kv, tile, step, packs);
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
  Pack<T> packs[kThreadRows];
  FillTile(to, packs, [&](int i, int chunk) {
    const int packed = tile * kRangeTileRows + ThreadRow(i);
    const int in_group = work.spreads() ? PieceRow(packed) : packed;
    if (in_group >= work.members * product.rows) return Pack<T>{};
    const int member = in_group / product.rows;
    return QueryPack<T>(work, (work.first_kv + kv) * work.group + work.first_member + member,
                        in_group - member * product.rows,
                        step * kRangeTileColumns + chunk * kVector);
  });
}

}  // namespace

Status PackRangeKeys(const RangeWork& work, DType dtype, cudaStream_t stream) {
  const int64_t groups = CeilDiv(work.product.steps, kBlockSteps);
  const dim3 grid(static_cast<unsigned>(work.product.key_tiles * groups),
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
