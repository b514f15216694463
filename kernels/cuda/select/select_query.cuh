// Queries of one kv head as scoring takes them, in shared memory: as floats, as operands of
// m16n8k16 products (B: 16 channels x 8 columns), and what each head does to a result. Device code.
//
// A lane reads 16 bytes of a vector and takes its codes in whatever order they come out of the
// registers, so operands follow that order: chunk c of a vector belongs to lane c % 4 of a group of
// four, at step c / 4. A column is a part of a head's query: queries of more bits than the operand
// type has are the sum of 2 or 4 of them, in neighbouring columns. The bound of a box is
// min(q, 0) . minimum + max(q, 0) . maximum.
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/select/select_keys.h"
#include "kernels/cuda/select/select_score.h"

namespace lacuna::kernels::cuda {

// What one query head does to a sum of products.
struct HeadTerms final {
  float factor;        // takes the operand's scale off and the logits' on
  float zero_sums[2];  // of each vector: the scaled sum of its queries, for the codes' zeros
  float threshold;
};

// 32-bit words of an operand hold two values each; the codes of one chunk give kPairs of them.
template <int kBits>
struct CodeOrder final {
  static constexpr int kPairs = 64 / kBits;
  static constexpr int kProducts = kPairs / 2;  // of 16 channels, from the chunks of four lanes
  static constexpr int kWordPairs = kPairs / 4;

  // Channel of one of the two values of a pair, counted from the chunk's first.
  __device__ static int ChannelOf(int pair, int half) {
    const int word = pair / kWordPairs, i = pair % kWordPairs;
    constexpr int kWordCodes = 32 / kBits;
    if constexpr (kBits >= 8) return word * kWordCodes + 2 * i + half;
    return word * kWordCodes + i + half * (kWordCodes / 2);
  }
  // The values themselves, bits 16 as they lie. A code becomes the f16 number of these bits, which
  // is code * 2^-24: a subnormal number, which the products take as it is.
  __device__ static uint32_t Pair(const uint32_t (&words)[4], int pair) {
    const uint32_t word = words[pair / kWordPairs];
    const int i = pair % kWordPairs;
    if constexpr (kBits == 16) {
      return word;
    } else if constexpr (kBits == 8) {
      return __byte_perm(word, 0, i == 0 ? 0x4140u : 0x4342u);
    } else {
      return word >> kBits * i & ((1u << kBits) - 1) * 0x00010001u;
    }
  }
  static constexpr float kUnit = kBits == 16 ? 1.0f : 0x1p24f;  // of a sum of products
};

struct QueryMemory final {
  uint2* operands;   // [column_tiles, vectors, steps, kProducts, 32 lanes]
  float* plain;      // [heads, width]
  HeadTerms* terms;  // [heads]
  float* scales;     // [heads] of the operands
};

// Makes room for the largest element of a head in [1, 2): nothing that f16 holds less well than the
// type of the activations has a say then. A power of two.
__device__ inline float OperandScale(float most) {
  const uint32_t exponent = __float_as_uint(most) >> 23;
  if (exponent == 0 || exponent >= 254) return 1.0f;
  return __uint_as_float((254u - exponent) << 23);
}

// plain, terms and scales. By all threads of a block; nobody may read them before a barrier.
template <typename T>
__device__ void LoadQueries(const SelectKeysCall& call, const ScoreShape& shape, int row,
                            int kv_head, const QueryMemory& to) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const bool bound = call.path.metadata.kind == MetadataKind::kMinMax;
  const int16_t* channels = call.path.metadata.kind == MetadataKind::kLabels
                                ? call.metadata.channels + kv_head * shape.width
                                : nullptr;
  for (int head = static_cast<int>(threadIdx.x) / 32; head < call.heads;
       head += static_cast<int>(blockDim.x) / 32) {
    const int query_row = kv_head * call.heads + head;
    float most = 0.0f, sums[2] = {};
    for (int i = lane; i < shape.width; i += 32) {
      const float q = QueryRowValue(call, row, query_row, channels == nullptr ? i : channels[i]);
      to.plain[head * shape.width + i] = q;
      most = fmaxf(most, fabsf(q));
      sums[0] += bound ? fminf(q, 0.0f) : q;
      sums[1] += bound ? fmaxf(q, 0.0f) : 0.0f;
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      most = fmaxf(most, __shfl_xor_sync(~0u, most, step));
      sums[0] += __shfl_xor_sync(~0u, sums[0], step);
      sums[1] += __shfl_xor_sync(~0u, sums[1], step);
    }
    if (lane != 0) continue;
    const float scale = std::is_same_v<T, __half> ? OperandScale(most) : 1.0f;
    const float threshold =
        call.path.head_thresholds ? call.thresholds[query_row * call.group / call.heads] : 0.0f;
    to.scales[head] = scale;
    to.terms[head] = {call.scale / scale, {call.scale * sums[0], call.scale * sums[1]}, threshold};
  }
}

template <typename T>
__device__ inline float QueryPart(float q, int part) {
  for (int i = 0; i < part; ++i) {
    const uint32_t bits = PackPair<T>(q, 0.0f) & 0xffffu;
    if constexpr (std::is_same_v<T, __half>) {
      q -= __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
    } else {
      q -= __uint_as_float(bits << 16);
    }
  }
  return q;
}

// The operands, from what LoadQueries left. By all threads of a block, between barriers.
template <int kBits, typename T>
__device__ void MakeOperands(const SelectKeysCall& call, const ScoreShape& shape,
                             const QueryMemory& memory) {
  using Order = CodeOrder<kBits>;
  const bool bound = call.path.metadata.kind == MetadataKind::kMinMax;
  const int tile_heads = 8 / shape.parts;
  const int count = shape.column_tiles * shape.vectors * shape.steps * Order::kProducts * 32;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
    const int lane = i % 32, product = i / 32 % Order::kProducts;
    const int rest = i / (32 * Order::kProducts);
    const int step = rest % shape.steps, vector = rest / shape.steps % shape.vectors;
    const int tile = rest / (shape.steps * shape.vectors);
    const int head = tile * tile_heads + lane / 4 / shape.parts;
    const int first = (4 * step + lane % 4) * (128 / kBits);
    float values[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int channel = first + Order::ChannelOf(2 * product + j / 2, j % 2);
      float q = 0.0f;
      if (head < call.heads && channel < shape.width) {
        q = memory.plain[head * shape.width + channel];
        if (bound) q = vector == 0 ? fminf(q, 0.0f) : fmaxf(q, 0.0f);
        q = QueryPart<T>(q * memory.scales[head], lane / 4 % shape.parts);
      }
      values[j] = q;
    }
    memory.operands[i] = {PackPair<T>(values[0], values[1]), PackPair<T>(values[2], values[3])};
  }
}

}  // namespace lacuna::kernels::cuda
