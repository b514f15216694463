// How a consumer warpgroup of the Hopper prefill kernel writes its rows: normalised, in 16-byte
// stores straight from registers (sm_90a).
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cuda/attend/attend_prefill_sm90_math.cuh"
#include "kernels/cuda/ptx.cuh"

namespace lacuna::kernels::cuda {

inline constexpr float kLn2 = 0.6931471805599453f;

// What the accumulated output of a row is multiplied with, and its log-sum-exp (without the sink).
struct RowEnd final {
  float factor = 0.0f;
  float lse = -INFINITY;
};

__device__ inline RowEnd FinishRow(float max, float sum, float scale_log2, const float* sink) {
  sum += __shfl_xor_sync(kAllLanes, sum, 1);
  sum += __shfl_xor_sync(kAllLanes, sum, 2);
  RowEnd end;
  if (sum == 0.0f) return end;
  const float max_log2 = max * scale_log2;
  end.factor = 1.0f / sum;
  end.lse = (max_log2 + log2f(sum)) * kLn2;
  if (sink != nullptr) {
    const float sink_log2 = *sink * kLog2E;
    const float top = fmaxf(max_log2, sink_log2);
    const float weight = exp2f(max_log2 - top);
    end.factor = weight / fmaf(sum, weight, exp2f(sink_log2 - top));
  }
  return end;
}

// Lane t of a quad has word k of its own column pair; afterwards it has the words t of the four
// lanes, in lane order: 16 consecutive bytes of a row.
__device__ inline void TransposeQuad(uint32_t (&words)[4], int lane) {
#pragma unroll
  for (int step = 1; step <= 2; step *= 2) {
    const bool upper = (lane & step) != 0;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if ((k & step) != 0) continue;
      const uint32_t sent = upper ? words[k] : words[k + step];
      const uint32_t received = __shfl_xor_sync(kAllLanes, sent, step);
      if (upper) {
        words[k] = received;
      } else {
        words[k + step] = received;
      }
    }
  }
}

// Writes the rows of the item that exist: normalised output and log-sum-exp.
template <typename T, int kHeadDim>
__device__ inline void WriteOutput(const PrefillParams& params, const HalfItem& item,
                                   const float (&o)[kHeadDim / 2], const SoftmaxState& state,
                                   int first_row, int lane) {
  const float* sink = params.sink_logits == nullptr ? nullptr : params.sink_logits + item.head;
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    const RowEnd end = FinishRow(state.max[row], state.sum[row], params.scale_log2, sink);
    const int in_half = first_row + 8 * row;
    const bool exists = in_half < item.rows;
    const int64_t global_row = item.first_row + in_half;
    if (exists && params.lse != nullptr && (lane & 3) == 0) {
      params.lse[global_row * params.lse_stride + item.head] = end.lse;
    }
    T* const out =
        static_cast<T*>(params.out) + global_row * params.out_stride + item.head * kHeadDim;
#pragma unroll
    for (int i = 0; i < kHeadDim / 32; ++i) {
      uint32_t words[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float* pair = &o[16 * i + 4 * k + 2 * row];
        words[k] = PackPair<T>(pair[0] * end.factor, pair[1] * end.factor);
      }
      TransposeQuad(words, lane);
      if (exists) {
        reinterpret_cast<uint4*>(out + 32 * i)[lane & 3] =
            make_uint4(words[0], words[1], words[2], words[3]);
      }
    }
  }
}

}  // namespace lacuna::kernels::cuda
