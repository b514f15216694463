// The order of a row's tokens, their masses, and walks over a block's part of the row.
//
// Tokens are ordered by a 64-bit key: likelier first, then the lower id. Masses are integers
// (2^-42), so sums depend on no order: neither on the number of blocks nor on the batch.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace lacuna::kernels::cuda {

constexpr int kBins = 1024;
constexpr float kBinsPerNat = 48.0f;
constexpr int kMassBits = 42;  // vocabularies up to 2^21 do not overflow
constexpr uint64_t kLastKey = ~uint64_t{0};

// Ascending keys: likelier first, then the lower id. -0 and 0 are equal.
__device__ inline uint64_t KeyOf(float value, int token) {
  const uint32_t bits = __float_as_uint(value + 0.0f);
  const uint32_t ascending = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return static_cast<uint64_t>(~ascending) << 32 | static_cast<uint32_t>(token);
}
__device__ inline float ValueOf(uint64_t key) {
  const uint32_t ascending = ~static_cast<uint32_t>(key >> 32);
  return __uint_as_float((ascending & 0x80000000u) != 0 ? ascending & 0x7fffffffu : ~ascending);
}
__device__ inline int TokenOf(uint64_t key) { return static_cast<int>(static_cast<uint32_t>(key)); }

// exp(value) for value <= 0.
__device__ inline uint64_t MassOf(float value) {
  return __float2ull_rz(expf(value) * static_cast<float>(uint64_t{1} << kMassBits));
}

// This block's part of a row: values of the tokens from `first` on, each warp a run of
// `steps` x 128; what lies beyond the row is -inf.
struct Slice final {
  float* values;
  int first;
  int steps;

  // Calls f(value, index in the slice) for this thread's values, in ascending order.
  template <typename F>
  __device__ void ForEach(const F& f) const {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    int i = (warp * steps * 32 + static_cast<int>(threadIdx.x) % 32) * 4;
    for (int step = 0; step < steps; ++step, i += 128) {
      const float4 four = *reinterpret_cast<const float4*>(values + i);
      f(four.x, i);
      f(four.y, i + 1);
      f(four.z, i + 2);
      f(four.w, i + 3);
    }
  }
  // The same, and stores what f returns.
  template <typename F>
  __device__ void Update(const F& f) const {
    const int warp = static_cast<int>(threadIdx.x) / 32;
    int i = (warp * steps * 32 + static_cast<int>(threadIdx.x) % 32) * 4;
    for (int step = 0; step < steps; ++step, i += 128) {
      float4 four = *reinterpret_cast<const float4*>(values + i);
      four = {f(four.x, i), f(four.y, i + 1), f(four.z, i + 2), f(four.w, i + 3)};
      *reinterpret_cast<float4*>(values + i) = four;
    }
  }
};

// A place in the order; what is not after it is kept.
struct Cutoff final {
  float value = -INFINITY;
  int token = 0x7fffffff;

  __device__ bool Keeps(float other, int other_token) const {
    return other > value || (other == value && other_token <= token);
  }
};

// Which tokens take part in a selection, and their masses.
struct Domain final {
  float origin;              // the greatest value
  bool with_barred = false;  // tokens of -inf too
  bool with_mass = false;
  float floor = -INFINITY;  // what is below is out
  Cutoff limit = {};        // and what is after

  __device__ bool Has(float value, int token) const {
    return (with_barred || value > -INFINITY) && value >= floor && limit.Keeps(value, token);
  }
  __device__ int Bin(float value) const {
    return static_cast<int>(fminf((origin - value) * kBinsPerNat, static_cast<float>(kBins - 1)));
  }
  __device__ uint64_t Mass(float value) const { return with_mass ? MassOf(value) : 0; }
};

}  // namespace lacuna::kernels::cuda
