// The emulator itself: what kernels may rely on, and how it ends the process on what they may not.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ptx.cuh"

namespace lacuna::kernels::cuda {
namespace {

template <typename... Params, typename... Args>
void RunKernel(void (*kernel)(Params...), dim3 grid, int threads, size_t shared_bytes,
               Args... args) {
  ASSERT_EQ(
      Launch(kernel, grid, dim3(static_cast<unsigned>(threads)), shared_bytes, nullptr, args...),
      OkStatus());
}

__global__ void ReverseKernel(int* values) {
  LACUNA_DYNAMIC_SHARED(16, int, shared);
  const int i = static_cast<int>(threadIdx.x);
  const int n = static_cast<int>(blockDim.x);
  shared[i] = values[blockIdx.x * n + i];
  __syncthreads();
  values[blockIdx.x * n + i] = shared[n - 1 - i];
}

TEST(Emulator, BlocksShareMemoryAndBarriers) {
  std::vector<int> values(3 * 100);
  for (int i = 0; i < 300; ++i) values[i] = i;
  RunKernel(ReverseKernel, dim3(3), 100, 100 * sizeof(int), values.data());
  for (int i = 0; i < 300; ++i) EXPECT_EQ(values[i], i / 100 * 100 + 99 - i % 100);
}

__global__ void FreshKernel(float* out) {
  __shared__ float variables[4];
  LACUNA_DYNAMIC_SHARED(16, float, dynamic);
  out[2 * blockIdx.x] = variables[1];
  out[2 * blockIdx.x + 1] = dynamic[1];
  variables[1] = dynamic[1] = 1.0f;
}

TEST(Emulator, SharedMemoryStartsAsNan) {
  float out[4] = {};
  RunKernel(FreshKernel, dim3(2), 1, 16, out);
  for (const float value : out) EXPECT_TRUE(std::isnan(value));
}

__global__ void WarpKernel(int* out) {
  const int lane = static_cast<int>(threadIdx.x);
  int* at = out + lane * 8;
  at[0] = __shfl_sync(~0u, lane, 5, 8);
  at[1] = __shfl_up_sync(~0u, lane, 3);
  at[2] = __shfl_down_sync(~0u, lane, 3, 16);
  at[3] = __shfl_xor_sync(~0u, lane, 9);
  at[4] = static_cast<int>(__ballot_sync(~0u, lane % 3 == 0));
  at[5] = static_cast<int>(__match_any_sync(~0u, lane / 10));
  at[6] = __reduce_add_sync(~0u, lane);
  if (lane < 8) at[7] = __shfl_xor_sync(0xffu, lane, 1);  // the others are elsewhere
  if (lane >= 8) at[7] = __shfl_xor_sync(0xffffff00u, lane, 2);
}

TEST(Emulator, WarpExchanges) {
  std::vector<int> out(32 * 8);
  RunKernel(WarpKernel, dim3(1), 32, 0, out.data());
  int thirds = 0;
  for (int i = 0; i < 32; i += 3) thirds |= 1 << i;
  for (int i = 0; i < 32; ++i) {
    const int* at = out.data() + i * 8;
    EXPECT_EQ(at[0], i / 8 * 8 + 5);
    EXPECT_EQ(at[1], i < 3 ? i : i - 3);
    EXPECT_EQ(at[2], i % 16 + 3 > 15 ? i : i + 3);
    EXPECT_EQ(at[3], i ^ 9);
    EXPECT_EQ(at[4], thirds);
    int equal = 0;
    for (int j = 0; j < 32; ++j) equal |= j / 10 == i / 10 ? 1 << j : 0;
    EXPECT_EQ(at[5], equal);
    EXPECT_EQ(at[6], 31 * 32 / 2);
    EXPECT_EQ(at[7], i < 8 ? i ^ 1 : i ^ 2);
  }
}

// c = a * b^T by one warp: a [16, 16], b [8, 16], both through shared memory and ldmatrix.
template <typename T>
__global__ void MmaKernel(const T* a, const T* b, float* c) {
  __shared__ __align__(16) T shared[(16 + 8) * 16];
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < 256; i += 32) shared[i] = a[i];
  for (int i = lane; i < 128; i += 32) shared[256 + i] = b[i];
  __syncwarp();
  uint32_t left[4];
  uint32_t right[4];
  LoadMatrix4(left, SharedAddress(shared + (lane % 16) * 16 + lane / 16 * 8));
  LoadMatrix4(right, SharedAddress(shared + 256 + (lane % 8) * 16 + lane / 8 % 2 * 8));
  float sums[4] = {};
  MmaM16N8K16<T>(sums, left, right[0], right[1]);
  for (int i = 0; i < 4; ++i) c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sums[i];
}

template <typename T>
void CheckMma() {
  std::vector<T> a(256), b(128);
  for (int i = 0; i < 256; ++i) a[i] = T(static_cast<float>(i * 7 % 13 - 6));
  for (int i = 0; i < 128; ++i) b[i] = T(static_cast<float>(i * 5 % 11 - 5));
  std::vector<float> c(128);
  RunKernel(MmaKernel<T>, dim3(1), 32, 0, a.data(), b.data(), c.data());
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 8; ++j) {
      float sum = 0.0f;
      for (int k = 0; k < 16; ++k) {
        sum += static_cast<float>(a[i * 16 + k]) * static_cast<float>(b[j * 16 + k]);
      }
      EXPECT_EQ(c[i * 8 + j], sum) << i << ", " << j;
    }
  }
}
TEST(Emulator, MatricesLieAsPtxHasThem) {
  CheckMma<__half>();
  CheckMma<__nv_bfloat16>();
}

