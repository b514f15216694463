// True attention of a few query rows of each cell, summed along columns and diagonals (MInference,
// Jiang et al. 2024): the second pass over the keys, now that each row's sum is known.
//
// A block has one cell of one head and one strip of keys. Probabilities of 64 rows x 128 keys go
// through shared memory, where thread t adds up column t and the diagonals t and t + 128; so every
// sum is made in one order. Neighbouring strips share distances: each leaves its partial sums,
// which a last kernel adds up in order of the strips.
#include <cmath>
#include <cstdint>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/range_fold.cuh"
#include "kernels/cuda/range_kernels.h"
#include "kernels/cuda/range_product.cuh"

namespace lacuna::kernels::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kKeys = kRangeTileRows;
constexpr int kPRow = kKeys + 8;   // floats of a row of probabilities: no bank conflicts
constexpr float kNothing = 1e30f;  // an lse that leaves no probability
constexpr int kDiagonals = kRangePieceRows + kKeys - 1;
static_assert(kThreads == kKeys && kRangePieceRows == kThreads / 32 * 16);
static_assert(kRangeStripTokens % kKeys == 0);

// Steps of the product that shared memory holds at once: all, or in f32 one.
template <typename T>
__host__ __device__ constexpr int StepsHeld(int steps) {
  return sizeof(T) == 2 ? steps : 1;
}
template <typename T>
__host__ __device__ constexpr int SharedBytes(int steps) {
  return StepsHeld<T>(steps) * kRangeTileBytes<T> * 3 / 2 +
         (kRangePieceRows * kPRow + kRangePartials) * 4;
}

// ---- each row's log2 of its sum of exponentials ----

constexpr int kRowThreads = 256;

__global__ void __launch_bounds__(kRowThreads) LseKernel(const __grid_constant__ RangeWork work) {
  LetNextStart();
  WaitForPrevious();
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int64_t row = int64_t{blockIdx.x} * (kRowThreads / 32) + threadIdx.x / 32;
  if (row >= int64_t{work.head_count()} * work.product.rows) return;
  const int visible = work.visible[row % work.product.rows];
  const float2* tiles = work.tile_sums + row * work.product.key_tiles;
  const int count = visible < 0 ? 0 : visible / kRangeTileRows + 1;
  float top = kNoLogit;
  for (int tile = lane; tile < count; tile += 32) top = fmaxf(top, tiles[tile].x);
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, lanes));
  float total = 0.0f;
  for (int tile = lane; tile < count; tile += 32) {
    total = fmaf(exp2f(tiles[tile].x - top), tiles[tile].y, total);
  }
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) total += __shfl_xor_sync(~0u, total, lanes);
  if (lane == 0) work.lse[row] = total > 0.0f ? top + log2f(total) : kNothing;
}

// ---- probabilities ----

template <typename T>
class Spreader final {
 public:
  __device__ Spreader(const RangeWork& work, std::byte* shared)
      : work_(work),
        product_(work.product),
        head_(static_cast<int>(blockIdx.z)),
        cell_(static_cast<int>(blockIdx.y)),
        end_(CellRows(work, cell_).end),
        keys_(shared),
        queries_(keys_ + StepsHeld<T>(product_.steps) * kRangeTileBytes<T>),
        p_(reinterpret_cast<float*>(queries_ +
                                    StepsHeld<T>(product_.steps) * kRangeTileBytes<T> / 2)),
        diagonals_(p_ + kRangePieceRows * kPRow) {}

  __device__ void Run() {
    const int strip = static_cast<int>(blockIdx.x);
    const int first_key = strip * kRangeStripTokens;
    if (first_key >= end_) return;
    const int thread = static_cast<int>(threadIdx.x);
    for (int i = thread; i < kRangePartials; i += kThreads) diagonals_[i] = 0.0f;
    const int64_t list = int64_t{head_} * work_.cells + cell_;
    // Distance of diagonals_[0]: the cell's first position less the strip's last key.
    const int cell_first = (work_.first_cell() + cell_) * kPrefillCellTokens;
    const int first_distance = cell_first - first_key - kRangeStripTokens + 1;
    for (int at = first_key; at < min(first_key + kRangeStripTokens, end_); at += kKeys) {
      float column = 0.0f;
      ForPieces([&](int row, int rows, int position, bool last) {
        if (position + rows <= at) return;
        __syncthreads();  // the last piece's probabilities have been read
        StoreProbabilities(at, row, rows);
        __syncthreads();
        if (last) Prefetch(at + kKeys, min(first_key + kRangeStripTokens, end_));
        column += ColumnSum(thread);
        AddDiagonal(thread, position - at - (kKeys - 1) - first_distance);
        AddDiagonal(thread + kKeys, position - at - (kKeys - 1) - first_distance);
      });
      work_.column_sums[list * work_.keys_stride + at + thread] = column;
    }
    __syncthreads();
    float* to = work_.partials + (list * work_.strips + strip) * kRangePartials;
    for (int i = thread; i < kRangePartials; i += kThreads) to[i] = diagonals_[i];
  }

