// The body of SelectKernels, included once by each select_score_<isa>.cc with LACUNA_ISA naming its
// namespace, LACUNA_TABLE its table and LACUNA_LANES the floats of a vector; LACUNA_BF16 where
// there is VDPBF16PS.
//
// Nothing here may call an inline function of a shared header: the linker could keep the copy that
// this instruction set compiled and hand it to a processor without it.
#include <immintrin.h>

#include <cstdint>

#include "kernels/cpu/select_score.h"

namespace lacuna::kernels::cpu::LACUNA_ISA {
namespace {

#include "kernels/cpu/select_score_vec.inl"

constexpr int kLanes = LACUNA_LANES;
constexpr int kGroup = 16;
// Heads that share a load: as many sums as there are registers for.
constexpr int kHeads = kLanes == 16 ? 4 : 2;
constexpr int kTile = 4;  // entries of score_vectors
constexpr int64_t kLine = 64;
constexpr int64_t kFetchPages = 4;            // of score_vectors, into the first-level cache
constexpr int64_t kLaneFetchBytes = 7 << 10;  // of score_lanes, into the second

template <int kValue>
struct Count final {
  static constexpr int value = kValue;
};

inline const uint8_t* BytesOf(const std::byte* from) {
  return reinterpret_cast<const uint8_t*>(from);
}
inline float LoadBf16(const uint8_t* from) {
  uint16_t bits;
  __builtin_memcpy(&bits, from, sizeof(bits));
  return __builtin_bit_cast(float, static_cast<uint32_t>(bits) << 16);
}

// All heads, kHeads at a time: fn(first head, how many, as a constant).
template <typename Fn>
inline void ForHeads(int heads, Fn&& fn) {
  int head = 0;
  for (; head + kHeads <= heads; head += kHeads) fn(head, Count<kHeads>());
  if constexpr (kHeads == 4) {
    if (heads - head >= 2) {
      fn(head, Count<2>());
      head += 2;
    }
  }
  if (head < heads) fn(head, Count<1>());
}

// kTile entries: their codes and scales.
struct VectorEntries final {
  const uint8_t* codes[kTile];
  const uint8_t* scales[kTile];
};

template <int kBits, int kCount>
void VectorTile(const ScoreJob& job, const VectorEntries& entries, int head, float* to) {
  __m128 total[kCount];
  for (int h = 0; h < kCount; ++h) total[h] = _mm_setzero_ps();
  const int64_t width = job.width;
  const float* q = job.q + head * width;
  const float* q_sums = job.q_sums + head;
  int64_t codes_at = 0, scales_at = 0;
  for (int v = 0; v < job.vectors; ++v) {
    V sums[kTile][kCount] = {};
    for (int64_t c = 0; c < width; c += kGroup) {
      for (int lane = 0; lane < kGroup; lane += kLanes) {
        V heads[kCount];
        for (int h = 0; h < kCount; ++h) heads[h] = LoadFloats(q + h * width + c + lane);
        for (int i = 0; i < kTile; ++i) {
          const V x = LoadCodes<kBits>(entries.codes[i] + codes_at + c * kBits / 8, lane);
          for (int h = 0; h < kCount; ++h) sums[i][h] += x * heads[h];
        }
      }
    }
    float scales[kTile], zeros[kTile];
    for (int i = 0; kBits < 16 && i < kTile; ++i) {
      scales[i] = LoadBf16(entries.scales[i] + scales_at);
      zeros[i] = LoadBf16(entries.scales[i] + scales_at + 2 * job.entries * job.vectors);
    }
    for (int h = 0; h < kCount; ++h) {
      __m128 each = SumEach(sums[0][h], sums[1][h], sums[2][h], sums[3][h]);
      if constexpr (kBits < 16) {
        each = each * _mm_loadu_ps(scales) + _mm_loadu_ps(zeros) * _mm_set1_ps(q_sums[h]);
      }
      total[h] += each;
    }
    codes_at += job.row_bytes;
    scales_at += 2 * job.entries;
    q += job.heads * width;
    q_sums += job.heads;
  }
  for (int h = 0; h < kCount; ++h) {
    _mm_storeu_ps(to + (head + h) * job.stride, total[h] * _mm_set1_ps(job.scale));
  }
}

// Pages lie anywhere, so what the processor would not guess is fetched ahead. g++ drops calls of a
// function that only prefetches, unless it inlines them first.
template <int kLocality>
__attribute__((always_inline)) inline void FetchPage(const ScoreJob& job, int64_t page) {
  if (page >= job.pages) return;
  const uint8_t* slab = BytesOf(job.slabs[page]);
  for (int64_t at = 0; at < job.read_bytes; at += kLine) {
    __builtin_prefetch(slab + at, 0, kLocality);
  }
}

template <int kBits>
void ScoreVectorsOf(const ScoreJob& job) {
  const int64_t count = job.pages * job.entries;
  const int64_t entry_bytes = job.vectors * job.row_bytes;
  int64_t page = 0, entry = 0;
  for (int64_t first = 0; first < count; first += kTile) {
    VectorEntries entries;
    for (int i = 0; i < kTile; ++i) {  // past the end: the last one again
      const uint8_t* slab = BytesOf(job.slabs[page]);
      entries.codes[i] = slab + entry * entry_bytes;
      entries.scales[i] = slab + job.scales_at + 2 * entry;
      if (entry == 0) FetchPage<3>(job, page + kFetchPages);
      if (first + i + 1 >= count) continue;
      entry = entry + 1 == job.entries ? 0 : entry + 1;
      page += entry == 0 ? 1 : 0;
    }
    ForHeads(job.heads, [&](int head, auto some) {
      VectorTile<kBits, some.value>(job, entries, head, job.scores + first);
    });
  }
}

#ifdef LACUNA_BF16
// As SumLanes<4, false, kCount, 4> over a page of 64 entries, two channels at a time. Of the bytes
// of both, side by side, a low half is an entry of the group's first eight, a high half one of its
// last eight.
template <int kCount>
inline void SumFours(const ScoreJob& job, const uint8_t* codes, const uint32_t* q,
                     V (&sums)[4][kCount]) {
  alignas(64) static constexpr uint16_t kIntegers[32] = {
      0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0,   // 0 to 7 in bf16
      0x4100, 0x4110, 0x4120, 0x4130, 0x4140, 0x4150, 0x4160, 0x4170,   // 8 to 15
      0x0000, 0x3f80, 0x4000, 0x4040, 0x4080, 0x40a0, 0x40c0, 0x40e0,   // VPERMW looks at 5 bits
      0x4100, 0x4110, 0x4120, 0x4130, 0x4140, 0x4150, 0x4160, 0x4170};  // of an index
  const __m512i integers = _mm512_load_si512(kIntegers);
  const int64_t pairs = job.width / 2;
  V halves[4][kCount];  // of groups 0 and 2: first eight, last eight; of groups 1 and 3 the same
  for (int i = 0; i < 4 * kCount; ++i) halves[i / kCount][i % kCount] = Splat(0.0f);
  for (int64_t c = 0; c < pairs; ++c, codes += 2 * job.row_bytes) {
    const __m256i even = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
    const __m256i odd = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes + job.row_bytes));
    const __m512i low = _mm512_cvtepu8_epi16(_mm256_unpacklo_epi8(even, odd));
    const __m512i high = _mm512_cvtepu8_epi16(_mm256_unpackhi_epi8(even, odd));
    const __m512i index[4] = {low, _mm512_srli_epi16(low, 4), high, _mm512_srli_epi16(high, 4)};
    __m512bh x[4];
    for (int i = 0; i < 4; ++i) {
      x[i] = __builtin_bit_cast(__m512bh, _mm512_permutexvar_epi16(index[i], integers));
    }
    for (int h = 0; h < kCount; ++h) {
      const auto pair =
          __builtin_bit_cast(__m512bh, _mm512_set1_epi32(static_cast<int32_t>(q[h * pairs + c])));
      for (int i = 0; i < 4; ++i) halves[i][h] = _mm512_dpbf16_ps(halves[i][h], x[i], pair);
    }
  }
#pragma GCC unroll 8
  for (int h = 0; h < kCount; ++h) {
    for (int i = 0; i < 2; ++i) {
      const V first = halves[2 * i][h], last = halves[2 * i + 1][h];
      sums[i][h] = _mm512_shuffle_f32x4(first, last, 0x44);
      sums[i + 2][h] = _mm512_shuffle_f32x4(first, last, 0xee);
    }
  }
}
#endif

