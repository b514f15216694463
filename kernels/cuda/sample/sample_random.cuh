// The random numbers of draws: a function of (seed, index) alone.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace lacuna::kernels::cuda {

// Finalizer of SplitMix64 (Steele et al. 2014).
__device__ inline uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// 53 bits: u * 2^53, u in [0, 1).
__device__ inline uint64_t UniformBits(uint64_t seed, int64_t index) {
  const uint64_t mixed = Mix(static_cast<uint64_t>(index));
  return Mix(Mix(seed) ^ (mixed << 32 | mixed >> 32)) >> 11;
}
// floor(u * total), exact.
__device__ inline uint64_t UniformBelow(uint64_t bits, uint64_t total) {
  return __umul64hi(bits, total) << 11 | (bits * total) >> 53;
}

}  // namespace lacuna::kernels::cuda
