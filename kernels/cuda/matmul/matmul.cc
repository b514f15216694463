// Matmuls: device weights, and which kernel multiplies them. cuBLASLt for many rows, our own for
// few, for odd sizes and for deterministic mode. Engine thread.
#include <algorithm>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/core/checked_math.h"
#include "kernels/core/dtype.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/matmul/cublaslt.h"
#include "kernels/cuda/matmul/matmul_kernels.h"
#include "kernels/cuda/ops.h"

namespace lacuna::kernels::cuda {
namespace {

// A weight as [out, in] row-major in device memory, in the dtype of the activations.
class DeviceMatrix final : public PreparedMatrix {
 public:
  static Result<std::unique_ptr<DeviceMatrix>> Allocate(int64_t rows, int64_t columns,
                                                        DType dtype) {
    const auto count = CheckedMul(rows, columns);
    const auto bytes =
        count ? CheckedMul(*count, static_cast<int64_t>(DTypeBytes(dtype))) : std::nullopt;
    if (rows < 0 || columns < 0 || !bytes) return InvalidArgument("matrix: size out of range");
    auto matrix = std::unique_ptr<DeviceMatrix>(new DeviceMatrix(rows, columns, dtype, *bytes));
    const cudaError_t error =
        cudaMalloc(&matrix->data_, static_cast<size_t>(std::max<int64_t>(*bytes, 16)));
    if (error == cudaErrorMemoryAllocation) {
      (void)cudaGetLastError();
      size_t free_bytes = 0;
      size_t total_bytes = 0;
      (void)cudaMemGetInfo(&free_bytes, &total_bytes);
      return Exhausted("weights: asked for " + std::to_string(*bytes >> 20) +
                       " MiB of device memory, " + std::to_string(free_bytes >> 20) +
                       " MiB are free; use a smaller model or more devices");
    }
    LACUNA_RETURN_IF_ERROR(CudaStatus(error, "weights"));
    return matrix;
  }
  ~DeviceMatrix() override { (void)cudaFree(data_); }
  DeviceMatrix(const DeviceMatrix&) = delete;
  DeviceMatrix& operator=(const DeviceMatrix&) = delete;

  int64_t rows() const override { return rows_; }
  int64_t columns() const override { return columns_; }
  int64_t bytes() const override { return bytes_; }
  DType dtype() const { return dtype_; }
  void* data() const { return data_; }

 private:
  DeviceMatrix(int64_t rows, int64_t columns, DType dtype, int64_t bytes)
      : rows_(rows), columns_(columns), bytes_(bytes), dtype_(dtype) {}

  int64_t rows_;
  int64_t columns_;
  int64_t bytes_;
  DType dtype_;
  void* data_ = nullptr;
};

float ReadAsFloat(const TensorView& view, int64_t row, int64_t column) {
  const int64_t at = row * view.stride(0) + column;
  switch (view.dtype()) {
    case DType::kBF16:
      return ToFloat(view.as<BF16>()[at]);
    case DType::kF16:
      return ToFloat(view.as<F16>()[at]);
    default:
      return view.as<float>()[at];
  }
}

void ConvertRows(const TensorView& weight, int64_t first, int64_t count, DType dtype,
                 std::byte* out) {
  const int64_t columns = weight.dim(1);
  for (int64_t r = 0; r < count; ++r) {
    for (int64_t c = 0; c < columns; ++c) {
      const float value = ReadAsFloat(weight, first + r, c);
      const int64_t at = r * columns + c;
      if (dtype == DType::kF32) {
        reinterpret_cast<float*>(out)[at] = value;
      } else if (dtype == DType::kBF16) {
        reinterpret_cast<BF16*>(out)[at] = ToBF16(value);
      } else {
        reinterpret_cast<F16*>(out)[at] = ToF16(value);
      }
    }
  }
}

// Copies rows of host memory to the device, converted on the way when the dtypes differ.
Status Upload(const TensorView& weight, const DeviceMatrix& matrix) {
  const int64_t row_bytes = matrix.columns() * static_cast<int64_t>(DTypeBytes(matrix.dtype()));
  if (weight.empty()) return OkStatus();
  if (weight.dtype() == matrix.dtype()) {
    const int64_t pitch = weight.stride(0) * static_cast<int64_t>(DTypeBytes(weight.dtype()));
    return CudaStatus(cudaMemcpy2D(matrix.data(), static_cast<size_t>(row_bytes), weight.data(),
                                   static_cast<size_t>(std::max(pitch, row_bytes)),
                                   static_cast<size_t>(row_bytes),
                                   static_cast<size_t>(matrix.rows()), cudaMemcpyHostToDevice),
                      "copy of weights");
  }
  constexpr int64_t kBatchBytes = int64_t{32} << 20;
  const int64_t batch = std::clamp<int64_t>(kBatchBytes / row_bytes, 1, matrix.rows());
  std::vector<std::byte> converted(static_cast<size_t>(batch * row_bytes));
  for (int64_t row = 0; row < matrix.rows(); row += batch) {
    const int64_t count = std::min(batch, matrix.rows() - row);
    ConvertRows(weight, row, count, matrix.dtype(), converted.data());
    LACUNA_CUDA_RETURN_IF_ERROR(cudaMemcpy(static_cast<std::byte*>(matrix.data()) + row * row_bytes,
                                           converted.data(), static_cast<size_t>(count * row_bytes),
                                           cudaMemcpyHostToDevice));
  }
  return OkStatus();
}

bool Aligned(const void* pointer, int64_t stride, DType dtype) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0 &&
         stride * static_cast<int64_t>(DTypeBytes(dtype)) % 16 == 0;
}

class CudaMatmuls final : public Matmuls {
 public:
  CudaMatmuls(const DeviceTraits& traits, DType dtype, bool deterministic,
              std::unique_ptr<CublasLt> cublas)
      : traits_(traits), dtype_(dtype), deterministic_(deterministic), cublas_(std::move(cublas)) {}

