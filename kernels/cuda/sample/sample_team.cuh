// The thread blocks that share one row of logits: a cluster with distributed shared memory (sm_90),
// or one block alone. Everything here is called by all threads of all blocks of the team.
//
// A block may end while others run: what they write to its shared memory, or read from it, lies
// before a barrier of the team that it takes part in.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"

namespace lacuna::kernels::cuda {

constexpr int kSampleThreads = 512;
constexpr int kSampleWarps = kSampleThreads / 32;
constexpr int kTeamMax = 16;

// The block's shared memory, by a name, so that the compiler knows it for what it is everywhere.
__device__ inline std::byte* SharedMemory() {
  LACUNA_DYNAMIC_SHARED(128, std::byte, shared);
  return shared;
}
__device__ inline int LaneIndex() { return static_cast<int>(threadIdx.x) % 32; }
__device__ inline int WarpIndex() { return static_cast<int>(threadIdx.x) / 32; }

// Clusters exist where the code is compiled for sm_90 or emulated.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
constexpr bool kHasClusters = true;
#else
constexpr bool kHasClusters = false;
#endif

template <bool kWanted>
class Team final {
 public:
  int rank = 0;
  int size = 1;  // a power of two

  __device__ Team() {
    if constexpr (kCluster) {
      rank = static_cast<int>(ClusterRank());
      size = static_cast<int>(ClusterSize());
    }
  }
  __device__ void Barrier() const {
    Arrive();
    Wait();
  }
  // A barrier in two halves. No block may touch another's shared memory before that one has
  // started: each arrives once at its start.
  __device__ void Arrive() const {
    if constexpr (kCluster) {
      __syncwarp();
      ClusterArrive();
    }
  }
  // Where nothing is told that was written before: telling takes a while.
  __device__ void ArriveRelaxed() const {
    if constexpr (kCluster) {
      __syncwarp();
      ClusterArriveRelaxed();
    }
  }
  __device__ void Wait() const {
    if constexpr (kCluster) {
      __syncwarp();
      ClusterWait();
    } else {
      __syncthreads();
    }
  }
  // The same variable in the shared memory of another block of the team.
  template <typename T>
  __device__ T* Remote(T* mine, int of_rank) const {
    if constexpr (kCluster) {
      return reinterpret_cast<T*>(
          ClusterMap(reinterpret_cast<uint64_t>(mine), static_cast<uint32_t>(of_rank)));
    }
    return mine;
  }

 private:
  static constexpr bool kCluster = kWanted && kHasClusters;
};

// The sum over the lanes of a warp, in a fixed order.
__device__ inline float WarpSum(float value) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
  return value;
}
__device__ inline int WarpSum(int value) { return __reduce_add_sync(~0u, value); }
__device__ inline uint64_t WarpSum(uint64_t value) {
  constexpr uint32_t kPart = (1u << 21) - 1;
  const uint32_t low = __reduce_add_sync(~0u, static_cast<uint32_t>(value) & kPart);
  const uint32_t middle = __reduce_add_sync(~0u, static_cast<uint32_t>(value >> 21) & kPart);
  const uint32_t high = __reduce_add_sync(~0u, static_cast<uint32_t>(value >> 42));
  return low + (static_cast<uint64_t>(middle) << 21) + (static_cast<uint64_t>(high) << 42);
}
// The sum over this and the lanes before it.
template <typename T>
__device__ T WarpPrefix(T value) {
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const T other = __shfl_up_sync(~0u, value, step);
    if (LaneIndex() >= step) value += other;
  }
  return value;
}

// Room for sums over a block and a team, at the start of shared memory. `blocks` is used in turn,
// so that one barrier for each exchange is enough; `warps` is read before the next barrier of the
// team.
struct TeamScratch final {
  uint64_t warps[kSampleWarps];
  uint64_t blocks[2][kTeamMax][2];
};
__device__ inline TeamScratch& SharedTeam() {
  return *reinterpret_cast<TeamScratch*>(SharedMemory());
}

// The sum of what the lanes 0 give, for all threads of the block; a barrier of the team has to
// follow before the next one.
__device__ inline uint64_t BlockSum(uint64_t of_warp) {
  uint64_t(&warps)[kSampleWarps] = SharedTeam().warps;
  if (LaneIndex() == 0) warps[WarpIndex()] = of_warp;
  __syncthreads();
  return WarpSum(LaneIndex() < kSampleWarps ? warps[LaneIndex()] : uint64_t{0});
}
__device__ inline uint64_t WarpMin(uint64_t value) {
  const auto high = static_cast<uint32_t>(value >> 32);
  const uint32_t least = __reduce_min_sync(~0u, high);
  const uint32_t low = __reduce_min_sync(~0u, high == least ? static_cast<uint32_t>(value) : ~0u);
  return static_cast<uint64_t>(least) << 32 | low;
}
__device__ inline uint64_t BlockMin(uint64_t value) {
  uint64_t(&warps)[kSampleWarps] = SharedTeam().warps;
  value = WarpMin(value);
  __syncthreads();  // `warps` has been read
  if (LaneIndex() == 0) warps[WarpIndex()] = value;
  __syncthreads();
  return WarpMin(LaneIndex() < kSampleWarps ? warps[LaneIndex()] : ~uint64_t{0});
}

// This block's value among those of the team.
struct Share final {
  uint64_t before;  // the sum over the blocks before this one
  uint64_t mine;
  uint64_t total;
};

// Two values of each block, told to all blocks: Post, a barrier of the team, then Of or Value.
template <bool kCluster>
class Exchange final {
 public:
  __device__ explicit Exchange(const Team<kCluster>& team) : team_(team) {}

  __device__ void Post(uint64_t a, uint64_t b) {
    turn_ ^= 1;
    mine_[0] = a;
    mine_[1] = b;
    const int to = static_cast<int>(threadIdx.x);
    if (to >= team_.size) return;
    uint64_t* slot = team_.Remote(&SharedTeam().blocks[turn_][team_.rank][0], to);
    slot[0] = a;
    slot[1] = b;
  }
  // The value of block `lane`; 0 where there is none.
  __device__ uint64_t Value(int which) const {
    return LaneIndex() < team_.size ? SharedTeam().blocks[turn_][LaneIndex()][which] : 0;
  }
  __device__ Share Of(int which) const {
    const uint64_t prefix = WarpPrefix(Value(which));
    const uint64_t here = __shfl_sync(~0u, prefix, team_.rank);
    return {here - mine_[which], mine_[which], __shfl_sync(~0u, prefix, 31)};
  }

 private:
  Team<kCluster> team_;
  int turn_ = 0;
  uint64_t mine_[2] = {};
};

}  // namespace lacuna::kernels::cuda
