// The elementwise ops, and RmsNorm. Every element is computed in f32 by an expression of its row
// alone; a sum runs in an order that depends on the row's length alone.
#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/core/checked_math.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/resident_blocks.h"
#include "kernels/cuda/vectors.cuh"

namespace lacuna::kernels::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kLongVectors = 2048;  // RmsNorm: the longest row, whose weight fills 64 KB

// A [rows, columns] view whose columns are contiguous.
template <typename T>
struct Matrix final {
  T* data;
  int64_t stride;  // elements
  __device__ T* at(int64_t row, int64_t column) const { return data + row * stride + column; }
};

template <typename T>
Matrix<T> MatrixOf(const TensorView& view) {
  return {view.as<T>(), view.stride(0)};
}

// A thread makes eight columns; blockIdx.x is the row, so that rows have no limit.
dim3 ElementGrid(int64_t rows, int64_t columns) {
  return {static_cast<unsigned>(rows), static_cast<unsigned>(CeilDiv(columns, kVector * kThreads))};
}
__device__ int64_t ElementColumn() {
  return (static_cast<int64_t>(blockIdx.y) * kThreads + threadIdx.x) * kVector;
}

template <typename T, bool kAligned>
__global__ void __launch_bounds__(kThreads)
    EmbedKernel(const int32_t* ids, Matrix<const T> table, int64_t vocab, Matrix<float> out,
                int64_t columns, float scale) {
  LetNextStart();
  WaitForPrevious();
  const int64_t row = blockIdx.x;
  const int64_t column = ElementColumn();
  if (column >= columns) return;
  const int count = static_cast<int>(columns - column);
  const int64_t id = ids[row];
  float values[kVector];
  if (id >= 0 && id < vocab) {
    LoadVector<kAligned>(table.at(id, column), count, values);
#pragma unroll
    for (float& value : values) value *= scale;
  } else {
#pragma unroll
    for (float& value : values) value = nanf("");
  }
  StoreVector<kAligned>(out.at(row, column), count, values);
}

template <bool kAligned>
__global__ void __launch_bounds__(kThreads)
    GatherRowsKernel(Matrix<const float> x, int64_t x_rows, const int32_t* rows, Matrix<float> out,
                     int64_t columns) {
  LetNextStart();
  WaitForPrevious();
  const int64_t row = blockIdx.x;
  const int64_t column = ElementColumn();
  if (column >= columns) return;
  const int count = static_cast<int>(columns - column);
  const int64_t from = rows[row];
  float values[kVector];
  if (from >= 0 && from < x_rows) {
    LoadVector<kAligned>(x.at(from, column), count, values);
  } else {
#pragma unroll
    for (float& value : values) value = nanf("");
  }
  StoreVector<kAligned>(out.at(row, column), count, values);
}

template <bool kAligned>
__global__ void __launch_bounds__(kThreads)
    SoftcapKernel(Matrix<float> x, int64_t columns, float cap) {
  LetNextStart();
  WaitForPrevious();
  const int64_t row = blockIdx.x;
  const int64_t column = ElementColumn();
  if (column >= columns) return;
  const int count = static_cast<int>(columns - column);
  float values[kVector];
  LoadVector<kAligned>(x.at(row, column), count, values);
#pragma unroll
  for (float& value : values) value = cap * tanhf(value / cap);
  StoreVector<kAligned>(x.at(row, column), count, values);
}

// x * sigmoid(y); 0 where exp(-y) overflows.
__device__ float TimesSigmoid(float x, float y) { return __fdividef(x, 1.0f + __expf(-y)); }

template <bool kGelu>
__device__ float Activate(float gate) {
  if constexpr (kGelu) {  // 0.5 (1 + tanh(u)) = sigmoid(2 u)
    constexpr float kTwoSqrtTwoOverPi = 1.5957691216057308f;
    return TimesSigmoid(gate, kTwoSqrtTwoOverPi * (gate + 0.044715f * gate * gate * gate));
  } else {
    return TimesSigmoid(gate, gate);
  }
}