// A producer warp brings chunks by bulk copies to a consumer warp.
__global__ void RingKernel(const int* from, int* out, int chunks) {
  __shared__ __align__(16) int stages[2][32];
  __shared__ uint64_t full[2];
  __shared__ uint64_t empty[2];
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; ++i) {
      BarrierInit(SharedAddress(&full[i]), 1);
      BarrierInit(SharedAddress(&empty[i]), 32);
    }
    FenceBarrierInit();
  }
  __syncthreads();
  for (int i = 0; i < chunks; ++i) {
    const uint32_t parity = i / 2 % 2;
    if (threadIdx.x == 32) {
      BarrierWait(SharedAddress(&empty[i % 2]), parity ^ 1);
      BarrierArriveExpect(SharedAddress(&full[i % 2]), 128);
      BulkCopyToShared(SharedAddress(stages[i % 2]), from + i * 32, 128,
                       SharedAddress(&full[i % 2]));
    } else if (threadIdx.x < 32) {
      BarrierWait(SharedAddress(&full[i % 2]), parity);
      out[i * 32 + lane] = stages[i % 2][lane];
      BarrierArrive(SharedAddress(&empty[i % 2]));
    }
  }
}

TEST(Emulator, BulkCopiesThroughMbarriers) {
  std::vector<int> from(32 * 9 + 4), out(32 * 9, -1);
  auto* aligned = reinterpret_cast<int*>((reinterpret_cast<uintptr_t>(from.data()) + 15) / 16 * 16);
  for (int i = 0; i < 32 * 9; ++i) aligned[i] = i;
  RunKernel(RingKernel, dim3(1), 64, 0, aligned, out.data(), 9);
  for (int i = 0; i < 32 * 9; ++i) EXPECT_EQ(out[i], i);
}

// ---- what ends the process ----

__global__ void DeadlockKernel(uint64_t*) {
  if (threadIdx.x < 32) NamedBarrierSync(1, 64);
  if (threadIdx.x >= 32) __syncthreads();
}
__global__ void OutsideKernel(uint64_t*) {
  LACUNA_DYNAMIC_SHARED(16, int, shared);
  shared[4] = 1;
}
__global__ void UnalignedKernel(uint64_t* global) {
  LACUNA_DYNAMIC_SHARED(16, int, shared);
  AsyncCopy16(SharedAddress(shared), reinterpret_cast<const char*>(global) + 8);
}
__global__ void MaskKernel(uint64_t*) { __shfl_sync(1u, 0, 0); }
// A copy that nobody has waited for is not there, or is there too early: with many, some are late.
__global__ void UnwaitedKernel(uint64_t* global) {
  __shared__ __align__(16) uint64_t shared[64];
  for (int i = 0; i < 64; i += 2) AsyncCopy16(SharedAddress(shared + i), global);
  AsyncCopyCommit();
  for (int i = 0; i < 64; ++i) {
    if (shared[i] != *global) global[2] = 1;
  }
}

using EmulatorDeathTest = testing::Test;
TEST(EmulatorDeathTest, NamesTheFault) {
  alignas(16) uint64_t global[4] = {};
  EXPECT_DEATH(RunKernel(DeadlockKernel, dim3(1), 64, 0, global),
               "deadlock in .*DeadlockKernel(.|\n)*32 threads wait at __syncthreads(.|\n)*"
               "32 threads wait at barrier 1");
  EXPECT_DEATH(RunKernel(OutsideKernel, dim3(1), 1, 16, global),
               "behind the dynamic shared memory");
  EXPECT_DEATH(RunKernel(UnalignedKernel, dim3(1), 1, 16, global), "not aligned");
  EXPECT_DEATH(RunKernel(MaskKernel, dim3(1), 32, 0, global), "not in its own mask");
}

TEST(Emulator, CopiesThatNobodyWaitsForAreMissed) {
  alignas(16) uint64_t global[4] = {};
  RunKernel(UnwaitedKernel, dim3(1), 1, 0, global);
  EXPECT_EQ(global[2], 1u);
}

TEST(Emulator, RefusesWhatADeviceRefuses) {
  EXPECT_NE(Launch(OutsideKernel, dim3(1), dim3(1025), 0, nullptr, nullptr), OkStatus());
  EXPECT_NE(Launch(OutsideKernel, dim3(0), dim3(32), 0, nullptr, nullptr), OkStatus());
  EXPECT_NE(Launch(OutsideKernel, dim3(1), dim3(32), 49 << 10, nullptr, nullptr), OkStatus());
}

}  // namespace
}  // namespace lacuna::kernels::cuda