 private:
  // Gives the cell's pieces in order: first row of the head, rows, position of the first, whether
  // no other follows.
  template <typename Fn>
  __device__ void ForPieces(Fn&& fn) const {
    const int first = cell_ * product_.runs * product_.run_rows;
    for (int run = 0; run < product_.runs; ++run) {
      for (int row = 0; row < product_.run_rows; row += kRangePieceRows) {
        const int at = first + run * product_.run_rows + row;
        const int position = work_.visible[at];
        const int rest = product_.run_rows - row;
        const bool last = run + 1 == product_.runs && rest <= kRangePieceRows;
        if (position >= 0) fn(at, min(rest, kRangePieceRows), position, last);
      }
    }
  }

  // Tile `tile` of the kv head's packed keys, or rows of its queries, one step.
  __device__ void CopyKeys(int at, int step, std::byte* to) const {
    const T* from =
        static_cast<const T*>(work_.packed_keys) +
        ((int64_t{head_ / work_.members} * product_.key_tiles + at / kKeys) * product_.steps +
         step) *
            (kRangeTileRows * kRangeTileColumns);
    CopyTileRows<T, kThreads, kKeys>(from, kKeys, SharedAddress(to));
  }
  __device__ void CopyQueries(int row, int rows, int step, std::byte* to) const {
    const int in_group = head_ % work_.members * product_.rows + row;
    // A piece may begin in any row and lie in two tiles: its chunks are permuted anew.
    const T* tiles = static_cast<const T*>(work_.packed_queries);
    constexpr int kChunks = kRangeTileColumns * static_cast<int>(sizeof(T)) / 16;
    for (int at = static_cast<int>(threadIdx.x); at < kRangePieceRows * kChunks; at += kThreads) {
      const int to_row = at / kChunks, from_row = (in_group + to_row) % kRangeTileRows;
      const int chunk = at % kChunks;
      const int64_t tile = int64_t{head_ / work_.members} * product_.row_tiles +
                           (in_group + to_row) / kRangeTileRows;
      const auto* from = reinterpret_cast<const std::byte*>(
          tiles + ((tile * product_.steps + step) * kRangeTileRows + from_row) * kRangeTileColumns);
      const bool valid = to_row < rows;
      const int swizzle = sizeof(T) == 2 ? 7 : 0;
      AsyncCopy16(SharedAddress(to) +
                      static_cast<uint32_t>((to_row * kChunks + (chunk ^ (to_row & swizzle))) * 16),
                  valid ? from + (chunk ^ (from_row & swizzle)) * 16
                        : static_cast<const std::byte*>(work_.packed_queries),
                  valid);
    }
  }

  // Logits of the warp's 16 rows of the piece and the keys [at, at + kKeys).
  __device__ void Multiply(int at, int row, int rows, RangeLogits& logits) {
    const int warp_row = static_cast<int>(threadIdx.x) / 32 * 16;
    const int held = StepsHeld<T>(product_.steps);
    for (int first = 0; first < product_.steps; first += held) {
      const bool every = held < product_.steps;
      if (first > 0) __syncthreads();
      for (int i = 0; i < held; ++i) {
        if (every || loaded_keys_ != at) {
          CopyKeys(at, first + i, keys_ + i * kRangeTileBytes<T>);
        }
        if (every || loaded_row_ != row) {
          CopyQueries(row, rows, first + i, queries_ + i * kRangeTileBytes<T> / 2);
        }
      }
      AsyncCopyCommit();
      AsyncCopyWait<0>();
      __syncthreads();
      for (int i = 0; i < held; ++i) {
        AddProduct<T>(queries_ + i * kRangeTileBytes<T> / 2, warp_row,
                      keys_ + i * kRangeTileBytes<T>, logits);
      }
    }
    loaded_keys_ = at;
    loaded_row_ = row;
  }

  // Starts to copy the keys from `at` on over those that the product has read.
  __device__ void Prefetch(int at, int end) {
    if (at >= end || StepsHeld<T>(product_.steps) < product_.steps) return;
    for (int i = 0; i < product_.steps; ++i) CopyKeys(at, i, keys_ + i * kRangeTileBytes<T>);
    AsyncCopyCommit();
    loaded_keys_ = at;
  }

