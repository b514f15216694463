// AVX-512 vector operations for attention_kernel.inl; included inside an anonymous namespace.

using Vec = __m512;
constexpr int kLanes = 16;
constexpr int kMicroRows = 6;  // 6 x 4 accumulators, 4 operands and 1 broadcast of 32 registers
constexpr int kMicroCols = 4;

inline Vec Load(const float* p) { return _mm512_loadu_ps(p); }
inline void Store(float* p, Vec x) { _mm512_storeu_ps(p, x); }
inline Vec Set1(float x) { return _mm512_set1_ps(x); }
inline Vec Add(Vec a, Vec b) { return _mm512_add_ps(a, b); }
inline Vec Sub(Vec a, Vec b) { return _mm512_sub_ps(a, b); }
inline Vec Mul(Vec a, Vec b) { return _mm512_mul_ps(a, b); }
inline Vec Div(Vec a, Vec b) { return _mm512_div_ps(a, b); }
inline Vec Fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
inline Vec Max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
inline Vec Min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
inline Vec AddToExponent(Vec a, Vec b) {
  const __m512i shifted = _mm512_slli_epi32(_mm512_castps_si512(b), 23);
  return _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), shifted));
}
inline Vec KeepOrNegInf(Vec x, uint32_t bits) {
  return _mm512_mask_blend_ps(static_cast<__mmask16>(bits), _mm512_set1_ps(-__builtin_inff()), x);
}
inline float ReduceMax(Vec x) { return _mm512_reduce_max_ps(x); }
inline bool AnyGreater(Vec a, Vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0; }
inline float First(Vec x) { return _mm512_cvtss_f32(x); }
inline Vec WidenEven(const uint16_t* p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16));
}
inline Vec WidenOdd(const uint16_t* p) {
  return _mm512_castsi512_ps(
      _mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi32(static_cast<int>(0xffff0000u))));
}