template <typename T, bool kAligned, bool kGelu>
__global__ void __launch_bounds__(kThreads)
    GatedKernel(Matrix<const T> gate_up, Matrix<T> out, int64_t columns) {
  LetNextStart();
  WaitForPrevious();
  const int64_t row = blockIdx.x;
  const int64_t column = ElementColumn();
  if (column >= columns) return;
  const int count = static_cast<int>(columns - column);
  float gate[kVector];
  float up[kVector];
  LoadVector<kAligned>(gate_up.at(row, column), count, gate);
  LoadVector<kAligned>(gate_up.at(row, columns + column), count, up);
#pragma unroll
  for (int i = 0; i < kVector; ++i) gate[i] = Activate<kGelu>(gate[i]) * up[i];
  StoreVector<kAligned>(out.at(row, column), count, gate);
}

template <typename X, typename Out>
struct NormParams final {
  Matrix<const X> x;
  Matrix<Out> out;
  const float* weight;
  int64_t rows;  // of one head each
  int heads;
  int dim;
  float dim_inverse;
  float eps;
  bool accumulate;
};

// Where a row of one head lies.
struct RowPlace final {
  int64_t row;
  int64_t first;  // column
};
template <typename Params>
__device__ RowPlace PlaceOf(const Params& params, int64_t index) {
  if (params.heads == 1) return {index, 0};  // a division takes as long as the sum of a row
  return {index / params.heads, index % params.heads * params.dim};
}

__device__ float WarpSum(float value) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) value += __shfl_xor_sync(~0u, value, lanes);
  return value;
}

// Sums of the warps of a block; those that it does not have are 0.
struct alignas(16) WarpSums final {
  static constexpr int kWarpsMax = 16;
  float sums[kWarpsMax];
};

// The sum over the threads of a row: a warp's, or the whole block's. `parts` is not written again
// before every thread has passed the barrier of another sum.
template <bool kBlockPerRow>
__device__ float RowSum(float value, WarpSums& parts) {
  value = WarpSum(value);
  if constexpr (kBlockPerRow) {
    if (threadIdx.x % 32 == 0) parts.sums[threadIdx.x / 32] = value;
    __syncthreads();
    const auto* const fours = reinterpret_cast<const float4*>(parts.sums);
    float four_sums[WarpSums::kWarpsMax / 4];
#pragma unroll
    for (int i = 0; i < WarpSums::kWarpsMax / 4; ++i) {
      const float4 four = fours[i];
      four_sums[i] = (four.x + four.y) + (four.z + four.w);
    }
    value = (four_sums[0] + four_sums[1]) + (four_sums[2] + four_sums[3]);
  }
  return value;
}

// What a thread holds of a row as it lies in memory: kVectors times eight elements.
template <typename X, bool kAligned, int kVectors>
struct RowPart final {
  std::conditional_t<kAligned, Pack<X>, float[kVector]> vectors[kVectors];

  template <typename Params>
  __device__ void Load(const Params& params, const RowPlace& place, int thread, int threads) {
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int column = (i * threads + thread) * kVector;
      if (column >= params.dim) continue;
      const X* const from = params.x.at(place.row, place.first + column);
      if constexpr (kAligned) {
        vectors[i] = *reinterpret_cast<const Pack<X>*>(from);
      } else {
        LoadVector<false>(from, params.dim - column, vectors[i]);
      }
    }
  }
  __device__ void Get(int i, float (&to)[kVector]) const {
    if constexpr (kAligned) {
      Unpack(vectors[i], to);
    } else {
#pragma unroll
      for (int j = 0; j < kVector; ++j) to[j] = vectors[i][j];
    }
  }
};

template <int kFloats>
using Together = std::conditional_t<kFloats == 4, float4, float>;

