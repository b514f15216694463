// Attention for AVX2 with FMA.
#include <immintrin.h>

#include "kernels/cpu/attention_tile.h"

namespace lacuna::kernels::cpu {
namespace {

using Vec = __m256;
constexpr int kLanes = 8;
constexpr int kMicroRows = 4;  // 4 x 2 accumulators, up to 4 operands and 2 broadcasts
constexpr int kMicroCols = 2;

inline Vec Load(const float* p) { return _mm256_loadu_ps(p); }
inline void Store(float* p, Vec x) { _mm256_storeu_ps(p, x); }
inline Vec Set1(float x) { return _mm256_set1_ps(x); }
inline Vec Add(Vec a, Vec b) { return _mm256_add_ps(a, b); }
inline Vec Sub(Vec a, Vec b) { return _mm256_sub_ps(a, b); }
inline Vec Mul(Vec a, Vec b) { return _mm256_mul_ps(a, b); }
inline Vec Div(Vec a, Vec b) { return _mm256_div_ps(a, b); }
inline Vec Fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
inline Vec Max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
inline Vec Min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
inline Vec AddToExponent(Vec a, Vec b) {
  const __m256i shifted = _mm256_slli_epi32(_mm256_castps_si256(b), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), shifted));
}
inline Vec KeepOrNegInf(Vec x, uint32_t bits) {
  const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), lane);
  return _mm256_blendv_ps(_mm256_set1_ps(-__builtin_inff()), x,
                          _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, lane)));
}
inline float ReduceMax(Vec x) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}
inline bool AnyGreater(Vec a, Vec b) {
  return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)) != 0;
}
inline float First(Vec x) { return _mm256_cvtss_f32(x); }
inline __m256i LoadPairs(const uint16_t* p) {
  return _mm256_loadu_si256(static_cast<const __m256i*>(static_cast<const void*>(p)));
}
inline Vec WidenEven(const uint16_t* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(LoadPairs(p), 16));
}
inline Vec WidenOdd(const uint16_t* p) {
  const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  return _mm256_castsi256_ps(_mm256_and_si256(LoadPairs(p), high));
}

#include "kernels/cpu/attention_kernel.inl"

}  // namespace

const AttentionKernels kAttentionAvx2F32{nullptr,       PackRow<F32>, FoldBlock<F32>,
                                         StoreRow<F32>, nullptr,      true};
const AttentionKernels kAttentionAvx2Bf16{
    nullptr, PackRow<Bf16Widened>, FoldBlock<Bf16Widened>, StoreRow<Bf16Widened>, nullptr, true};

}  // namespace lacuna::kernels::cpu
