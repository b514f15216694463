// The last step of a matrix product, the same instructions in every kernel so that bits agree.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "kernels/core/dtype.h"
#include "kernels/cuda/matmul/matmul_kernels.h"

namespace lacuna::kernels::cuda {

// Where an output goes; passed to kernels by value.
struct MatmulSink final {
  void* out;
  const float* bias;
  int64_t stride;  // elements
  float alpha;
  DType dtype;
  bool accumulate;
};

inline MatmulSink SinkOf(const MatmulTask& task) {
  return {task.out, task.bias, task.out_stride, task.alpha, task.out_dtype, task.accumulate};
}

__device__ inline void StoreResult(const MatmulSink& sink, int64_t row, int64_t column, float sum) {
  const float bias = sink.bias != nullptr ? __ldg(sink.bias + column) : 0.0f;
  const float value = __fmul_rn(sink.alpha, __fadd_rn(sum, bias));
  const int64_t at = row * sink.stride + column;
  if (sink.dtype == DType::kF32) {
    float* out = static_cast<float*>(sink.out) + at;
    *out = sink.accumulate ? __fadd_rn(*out, value) : value;
  } else if (sink.dtype == DType::kBF16) {
    static_cast<__nv_bfloat16*>(sink.out)[at] = __float2bfloat16_rn(value);
  } else {
    static_cast<__half*>(sink.out)[at] = __float2half_rn(value);
  }
}

}  // namespace lacuna::kernels::cuda
