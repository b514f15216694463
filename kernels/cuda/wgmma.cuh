// wgmma: the matrix instruction of Hopper (sm_90a), d[64 x N] += a[64 x 16] * b[16 x N] with f32
// accumulators in registers, by a warpgroup. Issue is asynchronous: Fence, Issue..., Commit, Wait,
// and Pin the accumulators after the wait so that the compiler does not read them before it.
//
// Fragments: warp w of the group owns rows 16w..16w+15; lane l holds, of each 8-column group j,
// d[4j+0..1] = row l / 4, columns 8j + l % 4 * 2 + {0, 1}, and d[4j+2..3] the same of row l / 4
// + 8. So the f32 scores of 16 columns, packed in pairs, are the `a` registers of 16 inner
// elements. Source: PTX ISA 9.0, "Asynchronous Warpgroup Level Matrix Instructions".
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

namespace lacuna::kernels::cuda {

// Operand in shared memory made of 128-byte swizzled atoms of 8 rows x 128 bytes (1024-byte
// aligned, as a stripe of kv_layout.cuh). K-major (rows are M or N, the 128 bytes are inner
// elements): `group_stride` bytes between groups of 8 rows, the other stride is unused. MN-major
// (rows are inner elements): `group_stride` between groups of 8 inner elements, `stripe_stride`
// between the stripes of 64 columns. Advance within shared memory with
// AdvanceOperand.
__device__ inline uint64_t SwizzledOperand(uint32_t address, uint32_t group_stride,
                                           uint32_t stripe_stride = 16) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  return kSwizzle128 | uint64_t{group_stride >> 4} << 32 | uint64_t{stripe_stride >> 4} << 16 |
         ((address & 0x3ffff) >> 4);
}

__device__ inline uint64_t AdvanceOperand(uint64_t operand, uint32_t bytes) {
  return (operand & 0xffffffff00000000u) | (static_cast<uint32_t>(operand) + (bytes >> 4));
}

__device__ inline void WgmmaFence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ inline void WgmmaCommit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kGroupsLeft>
__device__ inline void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroupsLeft) : "memory");
}
// As WgmmaWait<0>, in other words: the compiler does not merge it with one of another branch.
__device__ inline void WgmmaWaitAll() {
  asm volatile("wgmma.wait_group.sync.aligned 0;  // all" ::: "memory");
}
template <int kCount>
__device__ inline void Pin(float (&registers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+f"(registers[i])::"memory");
}
template <int kCount>
__device__ inline void Pin(uint32_t (&registers)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) asm volatile("" : "+r"(registers[i])::"memory");
}

// Operand lists of the assembly below: %0 .. %(count - 1), and the accumulators bound to them.
#define LACUNA_WGMMA_D32                                                              \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, " \
  "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}"
#define LACUNA_WGMMA_D64                                                              \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, " \
  "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, "  \
  "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, "  \
  "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}"
#define LACUNA_WGMMA_D128                                                                    \
  "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, "        \
  "%18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, "         \
  "%34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, "         \
  "%50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, %64, %65, "         \
  "%66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, %81, "         \
  "%82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, "         \
  "%98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, " \
  "%113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}"
#define LACUNA_WGMMA_BIND8(d, i)                                                              \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define LACUNA_WGMMA_BIND32(d, i)                                                        \
  LACUNA_WGMMA_BIND8(d, i), LACUNA_WGMMA_BIND8(d, i + 8), LACUNA_WGMMA_BIND8(d, i + 16), \
      LACUNA_WGMMA_BIND8(d, i + 24)
#define LACUNA_WGMMA_BIND64(d, i) LACUNA_WGMMA_BIND32(d, i), LACUNA_WGMMA_BIND32(d, i + 32)

