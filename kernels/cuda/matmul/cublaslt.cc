#include "kernels/cuda/matmul/cublaslt.h"

#include <algorithm>
#include <string>
#include <utility>

#include "kernels/core/checked_math.h"
#include "kernels/cuda/launch.cuh"

namespace lacuna::kernels::cuda {
namespace {

constexpr int64_t kWorkspaceBytes = int64_t{64} << 20;
constexpr int64_t kSumsBytes = int64_t{32} << 20;  // less than the L2 of the devices that we aim at
constexpr size_t kAlgorithmsMax = 4096;

Status BlasStatus(cublasStatus_t status, const char* what) {
  if (status == CUBLAS_STATUS_SUCCESS) return OkStatus();
  return InternalError(std::string(what) + ": " + cublasLtGetStatusString(status));
}

#define LACUNA_BLAS_RETURN_IF_ERROR(call) LACUNA_RETURN_IF_ERROR(BlasStatus((call), #call))

cudaDataType_t DataType(DType dtype) {
  if (dtype == DType::kBF16) return CUDA_R_16BF;
  return dtype == DType::kF16 ? CUDA_R_16F : CUDA_R_32F;
}

// The operation of one call; destroyed with it.
class Operation final {
 public:
  Operation() = default;
  ~Operation() {
    if (desc_ != nullptr) (void)cublasLtMatmulDescDestroy(desc_);
  }
  Operation(const Operation&) = delete;
  Operation& operator=(const Operation&) = delete;

  Status Init(const MatmulTask& task, bool bias) {
    // Pedantic: f32 stays f32 whatever the environment allows.
    const cublasComputeType_t compute =
        task.dtype == DType::kF32 ? CUBLAS_COMPUTE_32F_PEDANTIC : CUBLAS_COMPUTE_32F;
    LACUNA_BLAS_RETURN_IF_ERROR(cublasLtMatmulDescCreate(&desc_, compute, CUDA_R_32F));
    const cublasOperation_t transposed = CUBLAS_OP_T;
    LACUNA_BLAS_RETURN_IF_ERROR(cublasLtMatmulDescSetAttribute(desc_, CUBLASLT_MATMUL_DESC_TRANSA,
                                                               &transposed, sizeof(transposed)));
    if (!bias) return OkStatus();
    const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
    LACUNA_BLAS_RETURN_IF_ERROR(cublasLtMatmulDescSetAttribute(desc_, CUBLASLT_MATMUL_DESC_EPILOGUE,
                                                               &epilogue, sizeof(epilogue)));
    return BlasStatus(cublasLtMatmulDescSetAttribute(desc_, CUBLASLT_MATMUL_DESC_BIAS_POINTER,
                                                     &task.bias, sizeof(task.bias)),
                      "bias");
  }
  cublasLtMatmulDesc_t get() const { return desc_; }

 private:
  cublasLtMatmulDesc_t desc_ = nullptr;
};

// Column-major rows x columns, as cuBLAS sees things: our row-major [m, k] is its k x m.
class Layout final {
 public:
  Layout() = default;
  ~Layout() {
    if (layout_ != nullptr) (void)cublasLtMatrixLayoutDestroy(layout_);
  }
  Layout(const Layout&) = delete;
  Layout& operator=(const Layout&) = delete;

  Status Init(DType dtype, int64_t rows, int64_t columns, int64_t stride) {
    return BlasStatus(
        cublasLtMatrixLayoutCreate(&layout_, DataType(dtype), static_cast<uint64_t>(rows),
                                   static_cast<uint64_t>(columns), std::max(stride, rows)),
        "matrix layout");
  }
  cublasLtMatrixLayout_t get() const { return layout_; }

 private:
  cublasLtMatrixLayout_t layout_ = nullptr;
};

struct Layouts final {
  Layout weight;
  Layout x;
  Layout out;