// Sums of code times query over the channels of kRun vectors of entries, from `lane` on, for kCount
// heads; queries begin at q_at. A pair source yields two channels per load.
template <int kBits, bool kPairs, int kCount, int kRun>
inline void SumLanes(const ScoreJob& job, const uint8_t* codes, int64_t q_at, int lane,
                     V (&sums)[kRun][kCount]) {
#ifdef LACUNA_BF16
  if constexpr (kBits == 4 && kRun == 4) {
    if (job.q_pairs != nullptr) return SumFours(job, codes, job.q_pairs + q_at / 2, sums);
  }
#endif
  const float* q = job.q + q_at;
  for (int i = 0; i < kRun * kCount; ++i) sums[i / kCount][i % kCount] = Splat(0.0f);
  for (int c = 0; c < job.width; c += kPairs ? 2 : 1) {
    const uint8_t* row = codes + (kPairs ? c / 2 : c) * job.row_bytes;
    V even[kRun], odd[kRun];
    for (int r = 0; r < kRun; ++r) {
      const int at = lane + r * kLanes;
      if constexpr (kPairs) {
        LoadPairs(row + 4 * at, &even[r], &odd[r]);
      } else {
        even[r] = LoadCodes<kBits>(row + at / kGroup * (kGroup * kBits / 8), at % kGroup);
      }
    }
    for (int h = 0; h < kCount; ++h) {
      const V first = Splat(q[h * job.width + c]);
      for (int r = 0; r < kRun; ++r) sums[r][h] += even[r] * first;
      if constexpr (kPairs) {
        const V second = Splat(q[h * job.width + c + 1]);
        for (int r = 0; r < kRun; ++r) sums[r][h] += odd[r] * second;
      }
    }
  }
}

