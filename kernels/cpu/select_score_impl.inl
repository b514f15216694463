// The body of SelectKernels, included once by each select_score_<isa>.cc with LACUNA_ISA naming its
// namespace, LACUNA_TABLE its table and LACUNA_LANES the floats of a vector.
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
constexpr int64_t kFetchPages = 4;

inline const uint8_t* BytesOf(const std::byte* from) {
  return reinterpret_cast<const uint8_t*>(from);
}
inline float LoadBf16(const uint8_t* from) {
  uint16_t bits;
  __builtin_memcpy(&bits, from, sizeof(bits));
  return __builtin_bit_cast(float, static_cast<uint32_t>(bits) << 16);
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

template <int kBits>
void VectorHeads(const ScoreJob& job, const VectorEntries& entries, float* to) {
  int head = 0;
  for (; head + kHeads <= job.heads; head += kHeads) {
    VectorTile<kBits, kHeads>(job, entries, head, to);
  }
  if constexpr (kHeads == 4) {
    if (job.heads - head >= 2) {
      VectorTile<kBits, 2>(job, entries, head, to);
      head += 2;
    }
  }
  if (head < job.heads) VectorTile<kBits, 1>(job, entries, head, to);
}

// Pages lie anywhere, so what the processor would not guess is fetched ahead. g++ drops calls of a
// function that only prefetches, unless it inlines them first.
__attribute__((always_inline)) inline void FetchPage(const ScoreJob& job, int64_t page) {
  if (page >= job.pages) return;
  const uint8_t* slab = BytesOf(job.slabs[page]);
  const int64_t bytes = job.scales_at + 4 * job.entries * job.vectors;
  for (int64_t at = 0; at < bytes; at += kLine) __builtin_prefetch(slab + at);
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
      if (entry == 0) FetchPage(job, page + kFetchPages);
      if (first + i + 1 >= count) continue;
      entry = entry + 1 == job.entries ? 0 : entry + 1;
      page += entry == 0 ? 1 : 0;
    }
    VectorHeads<kBits>(job, entries, job.scores + first);
  }
}

// kRun vectors of entries side by side. A pair source yields two channels per load.
template <int kBits, bool kPairs, int kCount, int kRun>
void LaneTile(const ScoreJob& job, const uint8_t* slab, int lane, int head, float* to) {
  for (int v = 0; v < job.vectors; ++v) {
    const float* q = job.q + (v * job.heads + head) * job.width;
    V sums[kRun][kCount] = {};
    for (int c = 0; c < job.width; c += kPairs ? 2 : 1) {
      const uint8_t* row = slab + v * job.vector_bytes + (kPairs ? c / 2 : c) * job.row_bytes;
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
    for (int r = 0; r < kRun; ++r) {
      const int at = lane + r * kLanes;
      const int64_t scale_at = 2 * (static_cast<int64_t>(v) * job.entries + at / kGroup * kGroup);
      for (int h = 0; h < kCount; ++h) {
        V x = sums[r][h];
        if constexpr (kBits < 16) {
          const V scales = LoadCodes<16>(slab + job.scales_at + scale_at, at % kGroup);
          const V zeros = LoadCodes<16>(slab + job.zeros_at + scale_at, at % kGroup);
          x = x * scales + zeros * Splat(job.q_sums[v * job.heads + head + h]);
        }
        float* out = to + (head + h) * job.stride + at;
        x *= Splat(job.scale);
        StoreFloats(out, v == 0 ? x : x + LoadFloats(out));
      }
    }
  }
}

template <int kBits, bool kPairs, int kRun>
void ScoreLanesOf(const ScoreJob& job) {
  for (int64_t page = 0; page < job.pages; ++page) {
    const uint8_t* slab = BytesOf(job.slabs[page]);
    float* to = job.scores + page * job.entries;
    for (int lane = 0; lane < job.entries; lane += kRun * kLanes) {
      int head = 0;
      for (; head + kHeads <= job.heads; head += kHeads) {
        LaneTile<kBits, kPairs, kHeads, kRun>(job, slab, lane, head, to);
      }
      for (; head < job.heads; ++head) {
        LaneTile<kBits, kPairs, 1, kRun>(job, slab, lane, head, to);
      }
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
