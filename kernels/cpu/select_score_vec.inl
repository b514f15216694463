// Vectors of one instruction set for select_score_impl.inl: V of kLanes floats, loads of codes in
// groups of 16 (metadata_layout.h), four horizontal sums at once, and maxima. LACUNA_LANES: 4, 8 or
// 16.
#if LACUNA_LANES == 16
using V = __m512;
inline V Splat(float x) { return _mm512_set1_ps(x); }
inline V LoadFloats(const float* from) { return _mm512_loadu_ps(from); }
inline void StoreFloats(float* to, V x) { _mm512_storeu_ps(to, x); }
inline V LowHalves(__m512i pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
inline V OfBytes(__m128i codes) { return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(codes)); }
inline __m128i Bytes128(const uint8_t* from) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
}

// VPERMPS looks at the low 4 bits of an index: a table makes floats of codes without a mask and a
// conversion.
template <int kBits>
inline V OfLowBits(__m512i x) {
  constexpr int kMask = (1 << kBits) - 1;
  const V table =
      _mm512_setr_ps(0, 1, 2, 3, 4 & kMask, 5 & kMask, 6 & kMask, 7 & kMask, 8 & kMask, 9 & kMask,
                     10 & kMask, 11 & kMask, 12 & kMask, 13 & kMask, 14 & kMask, 15 & kMask);
  return _mm512_permutexvar_ps(x, table);
}

// Codes `lane` to `lane` + kLanes of a group.
template <int kBits>
inline V LoadCodes(const uint8_t* group, int /*lane*/) {
  if constexpr (kBits == 32) {
    return _mm512_loadu_ps(group);
  } else if constexpr (kBits == 16) {
    return LowHalves(
        _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(group))));
  } else if constexpr (kBits == 8) {
    return OfBytes(Bytes128(group));
  } else if constexpr (kBits == 4) {
    int64_t bytes;
    __builtin_memcpy(&bytes, group, sizeof(bytes));
    const __m512i each = _mm512_cvtepu8_epi32(_mm_set1_epi64x(bytes));
    return OfLowBits<4>(
        _mm512_srlv_epi32(each, _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 4, 4, 4, 4, 4, 4, 4, 4)));
  } else {
    const __m512i each = _mm512_cvtepu8_epi32(_mm_broadcastd_epi32(_mm_loadu_si32(group)));
    return OfLowBits<2>(
        _mm512_srlv_epi32(each, _mm512_setr_epi32(0, 0, 0, 0, 2, 2, 2, 2, 4, 4, 4, 4, 6, 6, 6, 6)));
  }
}
inline V Larger(V a, V b) { return _mm512_max_ps(a, b); }  // b when one is NaN
inline float LargestLane(V x) { return _mm512_reduce_max_ps(x); }
// Both channels of 16 keys of a bf16 pool.
inline void LoadPairs(const uint8_t* from, V* even, V* odd) {
  const __m512i pairs = _mm512_loadu_si512(from);
  *even = LowHalves(pairs);
  *odd = _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(-65536)));
}
inline __m128 SumEach(V a, V b, V c, V d) {
  const V ab = _mm512_unpacklo_ps(a, b) + _mm512_unpackhi_ps(a, b);
  const V cd = _mm512_unpacklo_ps(c, d) + _mm512_unpackhi_ps(c, d);
  const V all = _mm512_shuffle_ps(ab, cd, 0x44) + _mm512_shuffle_ps(ab, cd, 0xee);
  const __m256 half = _mm512_castps512_ps256(all) + _mm512_extractf32x8_ps(all, 1);
  return _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1);
}
#elif LACUNA_LANES == 8
using V = __m256;
inline V Splat(float x) { return _mm256_set1_ps(x); }
inline V LoadFloats(const float* from) { return _mm256_loadu_ps(from); }
inline void StoreFloats(float* to, V x) { _mm256_storeu_ps(to, x); }
inline V LowHalves(__m256i pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
inline V OfBytes(__m128i codes) { return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(codes)); }

template <int kBits>
inline V LoadCodes(const uint8_t* group, int lane) {
  if constexpr (kBits == 32) {
    return _mm256_loadu_ps(reinterpret_cast<const float*>(group) + lane);
  } else if constexpr (kBits == 16) {
    return LowHalves(
        _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(group + 2 * lane))));
  } else if constexpr (kBits == 8) {
    return OfBytes(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(group + lane)));
  } else if constexpr (kBits == 4) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(group));
    return OfBytes(_mm_and_si128(lane == 0 ? bytes : _mm_srli_epi16(bytes, 4), _mm_set1_epi8(15)));
  } else {
    const __m128i bytes = _mm_broadcastd_epi32(_mm_loadu_si32(group));
    const __m128i codes =
        _mm_and_si128(_mm_srlv_epi32(bytes, _mm_setr_epi32(0, 2, 4, 6)), _mm_set1_epi8(3));
    return OfBytes(lane == 0 ? codes : _mm_srli_si128(codes, 8));
  }
}
inline V Larger(V a, V b) { return _mm256_max_ps(a, b); }
inline float LargestLane(V x) {
  __m128 half = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  half = _mm_max_ps(half, _mm_movehl_ps(half, half));
  return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
}
inline void LoadPairs(const uint8_t* from, V* even, V* odd) {
  const __m256i pairs = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  *even = LowHalves(pairs);
  *odd = _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(-65536)));
}
inline __m128 SumEach(V a, V b, V c, V d) {
  const V all = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
  return _mm256_castps256_ps128(all) + _mm256_extractf128_ps(all, 1);
}
#else
using V = __m128;
inline V Splat(float x) { return _mm_set1_ps(x); }
inline V LoadFloats(const float* from) { return _mm_loadu_ps(from); }
inline void StoreFloats(float* to, V x) { _mm_storeu_ps(to, x); }

template <int kBits>
inline V LoadCodes(const uint8_t* group, int lane) {
  constexpr int kBytes = 16 * kBits / 8;
  if constexpr (kBits == 32) {
    return _mm_loadu_ps(reinterpret_cast<const float*>(group) + lane);
  } else if constexpr (kBits == 16) {
    const __m128i halves = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(group + 2 * lane));
    return _mm_castsi128_ps(_mm_unpacklo_epi16(_mm_setzero_si128(), halves));
  } else {
    float codes[4];
    for (int i = 0; i < 4; ++i) {
      const int code = group[(lane + i) % kBytes] >> ((lane + i) / kBytes * kBits);
      codes[i] = static_cast<float>(code & ((1 << kBits) - 1));
    }
    return _mm_loadu_ps(codes);
  }
}
inline V Larger(V a, V b) { return _mm_max_ps(a, b); }
inline float LargestLane(V x) {
  const V half = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(half, _mm_shuffle_ps(half, half, 1)));
}
inline void LoadPairs(const uint8_t* from, V* even, V* odd) {
  const __m128i pairs = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  *even = _mm_castsi128_ps(_mm_slli_epi32(pairs, 16));
  *odd = _mm_castsi128_ps(_mm_and_si128(pairs, _mm_set1_epi32(-65536)));
}
inline __m128 SumEach(V a, V b, V c, V d) {
  const V ab = _mm_unpacklo_ps(a, b) + _mm_unpackhi_ps(a, b);
  const V cd = _mm_unpacklo_ps(c, d) + _mm_unpackhi_ps(c, d);
  return _mm_movelh_ps(ab, cd) + _mm_movehl_ps(cd, ab);
}
#endif