template <int kBits, bool kPairs, int kCount, int kRun>
void LaneTile(const ScoreJob& job, const uint8_t* slab, int lane, int head, float* to,
              int64_t stride) {
  for (int v = 0; v < job.vectors; ++v) {
    const int64_t q_at = (int64_t{v} * job.heads + head) * job.width;
    const uint8_t* codes = slab + v * job.vector_bytes;
    V sums[kRun][kCount];
    SumLanes<kBits, kPairs>(job, codes, q_at, lane, sums);
#pragma GCC unroll 8
    for (int r = 0; r < kRun; ++r) {
      const int at = lane + r * kLanes;
      V scales = Splat(job.scale), zeros = scales;
      if constexpr (kBits < 16) {
        const int64_t scale_at = 2 * (static_cast<int64_t>(v) * job.entries + at / kGroup * kGroup);
        scales *= LoadCodes<16>(slab + job.scales_at + scale_at, at % kGroup);
        zeros *= LoadCodes<16>(slab + job.zeros_at + scale_at, at % kGroup);
      }
#pragma GCC unroll 8
      for (int h = 0; h < kCount; ++h) {
        V x = sums[r][h] * scales;
        if constexpr (kBits < 16) x += zeros * Splat(job.q_sums[v * job.heads + head + h]);
        float* out = to + h * stride + r * kLanes;
        StoreFloats(out, v == 0 ? x : x + LoadFloats(out));
      }
    }
  }
}

// The best score of a page's first `entries`, by tiles whose scores stay in the first-level cache.
template <int kBits, bool kPairs, int kRun>
float BestOfPage(const ScoreJob& job, const uint8_t* slab, int entries) {
  constexpr int kWidth = kRun * kLanes;
  constexpr float kNone = -__builtin_inff();
  alignas(64) float scores[kHeads * kWidth];
  V best = Splat(kNone);
  for (int lane = 0; lane < entries; lane += kWidth) {
    ForHeads(job.heads, [&](int head, auto some) {
      LaneTile<kBits, kPairs, some.value, kRun>(job, slab, lane, head, scores, kWidth);
      for (int h = 0; h < some.value; ++h) {
        float* row = scores + h * kWidth;
        for (int e = entries - lane; e < kWidth; ++e) row[e] = kNone;
        for (int r = 0; r < kRun; ++r) best = Larger(best, LoadFloats(row + r * kLanes));
      }
    });
  }
  return LargestLane(best);
}

inline int64_t PagesAhead(const ScoreJob& job) {
  const int64_t pages = job.read_bytes > 0 ? kLaneFetchBytes / job.read_bytes : 0;
  return pages < 2 ? 2 : pages > 8 ? 8 : pages;
}

template <int kBits, bool kPairs, int kRun>
void ScoreLanesOf(const ScoreJob& job) {
  const int64_t ahead = PagesAhead(job);
  for (int64_t page = 0; page < ahead; ++page) FetchPage<2>(job, page);
  for (int64_t page = 0; page < job.pages; ++page) {
    FetchPage<2>(job, page + ahead);
    const uint8_t* slab = BytesOf(job.slabs[page]);
    if (job.best != nullptr) {
      const int64_t left = job.count - page * job.entries;
      const int entries = left < job.entries ? static_cast<int>(left) : job.entries;
      job.best[page] = BestOfPage<kBits, kPairs, kRun>(job, slab, entries);
      continue;
    }
    for (int lane = 0; lane < job.entries; lane += kRun * kLanes) {
      ForHeads(job.heads, [&](int head, auto some) {
        float* to = job.scores + page * job.entries + head * job.stride + lane;
        LaneTile<kBits, kPairs, some.value, kRun>(job, slab, lane, head, to, job.stride);
      });
    }
  }
}