  __device__ void StoreProbabilities(int at, int row, int rows) {
    RangeLogits logits = {};
    Multiply(at, row, rows, logits);
    const int lane = static_cast<int>(threadIdx.x) & 31;
    const float factor = LogitFactor(work_);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int in_piece = static_cast<int>(threadIdx.x) / 32 * 16 + half * 8 + lane / 4;
      const bool exists = in_piece < rows;
      const int visible = exists ? work_.visible[row + in_piece] : -1;
      const float lse =
          exists ? work_.lse[int64_t{head_} * product_.rows + row + in_piece] : kNothing;
      const int last = visible - at - 2 * (lane & 3);
      float* to = p_ + in_piece * kPRow + 2 * (lane & 3);
#pragma unroll
      for (int j = 0; j < 16; ++j) {
        const float x = Exp2(fmaf(logits[4 * j + 2 * half], factor, -lse));
        const float y = Exp2(fmaf(logits[4 * j + 2 * half + 1], factor, -lse));
        *reinterpret_cast<float2*>(to + 8 * j) =
            make_float2(8 * j <= last ? x : 0.0f, 8 * j + 1 <= last ? y : 0.0f);
      }
    }
  }

  __device__ float ColumnSum(int column) const {
    float sum = 0.0f;
#pragma unroll 16
    for (int row = 0; row < kRangePieceRows; ++row) sum += p_[row * kPRow + column];
    return sum;
  }

  // Diagonal `diagonal` of the piece: row i and key i + kKeys - 1 - diagonal. `first` is the place
  // of diagonal 0 in diagonals_.
  __device__ void AddDiagonal(int diagonal, int first) {
    if (diagonal >= kDiagonals) return;
    const int offset = kKeys - 1 - diagonal;  // of the key from the row
    float sum = 0.0f;
#pragma unroll 4
    for (int row = max(0, -offset); row < min(kRangePieceRows, kKeys - offset); ++row) {
      sum += p_[row * kPRow + row + offset];
    }
    diagonals_[first + diagonal] += sum;
  }

  const RangeWork& work_;
  const RangeProduct& product_;
  const int head_, cell_, end_;
  std::byte* const keys_;     // [steps held] tiles
  std::byte* const queries_;  // [steps held] halves of a tile
  float* const p_;            // [kRangePieceRows][kPRow]
  float* const diagonals_;    // [kRangePartials]
  int loaded_keys_ = -1, loaded_row_ = -1;
};

template <typename T>
__global__ void __launch_bounds__(kThreads) SpreadKernel(const __grid_constant__ RangeWork work) {
  LACUNA_DYNAMIC_SHARED(1024, std::byte, shared);
  LetNextStart();
  WaitForPrevious();
  if (ModeOf(work, work.QHead(static_cast<int>(blockIdx.z))) != HeadMode::kProbe) return;
  Spreader<T>(work, shared).Run();
}

// ---- distances ----

__global__ void __launch_bounds__(kRowThreads)
    MergeDistancesKernel(const __grid_constant__ RangeWork work) {
  LetNextStart();
  WaitForPrevious();
  const int list = static_cast<int>(blockIdx.y);
  if (ModeOf(work, work.QHead(list / work.cells)) != HeadMode::kProbe) return;
  const int cell = list % work.cells;
  const int end = CellRows(work, cell).end;
  const int distance = static_cast<int>(blockIdx.x * kRowThreads + threadIdx.x);
  if (distance >= end) return;
  const int cell_first = (work.first_cell() + cell) * kPrefillCellTokens;
  const float* from = work.partials + int64_t{list} * work.strips * kRangePartials;
  float sum = 0.0f;
  const int strips = (end - 1) / kRangeStripTokens + 1;
  // Of strip s the distances from cell_first - (s + 1) * kRangeStripTokens + 1 on.
  const int after = cell_first - distance + 1;
  for (int strip = max((after - kRangeStripTokens) / kRangeStripTokens, 0); strip < strips;
       ++strip) {
    const int at = distance - cell_first + (strip + 1) * kRangeStripTokens - 1;
    if (at >= kRangePartials) break;
    if (at >= 0) sum += from[int64_t{strip} * kRangePartials + at];
  }
  work.distance_sums[int64_t{list} * work.keys_stride + distance] = sum;
}

template <typename T>
Status Run(const RangeWork& work, cudaStream_t stream) {
  const int bytes = SharedBytes<T>(work.product.steps);
  LACUNA_CUDA_RETURN_IF_ERROR(
      cudaFuncSetAttribute(SpreadKernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  return Launch(SpreadKernel<T>,
                dim3(static_cast<unsigned>(work.strips), static_cast<unsigned>(work.cells),
                     static_cast<unsigned>(work.head_count())),
                dim3(kThreads), static_cast<size_t>(bytes), stream, work);
}

}  // namespace

Status RangeSpread(const RangeWork& work, DType dtype, cudaStream_t stream) {
  const int64_t rows = int64_t{work.head_count()} * work.product.rows;
  LACUNA_RETURN_IF_ERROR(Launch(
      LseKernel, dim3(static_cast<unsigned>((rows + kRowThreads / 32 - 1) / (kRowThreads / 32))),
      dim3(kRowThreads), 0, stream, work));
  LACUNA_RETURN_IF_ERROR(
      WithProductType(dtype, [&](auto type) { return Run<decltype(type)>(work, stream); }));
  return Launch(MergeDistancesKernel,
                dim3(static_cast<unsigned>((work.keys + kRowThreads - 1) / kRowThreads),
                     static_cast<unsigned>(work.head_count() * work.cells)),
                dim3(kRowThreads), 0, stream, work);
}

}  // namespace lacuna::kernels::cuda
