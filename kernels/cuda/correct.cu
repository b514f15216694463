// CorrectPrefill and CompareAttention: repair of sparse prefill, and the comparison of sparse with
// dense.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>
#include <type_traits>

#include "kernels/core/checked_math.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/vectors.cuh"
#include "kernels/ops/correct.h"

namespace lacuna::kernels::cuda {
namespace {

constexpr int kThreads = 256;

// Chunks as kernel parameters, so that host memory is free for reuse as soon as the launch has
// returned. A segment is a dense row, and the rows of its chunk that it speaks for: itself first.
struct SegmentTable final {
  static constexpr int kChunksMax = 128;
  struct Entry final {
    int32_t first_row = 0;  // in out, of the chunk's first segment
    int32_t rows = 0;       // from there to the end of the chunk
    int32_t first_segment = 0;
  };
  Entry entries[kChunksMax];
  int32_t count = 0;
  int32_t segments = 0;
  int32_t stride = 0;  // rows of a segment; the last of a chunk may have fewer

  // Takes chunks from `next` on until it is full; returns the first one not taken.
  size_t Fill(std::span<const PrefillChunk> chunks, size_t next) {
    count = 0;
    segments = 0;
    for (; next < chunks.size() && count < kChunksMax; ++next) {
      const PrefillChunk& chunk = chunks[next];
      const int64_t here = CorrectedRows(chunk, stride);
      if (here == 0) continue;
      const int32_t offset = (stride - chunk.first_position % stride) % stride;
      entries[count++] = {chunk.first_row + offset, chunk.rows - offset, segments};
      segments += static_cast<int32_t>(here);
    }
    return next;
  }
};

struct CorrectParams final {
  const void* dense = nullptr;  // the row of the table's first segment
  void* out = nullptr;
  int64_t dense_row = 0, out_row = 0;  // strides, in elements
  int columns = 0;                     // q_heads * head_dim
  bool shifts = false;                 // else only the dense rows are written
  SegmentTable table;
};

// blockIdx.x is the segment. A thread owns eight of its columns, so that nobody else reads what it
// overwrites.
template <typename T, bool kAligned>
__global__ void __launch_bounds__(kThreads) CorrectKernel(const __grid_constant__ CorrectParams p) {
  LetNextStart();
  WaitForPrevious();
  const int column =
      (static_cast<int>(blockIdx.y) * kThreads + static_cast<int>(threadIdx.x)) * kVector;
  if (column >= p.columns) return;
  const int count = p.columns - column;
  const int segment = static_cast<int>(blockIdx.x);
  int at = p.table.count - 1;
  while (p.table.entries[at].first_segment > segment) --at;
  const SegmentTable::Entry& entry = p.table.entries[at];
  const int offset = (segment - entry.first_segment) * p.table.stride;
  const int rows = min(p.table.stride, entry.rows - offset);
  T* const out = static_cast<T*>(p.out) + int64_t{entry.first_row + offset} * p.out_row + column;
  float dense[kVector];
  LoadVector<kAligned>(static_cast<const T*>(p.dense) + segment * p.dense_row + column, count,
                       dense);
  if (p.shifts) {
    float delta[kVector];
    LoadVector<kAligned>(out, count, delta);
#pragma unroll
    for (int i = 0; i < kVector; ++i) delta[i] = dense[i] - delta[i];
#pragma unroll 4
    for (int row = 1; row < rows; ++row) {
      float values[kVector];
      LoadVector<kAligned>(out + row * p.out_row, count, values);
#pragma unroll
      for (int i = 0; i < kVector; ++i) values[i] += delta[i];
      StoreVector<kAligned>(out + row * p.out_row, count, values);
    }
  }
  StoreVector<kAligned>(out, count, dense);
}

struct CompareParams final {
  const void* sparse = nullptr;
  const void* dense = nullptr;
  int64_t sparse_row = 0, dense_row = 0;  // strides, in elements
  const float* sparse_lse = nullptr;
  const float* dense_lse = nullptr;
  int64_t sparse_lse_row = 0, dense_lse_row = 0;
  int heads = 0;
  int columns = 0;  // heads * head_dim
  AttentionAudit* audits = nullptr;
  int64_t stride = 0;
};

struct CompareSums final {
  double difference = 0.0;
  double norm = 0.0;
  double mass = 0.0;
};

// A block for each row; sums are added up in a fixed order.
template <typename T>
__global__ void __launch_bounds__(kThreads) CompareKernel(const __grid_constant__ CompareParams p) {
  __shared__ CompareSums sums[kThreads];
  LetNextStart();
  WaitForPrevious();
  const auto thread = static_cast<int>(threadIdx.x);
  const int64_t row = blockIdx.x;
  const T* const sparse = static_cast<const T*>(p.sparse) + row * p.sparse_row;
  const T* const dense = static_cast<const T*>(p.dense) + row * p.dense_row;
  CompareSums mine;
  for (int i = thread; i < p.columns; i += kThreads) {
    const double from = ToF32(dense[i]);
    const double apart = ToF32(sparse[i]) - from;
    mine.difference += apart * apart;
    mine.norm += from * from;
  }
  for (int head = thread; head < p.heads; head += kThreads) {
    const float from = p.dense_lse[row * p.dense_lse_row + head];
    const double captured = p.sparse_lse[row * p.sparse_lse_row + head];
    mine.mass += from == -INFINITY ? 1.0 : exp(captured - from);
  }
  sums[thread] = mine;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (thread < half) {
      const CompareSums& other = sums[thread + half];
      sums[thread].difference += other.difference;
      sums[thread].norm += other.norm;
      sums[thread].mass += other.mass;
    }
  }
  if (thread != 0) return;
  const CompareSums& all = sums[0];
  AttentionAudit& audit = p.audits[row * p.stride];
  audit.captured_mass += static_cast<float>(all.mass / p.heads);
  if (all.difference > 0.0) {
    audit.output_error +=
        static_cast<float>(all.norm > 0.0 ? sqrt(all.difference / all.norm) : 1.0);
  }
  ++audit.layers;
}

}  // namespace