// d = (kAccumulate ? d : 0) + a * b, both K-major; N = 2 * kCount.
template <typename T, bool kAccumulate, int kCount>
__device__ inline void WgmmaShared(float (&d)[kCount], uint64_t a, uint64_t b) {
  static_assert(kCount == 32 || kCount == 64);
  constexpr bool kHalf = std::is_same_v<T, __half>;
  static_assert(kHalf || std::is_same_v<T, __nv_bfloat16>);
  if constexpr (kCount == 32 && kHalf) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 " LACUNA_WGMMA_D32
        ", %32, %33, p, 1, 1, 0, 0;}"
        : LACUNA_WGMMA_BIND32(d, 0)
        : "l"(a), "l"(b), "n"(kAccumulate ? 1 : 0));
  } else if constexpr (kCount == 32 && !kHalf) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " LACUNA_WGMMA_D32
        ", %32, %33, p, 1, 1, 0, 0;}"
        : LACUNA_WGMMA_BIND32(d, 0)
        : "l"(a), "l"(b), "n"(kAccumulate ? 1 : 0));
  } else if constexpr (kCount == 64 && kHalf) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 " LACUNA_WGMMA_D64
        ", %64, %65, p, 1, 1, 0, 0;}"
        : LACUNA_WGMMA_BIND64(d, 0)
        : "l"(a), "l"(b), "n"(kAccumulate ? 1 : 0));
  } else if constexpr (kCount == 64 && !kHalf) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " LACUNA_WGMMA_D64
        ", %64, %65, p, 1, 1, 0, 0;}"
        : LACUNA_WGMMA_BIND64(d, 0)
        : "l"(a), "l"(b), "n"(kAccumulate ? 1 : 0));
  }
}

// low, high = (accumulates ? low, high : 0) + a * b, both K-major; `b` has 256 rows, of which the
// first 128 make `low`.
template <typename T>
__device__ inline void WgmmaSharedPair(float (&low)[64], float (&high)[64], uint64_t a, uint64_t b,
                                       bool accumulates) {
  if constexpr (std::is_same_v<T, __half>) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %130, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.f16.f16 " LACUNA_WGMMA_D128
        ", %128, %129, p, 1, 1, 0, 0;}"
        : LACUNA_WGMMA_BIND64(low, 0), LACUNA_WGMMA_BIND64(high, 0)
        : "l"(a), "l"(b), "r"(accumulates ? 1 : 0));
  } else {
    static_assert(std::is_same_v<T, __nv_bfloat16>);
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %130, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 " LACUNA_WGMMA_D128
        ", %128, %129, p, 1, 1, 0, 0;}"
        : LACUNA_WGMMA_BIND64(low, 0), LACUNA_WGMMA_BIND64(high, 0)
        : "l"(a), "l"(b), "r"(accumulates ? 1 : 0));
  }
}

// d = (kAccumulate ? d : 0) + a * b, a in registers; b MN-major if kMajorN, else K-major.
template <typename T, bool kMajorN, bool kAccumulate, int kCount>
__device__ inline void WgmmaRegisters(float (&d)[kCount], const uint32_t* a, uint64_t b) {
  static_assert(kCount == 32 || kCount == 64);
  constexpr bool kHalf = std::is_same_v<T, __half>;
  static_assert(kHalf || std::is_same_v<T, __nv_bfloat16>);
  if constexpr (kCount == 32 && kHalf) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 " LACUNA_WGMMA_D32
        ", {%32, %33, %34, %35}, %36, p, 1, 1, %38;}"
        : LACUNA_WGMMA_BIND32(d, 0)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kAccumulate ? 1 : 0),
          "n"(kMajorN ? 1 : 0));
  } else if constexpr (kCount == 32 && !kHalf) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %37, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " LACUNA_WGMMA_D32
        ", {%32, %33, %34, %35}, %36, p, 1, 1, %38;}"
        : LACUNA_WGMMA_BIND32(d, 0)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kAccumulate ? 1 : 0),
          "n"(kMajorN ? 1 : 0));
  } else if constexpr (kCount == 64 && kHalf) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 " LACUNA_WGMMA_D64
        ", {%64, %65, %66, %67}, %68, p, 1, 1, %70;}"
        : LACUNA_WGMMA_BIND64(d, 0)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kAccumulate ? 1 : 0),
          "n"(kMajorN ? 1 : 0));
  } else if constexpr (kCount == 64 && !kHalf) {
    asm volatile(
        "{.reg .pred p; setp.ne.b32 p, %69, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " LACUNA_WGMMA_D64
        ", {%64, %65, %66, %67}, %68, p, 1, 1, %70;}"
        : LACUNA_WGMMA_BIND64(d, 0)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(kAccumulate ? 1 : 0),
          "n"(kMajorN ? 1 : 0));
  }
}

#undef LACUNA_WGMMA_D32
#undef LACUNA_WGMMA_D64
#undef LACUNA_WGMMA_D128
#undef LACUNA_WGMMA_BIND8
#undef LACUNA_WGMMA_BIND32
#undef LACUNA_WGMMA_BIND64

}  // namespace lacuna::kernels::cuda
