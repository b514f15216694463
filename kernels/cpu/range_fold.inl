// The loops of range_fold.h, included once by each range_fold_<isa>.cc with LACUNA_ISA naming its
// namespace; the compiler's flags choose the width of the vectors.
#include <cstdint>

#include "kernels/cpu/range_fold.h"

namespace lacuna::kernels::cpu::LACUNA_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
constexpr int kVecs = kFoldColumns / kLanes;

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t IntVec __attribute__((vector_size(4 * kLanes)));

inline Vec Load(const float* from) {
  Vec x;
  __builtin_memcpy(&x, from, sizeof(x));
  return x;
}
inline void Store(float* to, Vec x) { __builtin_memcpy(to, &x, sizeof(x)); }
inline Vec Set1(float x) { return Vec{} + x; }

// 2^x for x <= 0, relative error under 2e-7; exactly 0 below -127. As Exp2 of attention_kernel.inl.
inline Vec Exp2(Vec x) {
  x = x > Set1(-127.0f) ? x : Set1(-127.0f);
  const Vec magic = Set1(12582912.0f);
  const Vec biased = x + magic;
  const Vec f = x - (biased - magic);
  Vec p = f * Set1(0.00132647286f) + Set1(0.0096715156f);
  p = p * f + Set1(0.0555073377f);
  p = p * f + Set1(0.24022242f);
  p = p * f + Set1(0.693146978f);
  p = p * f + Set1(1.0f);
  return __builtin_bit_cast(
      Vec, __builtin_bit_cast(IntVec, p) + (__builtin_bit_cast(IntVec, biased) << 23));
}

// The logits of row r, with kNoLogit where query v * kLanes + lane does not see it.
template <bool kMasked>
inline Vec RowOf(const FoldTile& tile, int r, int v, IntVec lane) {
  const Vec x = Load(tile.logits + r * kFoldColumns + v * kLanes);
  if constexpr (!kMasked) return x;
  const IntVec first = IntVec{} + (r - tile.visible - v * kLanes);
  return lane >= first ? x : Set1(kNoLogit);
}

inline IntVec LaneIds() {
  IntVec lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  return lane;
}

template <bool kMasked>
void SumTile(const FoldTile& tile, int32_t sum_rows, float* max, float* sums) {
  const IntVec lane = LaneIds();
  Vec top[kVecs];
  for (Vec& x : top) x = Set1(kNoLogit);
  for (int r = 0; r < tile.rows; ++r) {
    for (int v = 0; v < kVecs; ++v) {
      const Vec x = RowOf<kMasked>(tile, r, v, lane);
      top[v] = x > top[v] ? x : top[v];
    }
  }
  for (int v = 0; v < kVecs; ++v) Store(max + v * kLanes, top[v]);
  // Hidden rows must give 0 also to a query that sees none.
  if (kMasked) {
    for (Vec& x : top) x = x > Set1(kNoLogit) ? x : Set1(0.0f);
  }
  for (int first = 0; first < tile.rows; first += sum_rows, sums += kFoldColumns) {
    const int end = first + sum_rows < tile.rows ? first + sum_rows : tile.rows;
    Vec sum[kVecs] = {};
    for (int r = first; r < end; ++r) {
      for (int v = 0; v < kVecs; ++v) {
        sum[v] = sum[v] + Exp2(RowOf<kMasked>(tile, r, v, lane) - top[v]);
      }
    }
    for (int v = 0; v < kVecs; ++v) Store(sums + v * kLanes, sum[v]);
  }
}

inline float SumOf(Vec x) {
  float sum = 0.0f;
  for (int i = 0; i < kLanes; ++i) sum += x[i];
  return sum;
}

template <bool kMasked>
void SpreadTile(const FoldTile& tile, const float* lse, float* rows, float* diagonals) {
  const IntVec lane = LaneIds();
  Vec shift[kVecs];
  for (int v = 0; v < kVecs; ++v) shift[v] = Load(lse + v * kLanes);
  for (int r = 0; r < tile.rows; ++r) {
    float* diagonal = diagonals - r;
    Vec sum = {};
    for (int v = 0; v < kVecs; ++v) {
      const Vec p = Exp2(RowOf<kMasked>(tile, r, v, lane) - shift[v]);
      Store(diagonal + v * kLanes, Load(diagonal + v * kLanes) + p);
      sum = sum + p;
    }
    rows[r] += SumOf(sum);
  }
}

void Sum(const FoldTile& tile, int32_t sum_rows, float* max, float* sums) {
  if (tile.visible >= tile.rows - 1) return SumTile<false>(tile, sum_rows, max, sums);
  SumTile<true>(tile, sum_rows, max, sums);
}

void Spread(const FoldTile& tile, const float* lse, float* rows, float* diagonals) {
  if (tile.visible >= tile.rows - 1) return SpreadTile<false>(tile, lse, rows, diagonals);
  SpreadTile<true>(tile, lse, rows, diagonals);
}

}  // namespace

extern const RangeFolds kRangeFolds;
const RangeFolds kRangeFolds = {Sum, Spread};

}  // namespace lacuna::kernels::cpu::LACUNA_ISA
