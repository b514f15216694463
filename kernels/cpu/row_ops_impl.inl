// The body of RowOps, included once by each row_ops_<isa>.cc with LACUNA_ISA naming its namespace.
// Plain loops that the compiler turns into vectors of that instruction set.
//
// Nothing here may call an inline function of a shared header: the linker could keep the copy that
// this instruction set compiled and hand it to a processor without it.
#include <cstdint>

#include "kernels/cpu/row_ops.h"

namespace lacuna::kernels::cpu::LACUNA_ISA {
namespace {

constexpr int kLanes = 16;

struct Bf16 final {
  uint16_t bits;
};
struct Half final {
  uint16_t bits;
};

inline float Load(const float* from) { return *from; }
inline float Load(const Bf16* from) {
  return __builtin_bit_cast(float, static_cast<uint32_t>(from->bits) << 16);
}
// The exponent is rebased by a multiplication, which also normalises subnormal numbers.
inline float Load(const Half* from) {
  const uint32_t magnitude = (from->bits & 0x7fffu) << 13;
  const uint32_t sign = (from->bits & 0x8000u) << 16;
  const uint32_t finite =
      __builtin_bit_cast(uint32_t, __builtin_bit_cast(float, magnitude) * 0x1p112f);
  const uint32_t special = magnitude | 0x7f800000u;  // infinity or NaN
  return __builtin_bit_cast(float, sign | (magnitude >= 0x0f800000u ? special : finite));
}
inline void Store(float* to, float value) { *to = value; }
inline void Store(Bf16* to, float value) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t quiet_nan = (bits >> 16) | 0x40u;
  to->bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded);
}

// e^x to 2 ulp (Cephes expf); results are clamped to the normal range, NaN stays NaN.
inline float Exp(float x) {
  constexpr float kRoundMagic = 12582912.0f;  // 1.5 * 2^23
  x = x > 88.0f ? 88.0f : x;
  x = x < -87.0f ? -87.0f : x;
  const float shifted = x * 1.44269504088896341f + kRoundMagic;
  const float n = shifted - kRoundMagic;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const float y = p * r * r + r + 1.0f;
  const uint32_t exponent = (__builtin_bit_cast(uint32_t, shifted) - 0x4b400000u) << 23;
  return __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, y) + exponent);
}

// tanh to 3 ulp (Cephes tanhf): the exponential form cancels near 0, where a polynomial serves.
inline float Tanh(float x) {
  const float z = x * x;
  float p = -5.70498872745e-3f;
  p = p * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  const float small = x + x * z * p;
  const float large = 1.0f - 2.0f / (Exp(x + x) + 1.0f);
  return z < 0.390625f ? small : large;
}

template <typename X, typename Out>
void RmsNorm(const RmsNormRow& row) {
  const X* x = static_cast<const X*>(row.x);
  Out* out = static_cast<Out*>(row.out);
  const float* weight = row.weight;
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= row.dim; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const float value = Load(x + i + lane);
      lanes[lane] += value * value;
    }
  }
  for (int lane = 0; i < row.dim; ++i, ++lane) lanes[lane] += Load(x + i) * Load(x + i);
  float sum = 0.0f;
  for (const float lane : lanes) sum += lane;
  const float inverse = 1.0f / __builtin_sqrtf(sum / static_cast<float>(row.dim) + row.eps);
  if (row.accumulate) {
#pragma GCC ivdep
    for (i = 0; i < row.dim; ++i) {
      Store(out + i, Load(out + i) + Load(x + i) * inverse * weight[i]);
    }
  } else {
#pragma GCC ivdep
    for (i = 0; i < row.dim; ++i) Store(out + i, Load(x + i) * inverse * weight[i]);
  }
}

void RmsNormDispatch(const RmsNormRow& row) {
  const bool x_f32 = row.x_dtype == DType::kF32;
  if (row.out_dtype == DType::kF32) {
    x_f32 ? RmsNorm<float, float>(row) : RmsNorm<Bf16, float>(row);
  } else {
    x_f32 ? RmsNorm<float, Bf16>(row) : RmsNorm<Bf16, Bf16>(row);
  }
}

template <typename T, int kStep>
void Rotate(T* first, T* second, const RopeRow& row) {
  const float* cosines = row.cosines;
  const float* sines = row.sines;
#pragma GCC ivdep
  for (int64_t i = 0; i < row.pairs; ++i) {
    const float a = Load(first + i * kStep);
    const float b = Load(second + i * kStep);
    Store(first + i * kStep, a * cosines[i] - b * sines[i]);
    Store(second + i * kStep, b * cosines[i] + a * sines[i]);
  }
}

template <typename T>
void Rope(const RopeRow& row) {
  T* x = static_cast<T*>(row.x);
  row.interleaved ? Rotate<T, 2>(x, x + 1, row) : Rotate<T, 1>(x, x + row.pairs, row);
}

void RopeDispatch(const RopeRow& row) {
  row.dtype == DType::kF32 ? Rope<float>(row) : Rope<Bf16>(row);
}

template <typename T>
void Gated(const GatedRow& row) {
  const T* gate = static_cast<const T*>(row.gate);
  const T* up = static_cast<const T*>(row.up);
  T* out = static_cast<T*>(row.out);
  if (row.gelu) {
#pragma GCC ivdep
    for (int64_t i = 0; i < row.dim; ++i) {
      const float g = Load(gate + i);
      // 0.5 (1 + tanh(u)) = 1 / (1 + e^(-2u)), u = sqrt(2 / pi) (g + 0.044715 g^3)
      const float u = -1.5957691216057308f * (g + 0.044715f * g * g * g);
      Store(out + i, g / (1.0f + Exp(u)) * Load(up + i));
    }
  } else {
#pragma GCC ivdep
    for (int64_t i = 0; i < row.dim; ++i) {
      const float g = Load(gate + i);
      Store(out + i, g / (1.0f + Exp(-g)) * Load(up + i));
    }
  }
}

void GatedDispatch(const GatedRow& row) {
  row.dtype == DType::kF32 ? Gated<float>(row) : Gated<Bf16>(row);
}

template <typename T>
void Embed(const EmbedRow& row) {
  const T* from = static_cast<const T*>(row.table_row);
  float* out = row.out;
  const float scale = row.scale;
#pragma GCC ivdep
  for (int64_t i = 0; i < row.dim; ++i) out[i] = scale * Load(from + i);
}

void EmbedDispatch(const EmbedRow& row) {
  if (row.dtype == DType::kF32) {
    Embed<float>(row);
  } else {
    row.dtype == DType::kBF16 ? Embed<Bf16>(row) : Embed<Half>(row);
  }
}

void Softcap(float* x, int64_t dim, float cap) {
#pragma GCC ivdep
  for (int64_t i = 0; i < dim; ++i) x[i] = cap * Tanh(x[i] / cap);
}

}  // namespace

extern const RowOps kRowOps;
const RowOps kRowOps = {RmsNormDispatch, RopeDispatch, GatedDispatch, EmbedDispatch, Softcap};

}  // namespace lacuna::kernels::cpu::LACUNA_ISA
