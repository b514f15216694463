// Stands before kernels/cuda/ptx.cuh in the emulator: the same names, done by the host. What tensor
// cores and copy engines do is in the layouts of PTX ISA 9.0.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "tests/cuda_emulator/block.h"
#include "tests/cuda_emulator/matrix.h"

namespace lacuna::kernels::cuda {

inline uint32_t SharedAddress(const void* pointer) {
  return cuda_emulator::SharedAddressOf(pointer);
}

// ---- mbarrier ----

inline uint64_t* BarrierAt(uint32_t barrier) {
  return reinterpret_cast<uint64_t*>(cuda_emulator::SharedAt(barrier, 8, 8));
}
inline void BarrierInit(uint32_t barrier, uint32_t arrivals) {
  cuda_emulator::MbarrierInit(BarrierAt(barrier), arrivals);
}
inline void FenceBarrierInit() {}
inline void BarrierArrive(uint32_t barrier) {
  cuda_emulator::MbarrierArrive(BarrierAt(barrier), 0);
}
inline void BarrierArriveExpect(uint32_t barrier, uint32_t bytes) {
  cuda_emulator::MbarrierArrive(BarrierAt(barrier), bytes);
}
inline bool BarrierTryWait(uint32_t barrier, uint32_t parity) {
  return cuda_emulator::MbarrierTest(BarrierAt(barrier), parity);
}
inline void BarrierWait(uint32_t barrier, uint32_t parity) {
  while (!BarrierTryWait(barrier, parity)) {
  }
}
inline void BarrierArriveSm80(uint32_t barrier) { BarrierArrive(barrier); }
inline bool BarrierTestWait(uint32_t barrier, uint32_t parity) {
  return BarrierTryWait(barrier, parity);
}

// ---- bulk copies ----

inline void BulkCopyToShared(uint32_t destination, const void* source, uint32_t bytes,
                             uint32_t barrier) {
  cuda_emulator::BulkCopy(cuda_emulator::SharedAt(destination, bytes, 16), source, bytes,
                          BarrierAt(barrier));
}
inline void BulkCopyToShared(uint32_t destination, const void* source, uint32_t bytes,
                             uint32_t barrier, uint64_t /*policy*/) {
  BulkCopyToShared(destination, source, bytes, barrier);
}
inline uint64_t CreateEvictFirstPolicy() { return 0; }
inline uint64_t CreateEvictLastPolicy() { return 0; }
inline void FenceProxyAsyncShared() {}

// ---- asynchronous copies ----

inline void AsyncCopy16(uint32_t destination, const void* source, bool valid = true) {
  cuda_emulator::AsyncCopy(cuda_emulator::SharedAt(destination, 16, 16), valid ? source : nullptr,
                           16);
}
inline void AsyncCopy8(uint32_t destination, const void* source, bool valid = true) {
  cuda_emulator::AsyncCopy(cuda_emulator::SharedAt(destination, 8, 8), valid ? source : nullptr, 8);
}
inline void AsyncCopy4(uint32_t destination, const void* source, bool valid = true) {
  cuda_emulator::AsyncCopy(cuda_emulator::SharedAt(destination, 4, 4), valid ? source : nullptr, 4);
}
inline void AsyncCopyCommit() { cuda_emulator::AsyncCopyCommitGroup(); }
template <int kGroupsLeft>
void AsyncCopyWait() {
  cuda_emulator::AsyncCopyWaitGroups(kGroupsLeft);
}
inline void AsyncCopyArrive(uint32_t barrier) {
  cuda_emulator::AsyncCopyFinish();
  BarrierArrive(barrier);
}

// ---- shared memory, lane by lane ----

inline int SharedTake(int* counter) { return atomicAdd(counter, 1); }
inline void SharedStoreIf(bool does, void* to, float first, int second) {
  if (!does) return;
  std::memcpy(to, &first, sizeof first);
  std::memcpy(static_cast<char*>(to) + sizeof first, &second, sizeof second);
}

// ---- clusters ----

inline uint32_t ClusterRank() { return static_cast<uint32_t>(cuda_emulator::ClusterRank()); }
inline uint32_t ClusterSize() { return static_cast<uint32_t>(cuda_emulator::ClusterSize()); }
inline void ClusterArrive() { cuda_emulator::ClusterArrive(); }
inline void ClusterArriveRelaxed() { cuda_emulator::ClusterArrive(); }
inline void ClusterWait() { cuda_emulator::ClusterWait(); }
inline uint64_t ClusterMap(uint64_t address, uint32_t rank) {
  return reinterpret_cast<uint64_t>(
      cuda_emulator::ClusterAt(reinterpret_cast<void*>(address), rank));
}

// ---- named barriers and registers ----

inline void NamedBarrierSync(int id, int threads) {
  cuda_emulator::NamedBarrier(id, threads, true);
}
inline void NamedBarrierArrive(int id, int threads) {
  cuda_emulator::NamedBarrier(id, threads, false);
}
template <int kRegisters>
void RegistersGrow() {}
template <int kRegisters>
void RegistersShrink() {}

// ---- warp matrices ----

inline void LoadMatrix4(uint32_t (&out)[4], uint32_t address) {
  cuda_emulator::LoadMatrix(out, 4, false, address);
}
inline void LoadMatrix4Transposed(uint32_t (&out)[4], uint32_t address) {
  cuda_emulator::LoadMatrix(out, 4, true, address);
}
inline uint32_t TransposeMatrix(uint32_t value) { return cuda_emulator::TransposeMatrix(value); }
template <typename T>
void MmaM16N8K16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  static_assert(std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>);
  cuda_emulator::MmaM16N8K16(d, a, b0, b1, std::is_same_v<T, __nv_bfloat16>);
}

// ---- loads and atomics ----

inline uint32_t LoadShared32(uint32_t address) {
  uint32_t value;
  std::memcpy(&value, cuda_emulator::SharedAt(address, 4, 4), 4);
  return value;
}
inline uint2 LoadShared64(uint32_t address) {
  uint2 value;
  std::memcpy(&value, cuda_emulator::SharedAt(address, 8, 8), 8);
  return value;
}
inline uint4 LoadShared128(uint32_t address) {
  uint4 value;
  std::memcpy(&value, cuda_emulator::SharedAt(address, 16, 16), 16);
  return value;
}
inline int32_t AtomicAddAcqRel(int32_t* address, int32_t value) {
  return atomicAdd(address, value);
}

// ---- arithmetic ----

template <typename T>
uint32_t PackPair(float low, float high) {
  uint16_t halves[2];
  if constexpr (std::is_same_v<T, __half>) {
    halves[0] = __half_as_ushort(__float2half_rn(low));
    halves[1] = __half_as_ushort(__float2half_rn(high));
  } else {
    static_assert(std::is_same_v<T, __nv_bfloat16>);
    halves[0] = __bfloat16_as_ushort(__float2bfloat16_rn(low));
    halves[1] = __bfloat16_as_ushort(__float2bfloat16_rn(high));
  }
  return static_cast<uint32_t>(halves[1]) << 16 | halves[0];
}
inline float Exp2(float x) { return std::exp2(x); }
inline float MaxNan(float a, float b) {
  return std::isnan(a) || std::isnan(b) ? std::nanf("") : std::fmax(a, b);
}

}  // namespace lacuna::kernels::cuda