// Rows (of one head each) to blocks, or to warps when they are short; with many rows a block takes
// several, and fetches the next one while it works on one. The weight is a constant: it is fetched
// while the previous kernel ends, and lies in shared memory.
template <typename X, typename Out, bool kAligned, bool kBlockPerRow, int kVectors>
__global__ void __launch_bounds__(kThreads* std::min(kVectors, 2))
    RmsNormKernel(const NormParams<X, Out> params) {
  LACUNA_DYNAMIC_SHARED(16, float4, shared);
  __shared__ WarpSums parts[2];
  LetNextStart();
  float* const weight = reinterpret_cast<float*>(shared);
  constexpr int kTogether = kAligned ? 4 : 1;
  const auto* const from = reinterpret_cast<const Together<kTogether>*>(params.weight);
  auto* const to = reinterpret_cast<Together<kTogether>*>(weight);
#pragma unroll 4
  for (int i = static_cast<int>(threadIdx.x); i < params.dim / kTogether;
       i += static_cast<int>(blockDim.x)) {
    to[i] = from[i];
  }
  if constexpr (kBlockPerRow) {  // RowSum's barrier is behind both
    const auto warp = static_cast<int>(threadIdx.x);
    if (warp >= static_cast<int>(blockDim.x) / 32 && warp < WarpSums::kWarpsMax) {
      parts[0].sums[warp] = parts[1].sums[warp] = 0.0f;
    }
  } else {
    __syncthreads();
  }
  const int threads = kBlockPerRow ? static_cast<int>(blockDim.x) : 32;
  const int thread = static_cast<int>(threadIdx.x) % threads;
  const int teams = kBlockPerRow ? 1 : kThreads / 32;
  const int64_t step = static_cast<int64_t>(gridDim.x) * teams;
  int64_t index = static_cast<int64_t>(blockIdx.x) * teams +
                  (kBlockPerRow ? 0 : static_cast<int64_t>(threadIdx.x / 32));
  RowPlace next_place = PlaceOf(params, index);
  RowPart<X, kAligned, kVectors> next;
  WaitForPrevious();
  if (index < params.rows) next.Load(params, next_place, thread, threads);
  for (int parity = 0; index < params.rows; index += step, parity ^= 1) {
    const RowPart<X, kAligned, kVectors> x = next;
    const RowPlace place = next_place;
    if (index + step < params.rows) {
      next_place = PlaceOf(params, index + step);
      next.Load(params, next_place, thread, threads);
    }
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      if ((i * threads + thread) * kVector >= params.dim) continue;
      float values[kVector];
      x.Get(i, values);
#pragma unroll
      for (int j = 0; j < kVector; ++j) sum = fmaf(values[j], values[j], sum);
    }
    sum = RowSum<kBlockPerRow>(sum, parts[parity]);
    const float inverse = rsqrtf(fmaf(sum, params.dim_inverse, params.eps));
#pragma unroll
    for (int i = 0; i < kVectors; ++i) {
      const int column = (i * threads + thread) * kVector;
      if (column >= params.dim) continue;
      const int count = params.dim - column;
      Out* const out_at = params.out.at(place.row, place.first + column);
      float values[kVector];
      float factors[kVector];
      float out[kVector] = {};
      x.Get(i, values);
      LoadVector<kAligned>(weight + column, count, factors);
      if (params.accumulate) LoadVector<kAligned>(out_at, count, out);
#pragma unroll
      for (int j = 0; j < kVector; ++j) out[j] += values[j] * inverse * factors[j];
      StoreVector<kAligned>(out_at, count, out);
    }
  }
}

// How a row is spread over threads: a function of its length alone, for the same bits in any batch.
template <typename X, typename Out, bool kAligned>
Status LaunchRmsNorm(const NormParams<X, Out>& params, cudaStream_t stream) {
  const auto launch = [&](auto block_per_row, auto vectors) -> Status {
    constexpr bool kBlockPerRow = decltype(block_per_row)::value;
    constexpr int kVectors = decltype(vectors)::value;
    const auto kernel = RmsNormKernel<X, Out, kAligned, kBlockPerRow, kVectors>;
    const int64_t per_block = kBlockPerRow ? 1 : kThreads / 32;
    const auto threads = static_cast<int>(
        kBlockPerRow ? RoundUp(CeilDiv(params.dim, kVectors * kVector), 32) : kThreads);
    const size_t shared_bytes = static_cast<size_t>(params.dim) * sizeof(float);
    if (shared_bytes > 48 << 10) {
      LACUNA_CUDA_RETURN_IF_ERROR(cudaFuncSetAttribute(
          kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)));
    }
    LACUNA_ASSIGN_OR_RETURN(
        const int64_t blocks,
        ResidentBlocks(kernel, CeilDiv(params.rows, per_block), threads, shared_bytes));
    return Launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(static_cast<unsigned>(threads)),
                  shared_bytes, stream, params);
  };
  const int vectors = (params.dim + kVector - 1) / kVector;
  if (vectors <= 32) return launch(std::false_type{}, std::integral_constant<int, 1>{});
  if (vectors <= 1024) return launch(std::true_type{}, std::integral_constant<int, 2>{});
  if (vectors <= kLongVectors) return launch(std::true_type{}, std::integral_constant<int, 4>{});
  return InvalidArgument("RmsNorm: x: need rows of at most 16384 on this device");
}

