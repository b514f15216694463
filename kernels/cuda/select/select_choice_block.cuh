// What the threads of a choosing block do together: sums, greatest values and prefix sums, one
// barrier each. Device code; every thread of the block calls, with full warps, of which a block has
// any number.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/launch.cuh"

namespace lacuna::kernels::cuda {

inline constexpr int kChooseThreads = 1024;
inline constexpr int kChooseWarps = kChooseThreads / 32;
inline constexpr int kChooseStaticBytes = 32 << 10;  // of shared memory, at most, with a Cutter
inline constexpr unsigned kAllLanes = ~0u;

__device__ inline int LaneId() { return static_cast<int>(threadIdx.x) % 32; }
__device__ inline int WarpId() { return static_cast<int>(threadIdx.x) / 32; }
__device__ inline int BlockThreads() { return static_cast<int>(blockDim.x); }
__device__ inline int BlockWarps() { return static_cast<int>(blockDim.x) / 32; }

__device__ inline uint64_t WarpTotal(uint64_t value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}
// The sum of this lane's value and those of the lanes before it.
template <typename T>
__device__ inline T WarpInclusive(T value) {
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const T other = __shfl_up_sync(kAllLanes, value, step);
    if (LaneId() >= step) value += other;
  }
  return value;
}

// The block's dynamic shared memory. Shared memory is reached through functions, never by pointers
// in objects: only so does the compiler know what it is.
__device__ inline uint32_t* ChooseMemory() {
  LACUNA_DYNAMIC_SHARED(16, uint32_t, words);
  return words;
}

// The block as one calculator. Calls take two sets of slots in turn, so that a barrier lies between
// the last read of a slot and its next write.
class ChooseBlock final {
 public:
  // Each value becomes its sum over the block.
  template <int kCount>
  __device__ void Sum(uint64_t (&values)[kCount]) {
    auto& slots = Turn<kCount>();
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const uint64_t sum = WarpTotal(values[i]);
      if (LaneId() == 0) slots[i][WarpId()] = sum;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = WarpTotal(Slot(slots, i));
  }

  // Each value becomes its greatest in the block.
  template <int kCount>
  __device__ void Max(uint32_t (&values)[kCount]) {
    auto& slots = Turn<kCount>();
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const uint32_t max = __reduce_max_sync(kAllLanes, values[i]);
      if (LaneId() == 0) slots[i][WarpId()] = max;
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      values[i] = __reduce_max_sync(kAllLanes, static_cast<uint32_t>(Slot(slots, i)));
    }
  }

  // Of a value that each warp's last lane gives: the sum of the warps before this one, and of all.
  template <typename T>
  struct Prefix final {
    T before, total;
  };
  template <typename T>
  __device__ Prefix<T> PrefixOfWarps(T value) {
    auto& slots = Turn<1>();
    if (LaneId() == 31) slots[0][WarpId()] = value;
    __syncthreads();
    const T one = static_cast<T>(Slot(slots, 0));
    const T before = LaneId() < WarpId() ? one : T{0};
    if constexpr (sizeof(T) == sizeof(uint32_t)) {
      return {__reduce_add_sync(kAllLanes, before), __reduce_add_sync(kAllLanes, one)};
    } else {
      return {WarpTotal(before), WarpTotal(one)};
    }
  }

 private:
  static constexpr int kValuesMax = 4;
  using Slots = uint64_t[kValuesMax][32];

  // What the warp of this lane's number left, if there is one.
  __device__ static uint64_t Slot(const Slots& slots, int i) {
    return LaneId() < BlockWarps() ? slots[i][LaneId()] : 0;
  }

  template <int kCount>
  __device__ Slots& Turn() {
    static_assert(kCount <= kValuesMax);
    turn_ ^= 1;
    return SlotsAt(turn_);
  }
  __device__ static Slots& SlotsAt(int turn) {
    __shared__ Slots slots[2];
    return slots[turn];
  }

  int turn_ = 0;
};

}  // namespace lacuna::kernels::cuda