// Pages hold 16 entries or 64.
template <int kBits, bool kPairs>
void ScoreRuns(const ScoreJob& job) {
  if constexpr (kLanes == 16) {
    job.entries == 64 ? ScoreLanesOf<kBits, kPairs, 4>(job) : ScoreLanesOf<kBits, kPairs, 1>(job);
  } else {
    ScoreLanesOf<kBits, kPairs, 2>(job);
  }
}

void ScoreVectors(const ScoreJob& job) {
  switch (job.bits) {
    case 16:
      return ScoreVectorsOf<16>(job);
    case 8:
      return ScoreVectorsOf<8>(job);
    case 4:
      return ScoreVectorsOf<4>(job);
    default:
      return ScoreVectorsOf<2>(job);
  }
}

void ScoreLanes(const ScoreJob& job) {
  switch (job.bits) {
    case 32:
      return ScoreRuns<32, false>(job);
    case 16:
      return ScoreRuns<16, false>(job);
    case 8:
      return ScoreRuns<8, false>(job);
    case 4:
      return ScoreRuns<4, false>(job);
    default:
      return ScoreRuns<2, false>(job);
  }
}

void ScorePairs(const ScoreJob& job) { ScoreRuns<16, true>(job); }

// e^x to 2 ulp (Cephes expf); 0 below the normal range, NaN stays NaN. As in row_ops_impl.inl.
inline float Exp(float x) {
  constexpr float kRoundMagic = 12582912.0f;  // 1.5 * 2^23
  const float zero = x < -87.0f ? 0.0f : 1.0f;
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
  return zero * __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, y) + exponent);
}

void MaxSum(const float* values, int64_t count, float* max, float* sum) {
  float highest[kGroup], sums[kGroup] = {};
  for (float& lane : highest) lane = values[0];
  int64_t i = 0;
  for (; i + kGroup <= count; i += kGroup) {
    for (int lane = 0; lane < kGroup; ++lane) {
      highest[lane] = highest[lane] > values[i + lane] ? highest[lane] : values[i + lane];
    }
  }
  for (; i < count; ++i) highest[0] = highest[0] > values[i] ? highest[0] : values[i];
  float top = highest[0];
  for (const float lane : highest) top = top > lane ? top : lane;
  for (i = 0; i + kGroup <= count; i += kGroup) {
    for (int lane = 0; lane < kGroup; ++lane) sums[lane] += Exp(values[i + lane] - top);
  }
  for (int lane = 0; i < count; ++i, ++lane) sums[lane] += Exp(values[i] - top);
  float total = 0.0f;
  for (const float lane : sums) total += lane;
  *max = top;
  *sum = total;
}

template <bool kExponential, typename Fold>
void ReduceBy(const ReduceJob& job, Fold fold) {
  float* out = job.out;
  for (int32_t r = 0; r < job.count; ++r) {
    const float* row = job.rows[r];
    const float shift = job.shifts[r], offset = job.offsets[r];
    const auto value = [&](int64_t e) {
      return (kExponential ? Exp(row[e] - shift) : row[e] - shift) - offset;
    };
    if (r == 0) {
#pragma GCC ivdep
      for (int64_t e = 0; e < job.entries; ++e) out[e] = value(e);
    } else {
#pragma GCC ivdep
      for (int64_t e = 0; e < job.entries; ++e) out[e] = fold(out[e], value(e));
    }
  }
  if (job.kind != ReduceJob::kMean) return;
  const float share = 1.0f / static_cast<float>(job.count);
  for (int64_t e = 0; e < job.entries; ++e) out[e] *= share;
}

void Reduce(const ReduceJob& job) {
  const auto max = [](float a, float b) { return a > b ? a : b; };
  const auto sum = [](float a, float b) { return a + b; };
  if (job.exponential) {
    job.kind == ReduceJob::kMax ? ReduceBy<true>(job, max) : ReduceBy<true>(job, sum);
  } else {
    job.kind == ReduceJob::kMax ? ReduceBy<false>(job, max) : ReduceBy<false>(job, sum);
  }
}

}  // namespace
}  // namespace lacuna::kernels::cpu::LACUNA_ISA

namespace lacuna::kernels::cpu {

const SelectKernels LACUNA_TABLE = {LACUNA_ISA::ScoreVectors, LACUNA_ISA::ScoreLanes,
                                    LACUNA_ISA::ScorePairs, LACUNA_ISA::MaxSum, LACUNA_ISA::Reduce};

}  // namespace lacuna::kernels::cpu