  Status Init(const MatmulTask& task, int64_t m) {
    LACUNA_RETURN_IF_ERROR(weight.Init(task.dtype, task.k, task.n, task.k));
    LACUNA_RETURN_IF_ERROR(x.Init(task.dtype, task.k, m, task.x_stride));
    return out.Init(task.out_dtype, task.n, m, task.out_stride);
  }
};

// Shapes of one bucket share an algorithm: exact to 64 rows, then within an eighth.
int64_t Bucket(int64_t m) {
  int64_t step = 8;
  while (step * 16 < m) step *= 2;
  return m <= 64 ? m : RoundUp(m, step);
}

}  // namespace

Result<std::unique_ptr<CublasLt>> CublasLt::Create(DType dtype) {
  auto self = std::unique_ptr<CublasLt>(new CublasLt(dtype));
  LACUNA_BLAS_RETURN_IF_ERROR(cublasLtCreate(&self->handle_));
  LACUNA_CUDA_RETURN_IF_ERROR(cudaMalloc(&self->workspace_, kWorkspaceBytes));
  LACUNA_CUDA_RETURN_IF_ERROR(cudaMalloc(&self->sums_, kSumsBytes));
  return self;
}

CublasLt::~CublasLt() {
  if (handle_ != nullptr) (void)cublasLtDestroy(handle_);
  (void)cudaFree(workspace_);
  (void)cudaFree(sums_);
}

Status CublasLt::Run(const MatmulTask& task, cudaStream_t stream) {
  if (task.bias == nullptr) return Multiply(task, false, stream);
  // Its bias has the dtype of the output and is not scaled by alpha.
  if (task.out_dtype == DType::kF32 && task.alpha == 1.0f) return Multiply(task, true, stream);
  return MultiplyThenBias(task, stream);
}

// Rows by rows through f32 sums that stay in L2: rounds once, after the bias.
Status CublasLt::MultiplyThenBias(const MatmulTask& task, cudaStream_t stream) {
  const int64_t rows = std::max<int64_t>(kSumsBytes / (task.n * 4), 1);
  if (rows * task.n * 4 > kSumsBytes) return TileMatmul(task, stream);
  for (int64_t row = 0; row < task.m; row += rows) {
    MatmulTask part = task;
    part.m = std::min(rows, task.m - row);
    part.x = static_cast<const std::byte*>(task.x) +
             row * task.x_stride * static_cast<int64_t>(DTypeBytes(task.dtype));
    part.out = static_cast<std::byte*>(task.out) +
               row * task.out_stride * static_cast<int64_t>(DTypeBytes(task.out_dtype));
    MatmulTask sums = part;
    sums.bias = nullptr;
    sums.out = sums_;
    sums.out_stride = task.n;
    sums.out_dtype = DType::kF32;
    sums.alpha = 1.0f;
    sums.accumulate = false;
    LACUNA_RETURN_IF_ERROR(Multiply(sums, false, stream));
    LACUNA_RETURN_IF_ERROR(MatmulEpilogue(part, static_cast<const float*>(sums_), stream));
  }
  return OkStatus();
}

Result<cublasLtMatmulAlgo_t> CublasLt::FindAlgorithm(const MatmulTask& task, int64_t m, bool bias,
                                                     cublasLtMatmulDesc_t operation) {
  Layouts layouts;
  LACUNA_RETURN_IF_ERROR(layouts.Init(task, m));
  cublasLtMatmulPreference_t preference = nullptr;
  LACUNA_BLAS_RETURN_IF_ERROR(cublasLtMatmulPreferenceCreate(&preference));
  const std::unique_ptr<cublasLtMatmulPreferenceOpaque_t,
                        cublasStatus_t (*)(cublasLtMatmulPreference_t)>
      owner(preference, cublasLtMatmulPreferenceDestroy);
  const auto set = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
    return BlasStatus(
        cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof(value)),
        "matmul preference");
  };
  const uint64_t workspace_bytes = kWorkspaceBytes;
  const uint32_t alignment = 16;
  LACUNA_RETURN_IF_ERROR(set(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, workspace_bytes));
  for (const auto attribute :
       {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES}) {
    LACUNA_RETURN_IF_ERROR(set(attribute, alignment));
  }
  cublasLtMatmulHeuristicResult_t result{};
  int found = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(
      handle_, operation, layouts.weight.get(), layouts.x.get(), layouts.out.get(),
      layouts.out.get(), preference, 1, &result, &found);
  if (status != CUBLAS_STATUS_SUCCESS || found == 0) {
    return InternalError("cuBLASLt knows no algorithm for " + std::to_string(m) + " x " +
                         std::to_string(task.n) + " x " + std::to_string(task.k) +
                         (bias ? " with bias" : ""));
  }
  return result.algo;
}

Status CublasLt::Multiply(const MatmulTask& task, bool bias, cudaStream_t stream) {
  Operation operation;
  LACUNA_RETURN_IF_ERROR(operation.Init(task, bias));
  Layouts layouts;
  LACUNA_RETURN_IF_ERROR(layouts.Init(task, task.m));
  const Key key{Bucket(task.m), task.n, task.k, task.out_dtype == DType::kF32, bias};
  const float beta = task.accumulate ? 1.0f : 0.0f;
  const auto multiply = [&](const cublasLtMatmulAlgo_t& algorithm) {
    return cublasLtMatmul(handle_, operation.get(), &task.alpha, task.weight, layouts.weight.get(),
                          task.x, layouts.x.get(), &beta, task.out, layouts.out.get(), task.out,
                          layouts.out.get(), &algorithm, workspace_, kWorkspaceBytes, stream);
  };
  auto known = algorithms_.find(key);
  if (known == algorithms_.end()) {
    if (algorithms_.size() >= kAlgorithmsMax) algorithms_.clear();
    LACUNA_ASSIGN_OR_RETURN(const auto algorithm,
                            FindAlgorithm(task, std::get<0>(key), bias, operation.get()));
    known = algorithms_.emplace(key, algorithm).first;
  }
  const cublasStatus_t status = multiply(known->second);
  if (status != CUBLAS_STATUS_NOT_SUPPORTED && status != CUBLAS_STATUS_INVALID_VALUE) {
    return BlasStatus(status, "cublasLtMatmul");
  }
  // What suits the bucket does not suit this m exactly.
  LACUNA_ASSIGN_OR_RETURN(const auto exact, FindAlgorithm(task, task.m, bias, operation.get()));
  return BlasStatus(multiply(exact), "cublasLtMatmul");
}

}  // namespace lacuna::kernels::cuda
