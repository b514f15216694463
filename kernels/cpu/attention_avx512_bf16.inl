// The bf16 element type of machines with VDPBF16PS; included after attention_kernel.inl.
// VDPBF16PS takes denormals as zeros, and so does the conversion in StoreOut: an accumulator that a
// further block of hidden keys would flush is flushed at the end anyway.

struct Bf16Dot final {
  using Kv = uint16_t;
  using A = uint16_t;
  using AVec = __m512bh;
  using KvVec = __m512bh;
  static constexpr int kPack = 2;
  static AVec LoadA(const A* a) {
    int pair;
    __builtin_memcpy(&pair, a, sizeof(pair));
    return __builtin_bit_cast(__m512bh, _mm512_set1_epi32(pair));
  }
  static KvVec LoadKv(const Kv* kv) { return __builtin_bit_cast(__m512bh, _mm512_loadu_si512(kv)); }
  static Vec Dot(Vec sum, AVec a, KvVec kv) { return _mm512_dpbf16_ps(sum, a, kv); }
  static A FromKv(Kv kv) { return kv; }
  static void StoreProbs(A* probs, const Vec* p) {
    for (int i = 0; i < kBlockKeys / kLanes; i += 2) {
      const __m512bh pair = _mm512_cvtne2ps_pbh(p[i + 1], p[i]);
      _mm512_storeu_si512(probs + i * kLanes, __builtin_bit_cast(__m512i, pair));
    }
  }
  static void StoreOut(Kv* out, Vec x) {
    const __m256bh half = _mm512_cvtneps_pbh(x);
    _mm256_storeu_si256(static_cast<__m256i*>(static_cast<void*>(out)),
                        __builtin_bit_cast(__m256i, half));
  }
};