  Result<std::unique_ptr<PreparedMatrix>> Prepare(const TensorView& weight) override {
    LACUNA_ASSIGN_OR_RETURN(auto matrix,
                            DeviceMatrix::Allocate(weight.dim(0), weight.dim(1), dtype_));
    LACUNA_RETURN_IF_ERROR(Upload(weight, *matrix));
    LACUNA_CUDA_RETURN_IF_ERROR(cudaDeviceSynchronize());  // kernels fetch weights ahead of order
    return std::unique_ptr<PreparedMatrix>(std::move(matrix));
  }

  Result<std::unique_ptr<PreparedMatrix>> PrepareRandom(int64_t rows, int64_t columns,
                                                        uint64_t seed, float scale) override {
    LACUNA_ASSIGN_OR_RETURN(auto matrix, DeviceMatrix::Allocate(rows, columns, dtype_));
    LACUNA_RETURN_IF_ERROR(
        FillRandom(matrix->data(), dtype_, rows * columns, seed, scale, nullptr));
    LACUNA_CUDA_RETURN_IF_ERROR(cudaDeviceSynchronize());
    return std::unique_ptr<PreparedMatrix>(std::move(matrix));
  }

  Status Run(const MatmulArgs& args, cudaStream_t stream) override {
    const auto* matrix = dynamic_cast<const DeviceMatrix*>(args.weight);
    if (matrix == nullptr || matrix->dtype() != dtype_) {
      return InvalidArgument("Matmul: weight: prepared by another backend");
    }
    const MatmulTask task{.x = args.x.data(),
                          .weight = matrix->data(),
                          .bias = args.bias.empty() ? nullptr : args.bias.as<float>(),
                          .out = args.out.data(),
                          .x_stride = args.x.stride(0),
                          .out_stride = args.out.stride(0),
                          .m = args.x.dim(0),
                          .n = matrix->rows(),
                          .k = matrix->columns(),
                          .dtype = dtype_,
                          .out_dtype = args.out.dtype(),
                          .alpha = args.alpha,
                          .accumulate = args.accumulate};
    if (task.m == 0 || task.n == 0) return OkStatus();
    return Choose(task, stream);
  }

 private:
  Status Choose(const MatmulTask& task, cudaStream_t stream) {
    const bool whole = task.k % 8 == 0 && task.k > 0 && Aligned(task.x, task.x_stride, dtype_);
    if (!whole) return SimpleMatmul(task, stream);
    if (dtype_ == DType::kF32) {
      return deterministic_ || !CublasTakes(task) ? SimpleMatmul(task, stream)
                                                  : cublas_->Run(task, stream);
    }
    // Beyond 8 rows cuBLASLt is as fast.
    const int64_t skinny_max = deterministic_ || !CublasTakes(task) ? kSkinnyRowsMax : 8;
    if (traits_.major == 9 && task.m <= skinny_max) {
      return SkinnyMatmul(task, traits_.sm_count, deterministic_, {}, stream);
    }
    return deterministic_ || !CublasTakes(task) ? TileMatmul(task, stream)
                                                : cublas_->Run(task, stream);
  }

  static bool CublasTakes(const MatmulTask& task) {
    return task.n % 8 == 0 && Aligned(task.out, task.out_stride, task.out_dtype);
  }

  const DeviceTraits& traits_;
  DType dtype_;
  bool deterministic_;
  std::unique_ptr<CublasLt> cublas_;
};

}  // namespace

Result<std::unique_ptr<Matmuls>> Matmuls::Create(const DeviceTraits& traits, DType dtype,
                                                 bool deterministic) {
  if (dtype != DType::kBF16 && dtype != DType::kF16 && dtype != DType::kF32) {
    return InvalidArgument("precision: got " + std::string(DTypeName(dtype)) +
                           ", need bf16, f16 or f32");
  }
  LACUNA_ASSIGN_OR_RETURN(auto cublas, CublasLt::Create(dtype));
  return std::unique_ptr<Matmuls>(
      std::make_unique<CudaMatmuls>(traits, dtype, deterministic, std::move(cublas)));
}

}  // namespace lacuna::kernels::cuda
