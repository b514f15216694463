#include "kernels/cpu/correct.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels/core/checked_math.h"
#include "kernels/core/dtype.h"

namespace lacuna::kernels::cpu {
namespace {

float Load(float value) { return value; }
float Load(BF16 value) { return ToFloat(value); }
void Store(float* to, float value) { *to = value; }
void Store(BF16* to, float value) { *to = ToBF16(value); }

template <typename T>
T* RowAt(const TensorView& view, int64_t row) {
  return view.as<T>() + row * view.stride(0);
}

// A dense row, and the rows of its chunk that it speaks for: itself first.
struct Segment final {
  int64_t dense_row;
  int64_t row;
  int64_t rows;
};

// Segment `index` over all chunks; index < their CorrectedRows.
Segment SegmentAt(const CorrectPrefillArgs& args, int64_t index) {
  const int64_t stride = args.stride_rows;
  int64_t left = index;
  for (const PrefillChunk& chunk : args.chunks) {
    const int64_t here = CorrectedRows(chunk, stride);
    if (left >= here) {
      left -= here;
      continue;
    }
    const int64_t offset =
        (CeilDiv(int64_t{chunk.first_position}, stride) + left) * stride - chunk.first_position;
    return {index, chunk.first_row + offset, std::min(stride, chunk.rows - offset)};
  }
  return {index, 0, 0};
}

template <typename T>
void Shift(const CorrectPrefillArgs& args, const Segment& segment) {
  constexpr int64_t kRun = 256;
  const int64_t columns = args.out.dim(1) * args.out.dim(2);
  const T* dense = RowAt<const T>(args.dense, segment.dense_row);
  T* first = RowAt<T>(args.out, segment.row);
  float delta[kRun];
  for (int64_t begin = 0; begin < columns && segment.rows > 1; begin += kRun) {
    const int64_t count = std::min(kRun, columns - begin);
    for (int64_t i = 0; i < count; ++i) {
      delta[i] = Load(dense[begin + i]) - Load(first[begin + i]);
    }
    for (int64_t r = 1; r < segment.rows; ++r) {
      T* row = RowAt<T>(args.out, segment.row + r) + begin;
      for (int64_t i = 0; i < count; ++i) Store(row + i, Load(row[i]) + delta[i]);
    }
  }
  std::memcpy(first, dense, static_cast<size_t>(columns) * sizeof(T));
}

// The row's audit of this layer.
template <typename T>
void Compare(const CompareAttentionArgs& args, int64_t row) {
  const int64_t heads = args.sparse.dim(1);
  const int64_t columns = heads * args.sparse.dim(2);
  const T* sparse = RowAt<const T>(args.sparse, row);
  const T* dense = RowAt<const T>(args.dense, row);
  double difference = 0.0, norm = 0.0;
  for (int64_t i = 0; i < columns; ++i) {
    const double from = double{Load(dense[i])}, apart = double{Load(sparse[i])} - from;
    difference += apart * apart;
    norm += from * from;
  }
  const float* sparse_lse = RowAt<const float>(args.sparse_lse, row);
  const float* dense_lse = RowAt<const float>(args.dense_lse, row);
  double mass = 0.0;
  for (int64_t head = 0; head < heads; ++head) {
    const bool nothing = std::isinf(dense_lse[head]) && dense_lse[head] < 0.0f;
    mass += nothing ? 1.0 : std::exp(double{sparse_lse[head]} - dense_lse[head]);
  }
  AttentionAudit& audit = args.audits[row * args.stride];
  audit.captured_mass += static_cast<float>(mass / static_cast<double>(heads));
  if (difference > 0.0) {
    audit.output_error += static_cast<float>(norm > 0.0 ? std::sqrt(difference / norm) : 1.0);
  }
  ++audit.layers;
}

}  // namespace

Status CorrectPrefillCpu(const CorrectPrefillArgs& args, Isa, ThreadPool& pool) {
  pool.ParallelFor(args.dense.dim(0), [&](int64_t index, int) {
    Segment segment = SegmentAt(args, index);
    if (args.kind == PrefillCorrectKind::kOverwrite) segment.rows = 1;
    args.out.dtype() == DType::kF32 ? Shift<float>(args, segment) : Shift<BF16>(args, segment);
  });
  return OkStatus();
}

Status CompareAttentionCpu(const CompareAttentionArgs& args, Isa, ThreadPool& pool) {
  pool.ParallelFor(args.sparse.dim(0), [&](int64_t row, int) {
    args.sparse.dtype() == DType::kF32 ? Compare<float>(args, row) : Compare<BF16>(args, row);
  });
  return OkStatus();
}

}  // namespace lacuna::kernels::cpu
