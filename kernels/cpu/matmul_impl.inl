// The vector kernel of Matmul, included once by each matmul_<isa>.cc with LACUNA_ISA naming its
// namespace and the compiler's flags choosing the width.
//
// A strip of rows x a group of columns is held in registers while k runs: B is loaded as vectors
// and shared by the rows, an element of x is broadcast and shared by the columns.
#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <utility>

#include "kernels/cpu/matmul_epilogue.inl"

namespace lacuna::kernels::cpu::LACUNA_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kVecBytes = 64;
constexpr int kStripRows = 12;
#elif defined(__AVX2__)
constexpr int kVecBytes = 32;
constexpr int kStripRows = 6;
#else
constexpr int kVecBytes = 16;
constexpr int kStripRows = 6;
#endif
constexpr int kLanes = kVecBytes / 4;
constexpr int kGroupVecs = 2;  // accumulators per row
constexpr int kGroupColumns = kGroupVecs * kLanes;
constexpr int64_t kPrefetchBytes = 2048;

typedef float Vec __attribute__((vector_size(kVecBytes)));
typedef uint32_t UVec __attribute__((vector_size(kVecBytes)));

inline Vec MultiplyAdd(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

inline UVec Broadcast(const void* from) {
  uint32_t bits;
  std::memcpy(&bits, from, sizeof(bits));
  return UVec{} + bits;
}
inline UVec LoadVec(const void* from) {
  UVec bits;
  std::memcpy(&bits, from, sizeof(bits));
  return bits;
}
inline void StoreVec(float* to, Vec value) { std::memcpy(to, &value, sizeof(value)); }

struct F32 final {
  static constexpr int kPerStep = 1;  // elements of k
  static constexpr int kElementBytes = 4;
  static constexpr int kPhases = 1;
  static Vec Operand(UVec bits, int) { return __builtin_bit_cast(Vec, bits); }
  static Vec Add(Vec sum, Vec a, Vec b) { return MultiplyAdd(a, b, sum); }
};

struct Bf16 final {
  static constexpr int kPerStep = 2;
  static constexpr int kElementBytes = 2;
#if defined(__AVX512BF16__)
  static constexpr int kPhases = 1;
  static Vec Operand(UVec bits, int) { return __builtin_bit_cast(Vec, bits); }
  static Vec Add(Vec sum, Vec a, Vec b) {
    return _mm512_dpbf16_ps(sum, __builtin_bit_cast(__m512bh, a), __builtin_bit_cast(__m512bh, b));
  }
#else
  // The two halves of a pair in turn, each widened: one vector of B more than registers allow
  // would be spilled otherwise.
  static constexpr int kPhases = 2;
  static Vec Operand(UVec bits, int phase) {
    return __builtin_bit_cast(Vec, phase == 0 ? bits << 16 : bits & 0xffff0000u);
  }
  static Vec Add(Vec sum, Vec a, Vec b) { return MultiplyAdd(a, b, sum); }
#endif
};

// One step of k for kRows x kGroupColumns. x_bits(r) is the broadcast pair or element of row r.
template <typename P, int kRows, typename XBits>
inline __attribute__((always_inline)) void Step(Vec (&sum)[kRows][kGroupVecs], const char* b,
                                                XBits x_bits) {
#pragma GCC unroll 2
  for (int phase = 0; phase < P::kPhases; ++phase) {
    Vec columns[kGroupVecs];
#pragma GCC unroll 2
    for (int v = 0; v < kGroupVecs; ++v) {
      columns[v] = P::Operand(LoadVec(b + v * kVecBytes), phase);
    }
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      const Vec x = P::Operand(x_bits(r), phase);
#pragma GCC unroll 2
      for (int v = 0; v < kGroupVecs; ++v) sum[r][v] = P::Add(sum[r][v], x, columns[v]);
    }
  }
}