template <typename X, typename Out>
Status RmsNormTyped(const RmsNormArgs& args, cudaStream_t stream) {
  const int64_t heads = args.x.rank() == 3 ? args.x.dim(1) : 1;
  const int64_t dim = args.weight.dim(0);
  if (dim > 1 << 20) return InvalidArgument("RmsNorm: x: rows too long");
  const NormParams<X, Out> params{.x = MatrixOf<const X>(args.x),
                                  .out = MatrixOf<Out>(args.out),
                                  .weight = args.weight.as<const float>(),
                                  .rows = args.x.dim(0) * heads,
                                  .heads = static_cast<int>(heads),
                                  .dim = static_cast<int>(dim),
                                  .dim_inverse = 1.0f / static_cast<float>(dim),
                                  .eps = args.eps,
                                  .accumulate = args.accumulate};
  const bool aligned =
      VectorAligned(args.x) && VectorAligned(args.out) && VectorAligned(args.weight);
  return WithBool(aligned, [&](auto tag) {
    return LaunchRmsNorm<X, Out, decltype(tag)::value>(params, stream);
  });
}

}  // namespace

Status Embed(const EmbedArgs& args, cudaStream_t stream) {
  const int64_t columns = args.out.dim(1);
  return WithType(args.table.dtype(), [&](auto type) {
    using T = decltype(type);
    return WithBool(VectorAligned(args.table) && VectorAligned(args.out), [&](auto aligned) {
      return Launch(EmbedKernel<T, decltype(aligned)::value>, ElementGrid(args.out.dim(0), columns),
                    dim3(kThreads), 0, stream, args.ids.as<const int32_t>(),
                    MatrixOf<const T>(args.table), args.table.dim(0), MatrixOf<float>(args.out),
                    columns, args.scale);
    });
  });
}

Status RmsNorm(const RmsNormArgs& args, cudaStream_t stream) {
  const DType x = args.x.dtype();
  const DType out = args.out.dtype();
  if (x == DType::kF32) {
    return WithType(out,
                    [&](auto type) { return RmsNormTyped<float, decltype(type)>(args, stream); });
  }
  return WithType(x, [&](auto type) {
    using X = decltype(type);
    return out == DType::kF32 ? RmsNormTyped<X, float>(args, stream)
                              : RmsNormTyped<X, X>(args, stream);
  });
}

Status GatedActivation(const GatedActivationArgs& args, cudaStream_t stream) {
  const int64_t columns = args.out.dim(1);
  return WithType(args.out.dtype(), [&](auto type) {
    using T = decltype(type);
    return WithBool(VectorAligned(args.gate_up) && VectorAligned(args.out), [&](auto aligned) {
      return WithBool(args.activation == Activation::kGeluTanh, [&](auto gelu) {
        return Launch(GatedKernel<T, decltype(aligned)::value, decltype(gelu)::value>,
                      ElementGrid(args.out.dim(0), columns), dim3(kThreads), 0, stream,
                      MatrixOf<const T>(args.gate_up), MatrixOf<T>(args.out), columns);
      });
    });
  });
}

Status GatherRows(const GatherRowsArgs& args, cudaStream_t stream) {
  const int64_t columns = args.out.dim(1);
  return WithBool(VectorAligned(args.x) && VectorAligned(args.out), [&](auto aligned) {
    return Launch(GatherRowsKernel<decltype(aligned)::value>, ElementGrid(args.out.dim(0), columns),
                  dim3(kThreads), 0, stream, MatrixOf<const float>(args.x), args.x.dim(0),
                  args.rows.as<const int32_t>(), MatrixOf<float>(args.out), columns);
  });
}

Status Softcap(const SoftcapArgs& args, cudaStream_t stream) {
  const int64_t columns = args.x.dim(1);
  return WithBool(VectorAligned(args.x), [&](auto aligned) {
    return Launch(SoftcapKernel<decltype(aligned)::value>, ElementGrid(args.x.dim(0), columns),
                  dim3(kThreads), 0, stream, MatrixOf<float>(args.x), columns, args.cap);
  });
}

}  // namespace lacuna::kernels::cuda
