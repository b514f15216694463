// Attention for any x86-64: vectors of four through the compiler, no intrinsics.
#include "kernels/cpu/attention_tile.h"

namespace lacuna::kernels::cpu {
namespace {

using Vec = float __attribute__((vector_size(16)));
using IntVec = int32_t __attribute__((vector_size(16)));
constexpr int kLanes = 4;
constexpr int kMicroRows = 2;
constexpr int kMicroCols = 4;

inline Vec Load(const float* p) {
  Vec x;
  __builtin_memcpy(&x, p, sizeof(x));
  return x;
}
inline void Store(float* p, Vec x) { __builtin_memcpy(p, &x, sizeof(x)); }
inline Vec Set1(float x) { return Vec{x, x, x, x}; }
inline Vec Add(Vec a, Vec b) { return a + b; }
inline Vec Sub(Vec a, Vec b) { return a - b; }
inline Vec Mul(Vec a, Vec b) { return a * b; }
inline Vec Div(Vec a, Vec b) { return a / b; }
inline Vec Fma(Vec a, Vec b, Vec c) { return a * b + c; }
inline Vec Max(Vec a, Vec b) { return a > b ? a : b; }
inline Vec Min(Vec a, Vec b) { return a < b ? a : b; }
inline Vec AddToExponent(Vec a, Vec b) {
  using Bits = uint32_t __attribute__((vector_size(16)));
  return __builtin_bit_cast(Vec, __builtin_bit_cast(Bits, a) + (__builtin_bit_cast(Bits, b) << 23));
}
inline Vec KeepOrNegInf(Vec x, uint32_t bits) {
  const IntVec lane{1, 2, 4, 8};
  return (lane & static_cast<int32_t>(bits)) != 0 ? x : Set1(-__builtin_inff());
}
inline float ReduceMax(Vec x) {
  float max = x[0];
  for (int i = 1; i < kLanes; ++i) max = x[i] > max ? x[i] : max;
  return max;
}
inline bool AnyGreater(Vec a, Vec b) {
  for (int i = 0; i < kLanes; ++i) {
    if (a[i] > b[i]) return true;
  }
  return false;
}
inline float First(Vec x) { return x[0]; }
inline IntVec LoadPairs(const uint16_t* p) {
  IntVec x;
  __builtin_memcpy(&x, p, sizeof(x));
  return x;
}
inline Vec WidenEven(const uint16_t* p) { return __builtin_bit_cast(Vec, LoadPairs(p) << 16); }
inline Vec WidenOdd(const uint16_t* p) {
  return __builtin_bit_cast(Vec, LoadPairs(p) & static_cast<int32_t>(0xffff0000u));
}

#include "kernels/cpu/attention_kernel.inl"

}  // namespace

const AttentionKernels kAttentionScalarF32{nullptr,       PackRow<F32>, FoldBlock<F32>,
                                           StoreRow<F32>, nullptr,      true};
const AttentionKernels kAttentionScalarBf16{
    nullptr, PackRow<Bf16Widened>, FoldBlock<Bf16Widened>, StoreRow<Bf16Widened>, nullptr, true};

}  // namespace lacuna::kernels::cpu
