// Arithmetic intrinsics of CUDA for a host compiler; part of intrinsics.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

using std::isfinite;
using std::isinf;
using std::isnan;

// ---- min and max of mixed types, as CUDA has them ----

template <typename A, typename B>
requires(std::is_arithmetic_v<A>&& std::is_arithmetic_v<B>) constexpr std::common_type_t<A, B> min(
    A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return std::fmin(static_cast<T>(a), static_cast<T>(b));
  return static_cast<T>(b) < static_cast<T>(a) ? static_cast<T>(b) : static_cast<T>(a);
}
template <typename A, typename B>
requires(std::is_arithmetic_v<A>&& std::is_arithmetic_v<B>) constexpr std::common_type_t<A, B> max(
    A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return std::fmax(static_cast<T>(a), static_cast<T>(b));
  return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(b) : static_cast<T>(a);
}

// ---- rounded to nearest, never fused ----

inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fsqrt_rn(float a) { return std::sqrt(a); }
inline float __frsqrt_rn(float a) { return static_cast<float>(1.0 / std::sqrt(double{a})); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dsub_rn(double a, double b) { return a - b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }

// ---- approximate on a device ----

inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float x) { return std::exp(x); }
inline float __exp10f(float x) { return std::pow(10.0f, x); }
inline float __logf(float x) { return std::log(x); }
inline float __log2f(float x) { return std::log2(x); }
inline float __log10f(float x) { return std::log10(x); }
inline float __powf(float x, float y) { return std::pow(x, y); }
inline float __sinf(float x) { return std::sin(x); }
inline float __cosf(float x) { return std::cos(x); }
inline float __tanf(float x) { return std::tan(x); }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
inline float rsqrtf(float x) { return static_cast<float>(1.0 / std::sqrt(double{x})); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float exp10f(float x) { return std::pow(10.0f, x); }

// ---- conversions: out of range goes to the nearest, NaN to 0 ----

namespace cuda_emulator {
template <typename To, typename From>
To Convert(From rounded) {
  if (std::isnan(rounded)) return 0;
  if (rounded <= static_cast<From>(std::numeric_limits<To>::min())) {
    return std::numeric_limits<To>::min();
  }
  if (rounded >= static_cast<From>(std::numeric_limits<To>::max())) {
    return std::numeric_limits<To>::max();
  }
  return static_cast<To>(rounded);
}
}  // namespace cuda_emulator

#define LACUNA_EMULATED_CONVERSIONS(from_name, from, to_name, to) \
  inline to __##from_name##2##to_name##_rn(from x) {              \
    return cuda_emulator::Convert<to>(std::nearbyint(x));         \
  }                                                               \
  inline to __##from_name##2##to_name##_rd(from x) {              \
    return cuda_emulator::Convert<to>(std::floor(x));             \
  }                                                               \
  inline to __##from_name##2##to_name##_ru(from x) {              \
    return cuda_emulator::Convert<to>(std::ceil(x));              \
  }                                                               \
  inline to __##from_name##2##to_name##_rz(from x) {              \
    return cuda_emulator::Convert<to>(std::trunc(x));             \
  }
LACUNA_EMULATED_CONVERSIONS(float, float, int, int)
LACUNA_EMULATED_CONVERSIONS(float, float, uint, unsigned)
LACUNA_EMULATED_CONVERSIONS(float, float, ll, long long)
LACUNA_EMULATED_CONVERSIONS(float, float, ull, unsigned long long)
LACUNA_EMULATED_CONVERSIONS(double, double, int, int)
LACUNA_EMULATED_CONVERSIONS(double, double, uint, unsigned)
LACUNA_EMULATED_CONVERSIONS(double, double, ll, long long)
LACUNA_EMULATED_CONVERSIONS(double, double, ull, unsigned long long)
#undef LACUNA_EMULATED_CONVERSIONS
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }
inline float __ll2float_rn(long long x) { return static_cast<float>(x); }
inline float __ull2float_rn(unsigned long long x) { return static_cast<float>(x); }
inline double __int2double_rn(int x) { return x; }
inline double __uint2double_rn(unsigned x) { return x; }
inline double __ll2double_rn(long long x) { return static_cast<double>(x); }
inline double __ull2double_rn(unsigned long long x) { return static_cast<double>(x); }
inline float __double2float_rn(double x) { return static_cast<float>(x); }
// Directed roundings of a double to a float.
inline float __double2float_rd(double x) {
  const auto near = static_cast<float>(x);
  return near > x ? std::nextafter(near, -std::numeric_limits<float>::infinity()) : near;
}
inline float __double2float_ru(double x) {
  const auto near = static_cast<float>(x);
  return near < x ? std::nextafter(near, std::numeric_limits<float>::infinity()) : near;
}
