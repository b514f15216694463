// cuBLASLt with its heuristics asked once per shape, and a workspace of its own. Engine thread;
// all calls on one stream at a time (they share the workspace).
#pragma once

#include <cublasLt.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <memory>
#include <tuple>

#include "kernels/core/dtype.h"
#include "kernels/core/status.h"
#include "kernels/cuda/matmul/matmul_kernels.h"

namespace lacuna::kernels::cuda {

class CublasLt final {
 public:
  static Result<std::unique_ptr<CublasLt>> Create(DType dtype);
  ~CublasLt();
  CublasLt(const CublasLt&) = delete;
  CublasLt& operator=(const CublasLt&) = delete;

  // n and k multiples of 8, operands and their rows aligned to 16 bytes, m > 0. Allocates only host
  // memory, and that on the first call of a shape.
  Status Run(const MatmulTask& task, cudaStream_t stream);

 private:
  // m rounded up, n, k, f32 out, bias in the epilogue.
  using Key = std::tuple<int64_t, int64_t, int64_t, bool, bool>;

  explicit CublasLt(DType dtype) : dtype_(dtype) {}
  Result<cublasLtMatmulAlgo_t> FindAlgorithm(const MatmulTask& task, int64_t m, bool bias,
                                             cublasLtMatmulDesc_t operation);
  Status Multiply(const MatmulTask& task, bool bias, cudaStream_t stream);
  Status MultiplyThenBias(const MatmulTask& task, cudaStream_t stream);

  DType dtype_;
  cublasLtHandle_t handle_ = nullptr;
  void* workspace_ = nullptr;
  void* sums_ = nullptr;  // of products whose bias cuBLASLt cannot add
  std::map<Key, cublasLtMatmulAlgo_t> algorithms_;
};

}  // namespace lacuna::kernels::cuda