// c[kRows][kPanelColumns], the columns from `group` on.
template <typename P, int kRows>
void StripGroup(const PanelArgs& args, int64_t first, int64_t group, float* c) {
  constexpr int64_t kStepBytes = kPanelColumns * 4;  // of a panel: one f32 or a pair per column
  const int64_t stride = args.x_stride * P::kElementBytes;
  // Every third row has a pointer; the two between are reached by the addressing modes.
  constexpr int kPointers = (kRows + 2) / 3;
  const char* x[kPointers];
  for (int i = 0; i < kPointers; ++i) {
    x[i] = static_cast<const char*>(args.x) + (first + 3 * i) * stride;
  }
  const char* b = static_cast<const char*>(args.panel) + group * 4;
  Vec sum[kRows][kGroupVecs] = {};
  for (int64_t step = args.k / P::kPerStep; step > 0; --step) {
    for (int64_t line = 0; line < kGroupColumns * 4; line += 64) {
      __builtin_prefetch(b + kPrefetchBytes + line);
    }
    Step<P, kRows>(sum, b, [&](int r) { return Broadcast(x[r / 3] + (r % 3) * stride); });
    b += kStepBytes;
#pragma GCC unroll 4
    for (int i = 0; i < kPointers; ++i) x[i] += 4;
  }
  if (args.k % P::kPerStep != 0) {  // the last element of an odd k; its partner is zero
    Step<P, kRows>(sum, b, [&](int r) {
      uint16_t bits;
      std::memcpy(&bits, x[r / 3] + (r % 3) * stride, sizeof(bits));
      return UVec{} + static_cast<uint32_t>(bits);
    });
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kGroupVecs; ++v) {
      StoreVec(c + r * kPanelColumns + group + v * kLanes, sum[r][v]);
    }
  }
}

template <typename P, int kRows>
void Strip(const PanelArgs& args, int64_t first, float* c) {
  for (int64_t group = 0; group < kPanelColumns; group += kGroupColumns) {
    StripGroup<P, kRows>(args, first, group, c);
  }
}

// Brings in the lines of out while the strip is computed: the stores come in one burst.
inline void PrefetchOut(const PanelArgs& args, int64_t first, int64_t rows) {
  const int64_t element_bytes = args.out_bf16 ? 2 : 4;
  const char* out = static_cast<const char*>(args.out) + first * args.out_stride * element_bytes;
  for (int64_t r = 0; r < rows; ++r) {
    __builtin_prefetch(out, 1);
    __builtin_prefetch(out + kPanelColumns * element_bytes - 1, 1);
    out += args.out_stride * element_bytes;
  }
}

template <typename P, int... kIndex>
void Panel(const PanelArgs& args, std::integer_sequence<int, kIndex...>) {
  using StripFunction = void (*)(const PanelArgs&, int64_t, float*);
  static constexpr StripFunction kStrips[] = {Strip<P, kIndex + 1>...};
  alignas(64) float c[kStripRows * kPanelColumns];
  // Strips of nearly equal height rather than full ones and a thin last one.
  const int64_t strips = (args.rows + kStripRows - 1) / kStripRows;
  for (int64_t strip = 0; strip < strips; ++strip) {
    const int64_t first = args.rows * strip / strips;
    const int64_t rows = args.rows * (strip + 1) / strips - first;
    PrefetchOut(args, first, rows);
    kStrips[rows - 1](args, first, c);
    Finish(args, first, rows, c);
  }
}

void PanelBf16(const PanelArgs& args) {
  Panel<Bf16>(args, std::make_integer_sequence<int, kStripRows>());
}
void PanelF32(const PanelArgs& args) {
  Panel<F32>(args, std::make_integer_sequence<int, kStripRows>());
}

}  // namespace

extern const PanelKernels kPanelKernels;
const PanelKernels kPanelKernels = {PanelBf16, PanelF32, kStripRows};

}  // namespace lacuna::kernels::cpu::LACUNA_ISA