Status CorrectPrefill(const CorrectPrefillArgs& args, cudaStream_t stream) {
  CorrectParams p;
  p.out = args.out.data();
  p.dense_row = args.dense.stride(0);
  p.out_row = args.out.stride(0);
  p.columns = static_cast<int>(args.out.dim(1) * args.out.dim(2));
  p.shifts = args.kind == PrefillCorrectKind::kDelta;
  p.table.stride = args.stride_rows;
  if (p.columns == 0) return OkStatus();
  const bool aligned = VectorAligned(args.out) && VectorAligned(args.dense);
  const auto blocks = static_cast<unsigned>(CeilDiv(p.columns, kThreads * kVector));
  int64_t dense_rows = 0;
  for (size_t next = 0; next < args.chunks.size();) {
    next = p.table.Fill(args.chunks, next);
    if (p.table.count == 0) break;
    p.dense = args.dense.as<std::byte>() +
              dense_rows * p.dense_row * static_cast<int64_t>(DTypeBytes(args.dense.dtype()));
    dense_rows += p.table.segments;
    const dim3 grid(static_cast<unsigned>(p.table.segments), blocks);
    LACUNA_RETURN_IF_ERROR(WithType(args.out.dtype(), [&]<typename T>(T) {
      return WithBool(aligned, [&]<bool kAligned>(std::bool_constant<kAligned>) {
        return Launch(CorrectKernel<T, kAligned>, grid, dim3(kThreads), 0, stream, p);
      });
    }));
  }
  return OkStatus();
}

Status CompareAttention(const CompareAttentionArgs& args, cudaStream_t stream) {
  CompareParams p;
  p.sparse = args.sparse.data();
  p.dense = args.dense.data();
  p.sparse_row = args.sparse.stride(0);
  p.dense_row = args.dense.stride(0);
  p.sparse_lse = args.sparse_lse.as<float>();
  p.dense_lse = args.dense_lse.as<float>();
  p.sparse_lse_row = args.sparse_lse.stride(0);
  p.dense_lse_row = args.dense_lse.stride(0);
  p.heads = static_cast<int>(args.sparse.dim(1));
  p.columns = static_cast<int>(args.sparse.dim(1) * args.sparse.dim(2));
  p.audits = args.audits;
  p.stride = args.stride;
  const auto rows = static_cast<unsigned>(args.sparse.dim(0));
  if (rows == 0 || p.heads == 0) return OkStatus();
  return WithType(args.sparse.dtype(), [&]<typename T>(T) {
    return Launch(CompareKernel<T>, dim3(rows), dim3(kThreads), 0, stream, p);
  });
}

}  // namespace lacuna::kernels::cuda
