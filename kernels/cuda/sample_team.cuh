// The thread blocks that share one row of logits: a cluster with distributed shared memory (sm_90),
// or one block alone. Everything here is called by all threads of all blocks of the team.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace lacuna::kernels::cuda {

constexpr int kSampleThreads = 512;
constexpr int kSampleWarps = kSampleThreads / 32;
constexpr int kTeamMax = 16;

template <bool kCluster>
class Team final {
 public:
  int rank = 0;
  int size = 1;

  __device__ Team() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if constexpr (kCluster) {
      asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
      asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
    }
#endif
  }
  __device__ void Barrier() const {
    Arrive();
    Wait();
  }
  // A barrier in two halves. No block may touch another's shared memory before that one has
  // started: each arrives once at its start.
  __device__ void Arrive() const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    __syncwarp();
    if constexpr (kCluster) asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
  }
  __device__ void Wait() const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if constexpr (kCluster) {
      __syncwarp();
      asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
      return;
    }
#endif
    __syncthreads();
  }
  // The same variable in the shared memory of another block of the team.
  template <typename T>
  __device__ T* Remote(T* mine, int of_rank) const {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if constexpr (kCluster) {
      uint64_t address;
      asm("mapa.u64 %0, %1, %2;"
          : "=l"(address)
          : "l"(reinterpret_cast<uint64_t>(mine)), "r"(of_rank));
      return reinterpret_cast<T*>(address);
    }
#endif
    return mine;
  }
};

__device__ inline uint64_t WarpMin(uint64_t value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    value = min(value, static_cast<uint64_t>(__shfl_xor_sync(~0u, value, step)));
  }
  return value;
}
__device__ inline uint64_t WarpSum(uint64_t value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  return value;
}
// The sum over this and the lanes before it.
__device__ inline uint64_t WarpPrefix(uint64_t value) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const uint64_t other = __shfl_up_sync(~0u, value, step);
    if (lane >= step) value += other;
  }
  return value;
}

// Room for reductions over a team.
struct TeamScratch final {
  uint64_t warps[2][kSampleWarps];
  uint64_t slots[2][kTeamMax][2];  // used in turn: one barrier for each exchange is enough
};

// Two values of each block to all blocks; the result is valid until the exchange after the next.
template <bool kCluster>
__device__ const uint64_t (*Exchange(const Team<kCluster>& team, TeamScratch& scratch, int& turn,
                                     uint64_t a, uint64_t b))[2] {
  const int to = static_cast<int>(threadIdx.x);
  if (to < team.size) {
    uint64_t* slot = team.Remote(&scratch.slots[turn][team.rank][0], to);
    slot[0] = a;
    slot[1] = b;
  }
  team.Barrier();
  const auto* slots = scratch.slots[turn];
  turn ^= 1;
  return slots;
}

// Least `a` and greatest `b` of the team.
template <bool kCluster>
__device__ void TeamMinMax(const Team<kCluster>& team, TeamScratch& scratch, int& turn, uint64_t& a,
                           uint64_t& b) {
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const uint64_t warp_a = WarpMin(a);
  const uint64_t warp_b = WarpMin(~b);
  __syncthreads();
  if (threadIdx.x % 32 == 0) {
    scratch.warps[0][warp] = warp_a;
    scratch.warps[1][warp] = warp_b;
  }
  __syncthreads();
  a = scratch.warps[0][0];
  b = scratch.warps[1][0];
  for (int i = 1; i < kSampleWarps; ++i) {
    a = min(a, scratch.warps[0][i]);
    b = min(b, scratch.warps[1][i]);
  }
  const auto* slots = Exchange(team, scratch, turn, a, b);
  for (int i = 0; i < team.size; ++i) {
    a = min(a, slots[i][0]);
    b = min(b, slots[i][1]);
  }
  b = ~b;
}

// The sum of `value` over all threads of the team.
template <bool kCluster>
__device__ uint64_t TeamSum(const Team<kCluster>& team, TeamScratch& scratch, int& turn,
                            uint64_t value) {
  const uint64_t warp_sum = WarpSum(value);
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch.warps[0][threadIdx.x / 32] = warp_sum;
  __syncthreads();
  uint64_t sum = 0;
  for (int i = 0; i < kSampleWarps; ++i) sum += scratch.warps[0][i];
  const auto* slots = Exchange(team, scratch, turn, sum, 0);
  sum = 0;
  for (int i = 0; i < team.size; ++i) sum += slots[i][0];
  return sum;
}

}  // namespace lacuna::kernels::cuda
