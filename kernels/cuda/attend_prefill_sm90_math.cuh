// What a consumer warpgroup of the Hopper prefill kernel does with its registers between matrix
// products: masks, online softmax, output (sm_90a).
//
// A thread holds two rows of the warpgroup's 64 (see wgmma.cuh): "row 0" and "row 1" below. Every
// decision that changes bits is per row, so the bits of a row depend only on its own query, keys
// and visible set; tiles with nothing visible leave them as they were.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cuda/attend_prefill_sm90_tiles.cuh"
#include "kernels/cuda/ptx.cuh"

namespace lacuna::kernels::cuda {

inline constexpr float kLog2E = 1.4426950408889634f;
inline constexpr float kLn2 = 0.6931471805599453f;

// Running maximum (of unscaled scores) and sum; the sum is over this thread's columns only.
struct SoftmaxState final {
  float max[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0.0f, 0.0f};
};

// tanh with an absolute error near 1e-7; tanh.approx has 5e-4, too much under a cap of 50.
__device__ inline float Tanh(float x) {
  return 1.0f - __fdividef(2.0f, 1.0f + Exp2(fminf(2.0f * kLog2E * x, 126.0f)));
}

// Whether some key of the tile is hidden from some row of the half.
__device__ inline bool NeedsMask(const HalfItem& item, const StaticShape& shape, uint32_t mask,
                                 int first_key) {
  if (mask != kFullMask || first_key + kTileKeys - 1 > item.first_position) return true;
  return shape.window_tokens > 0 &&
         first_key <= item.first_position + item.rows - 1 - shape.window_tokens &&
         first_key + kTileKeys > shape.sink_tokens;
}

__device__ inline void MaskScores(float (&s)[64], const StaticShape& shape, uint32_t mask,
                                  int first_key, int position, int column) {
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    const int origin = first_key + column;
    const int last = position + 8 * row - origin;
    const int before = shape.window_tokens > 0 ? last - shape.window_tokens : INT_MIN;
    const int sink = shape.sink_tokens - origin;
#pragma unroll
    for (int j = 0; j < 16; ++j) {
      const bool listed = (mask >> (j / 2) & 1) != 0;
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int key = 8 * j + e;
        const bool seen = listed && key <= last && (key > before || key < sink);
        if (!seen) s[4 * j + 2 * row + e] = -INFINITY;
      }
    }
  }
}

// Scores to probabilities relative to the running maximum; returns by how much what was
// accumulated before has to be multiplied.
__device__ inline void UpdateSoftmax(float (&s)[64], SoftmaxState* state, float scale_log2,
                                     float (&rescale)[2]) {
#pragma unroll
  for (int row = 0; row < 2; ++row) {
    float top = fmaxf(s[2 * row], s[2 * row + 1]);
#pragma unroll
    for (int j = 1; j < 16; ++j) {
      top = fmaxf(top, fmaxf(s[4 * j + 2 * row], s[4 * j + 2 * row + 1]));
    }
    top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 1));
    top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, 2));
    top = fmaxf(top, state->max[row]);
    const float base = top == -INFINITY ? 0.0f : top * scale_log2;
    rescale[row] = Exp2(fmaf(state->max[row], scale_log2, -base));
    state->max[row] = top;
    float sum[2] = {0.0f, 0.0f};
#pragma unroll
    for (int j = 0; j < 16; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float& value = s[4 * j + 2 * row + e];
        value = Exp2(fmaf(value, scale_log2, -base));
        sum[e] += value;
      }
    }
    state->sum[row] = fmaf(state->sum[row], rescale[row], sum[0] + sum[1]);
  }
}

template <typename T>
__device__ inline void PackScores(const float (&s)[64], uint32_t (&p)[32]) {
#pragma unroll
  for (int i = 0; i < 32; ++i) p[i] = Pack<T>(s[2 * i], s[2 * i + 1]);
}

template <int kCount>
__device__ inline void Rescale(float (&o)[kCount], const float (&rescale)[2]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) o[i] *= rescale[i / 2 % 2];
}

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
        words[k] = Pack<T>(pair[0] * end.factor, pair[1] * end.factor);
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
