// The intrinsics of CUDA that concern one thread or its block, for a host compiler:
// synchronisation, cached loads, atomics, bits, arithmetic. Rounding is IEEE where CUDA's is;
// approximate functions are exact here, so results agree within the tolerances that kernels state,
// not in bits.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "tests/cuda_emulator/block.h"

// ---- synchronisation ----

inline void __syncthreads() { cuda_emulator::SyncThreads(0, cuda_emulator::Vote::kCount); }
inline int __syncthreads_count(int predicate) {
  return cuda_emulator::SyncThreads(predicate, cuda_emulator::Vote::kCount);
}
inline int __syncthreads_or(int predicate) {
  return cuda_emulator::SyncThreads(predicate, cuda_emulator::Vote::kOr);
}
inline int __syncthreads_and(int predicate) {
  return cuda_emulator::SyncThreads(predicate, cuda_emulator::Vote::kAnd);
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline void __nanosleep(unsigned) { cuda_emulator::Yield(); }
[[noreturn]] inline void __trap() { cuda_emulator::Fail("__trap"); }
inline long long clock64() { return 0; }

// ---- loads and stores with a cache policy ----

#define LACUNA_EMULATED_LOAD(name) \
  template <typename T>            \
  T name(const T* from) {          \
    return *from;                  \
  }
LACUNA_EMULATED_LOAD(__ldg)
LACUNA_EMULATED_LOAD(__ldca)
LACUNA_EMULATED_LOAD(__ldcg)
LACUNA_EMULATED_LOAD(__ldcs)
LACUNA_EMULATED_LOAD(__ldcv)
LACUNA_EMULATED_LOAD(__ldlu)
#undef LACUNA_EMULATED_LOAD
#define LACUNA_EMULATED_STORE(name)                        \
  template <typename T>                                    \
  void name(T* to, const std::type_identity_t<T>& value) { \
    *to = value;                                           \
  }
LACUNA_EMULATED_STORE(__stcg)
LACUNA_EMULATED_STORE(__stcs)
LACUNA_EMULATED_STORE(__stwb)
LACUNA_EMULATED_STORE(__stwt)
#undef LACUNA_EMULATED_STORE

// ---- atomics: plain, as one thread runs at a time ----

#define LACUNA_EMULATED_ATOMIC(name, expression)          \
  template <typename T>                                   \
  T name(T* address, std::type_identity_t<T> value) {     \
    const T old = *address;                               \
    *address = static_cast<T>(expression);                \
    cuda_emulator::NoteProgress();                        \
    return old;                                           \
  }                                                       \
  template <typename T>                                   \
  T name##_block(T* address, std::type_identity_t<T> v) { \
    return name(address, v);                              \
  }
LACUNA_EMULATED_ATOMIC(atomicAdd, old + value)
LACUNA_EMULATED_ATOMIC(atomicSub, old - value)
LACUNA_EMULATED_ATOMIC(atomicExch, value)
LACUNA_EMULATED_ATOMIC(atomicMin, value < old ? value : old)
LACUNA_EMULATED_ATOMIC(atomicMax, value > old ? value : old)
LACUNA_EMULATED_ATOMIC(atomicAnd, old& value)
LACUNA_EMULATED_ATOMIC(atomicOr, old | value)
LACUNA_EMULATED_ATOMIC(atomicXor, old ^ value)
LACUNA_EMULATED_ATOMIC(atomicInc, old >= value ? 0 : old + 1)
LACUNA_EMULATED_ATOMIC(atomicDec, old == 0 || old > value ? value : old - 1)
#undef LACUNA_EMULATED_ATOMIC
template <typename T>
T atomicCAS(T* address, std::type_identity_t<T> compare, std::type_identity_t<T> value) {
  const T old = *address;
  if (old == compare) *address = value;
  cuda_emulator::NoteProgress();
  return old;
}

// ---- bits ----

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return std::countl_zero(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int i = 0; i < 32; ++i) reversed |= (x >> i & 1u) << (31 - i);
  return reversed;
}
inline unsigned long long __brevll(unsigned long long x) {
  return static_cast<unsigned long long>(__brev(static_cast<unsigned>(x))) << 32 |
         __brev(static_cast<unsigned>(x >> 32));
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  shift &= 31;
  return shift == 0 ? high : high << shift | low >> (32 - shift);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  shift &= 31;
  return shift == 0 ? low : high << (32 - shift) | low >> shift;
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = static_cast<uint64_t>(y) << 32 | x;
  unsigned out = 0;
  for (int i = 0; i < 4; ++i) {
    const unsigned choice = selector >> (4 * i) & 0xf;
    auto byte = static_cast<unsigned>(bytes >> (8 * (choice & 7)) & 0xff);
    if ((choice & 8) != 0) byte = (byte & 0x80) != 0 ? 0xff : 0;
    out |= byte << (8 * i);
  }
  return out;
}
inline int __dp4a(int a, int b, int sum) {
  for (int i = 0; i < 4; ++i) {
    sum += static_cast<int8_t>(a >> (8 * i)) * static_cast<int8_t>(b >> (8 * i));
  }
  return sum;
}
inline unsigned __dp4a(unsigned a, unsigned b, unsigned sum) {
  for (int i = 0; i < 4; ++i) sum += (a >> (8 * i) & 0xff) * (b >> (8 * i) & 0xff);
  return sum;
}
inline int __mulhi(int a, int b) { return static_cast<int>(static_cast<int64_t>(a) * b >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32);
}
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }

#include "tests/cuda_emulator/arithmetic.h"
