// Eight consecutive elements of a row as f32, whatever their type: what the elementwise kernels
// read and write. kAligned: 16-byte accesses; else one by one, `count` of them. Device code.
//
// Both ways give the same bits, so the alignment of a batch never shows in a result.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "kernels/core/dtype.h"
#include "kernels/core/status.h"
#include "kernels/core/tensor_view.h"

namespace lacuna::kernels::cuda {

inline constexpr int kVector = 8;

// Calls fn with a value of the C++ type of `dtype`, a float type.
template <typename Fn>
Status WithType(DType dtype, Fn&& fn) {
  switch (dtype) {
    case DType::kF32:
      return fn(float{});
    case DType::kBF16:
      return fn(__nv_bfloat16{});
    case DType::kF16:
      return fn(__half{});
    case DType::kI32:
      break;
  }
  return InvalidArgument("cuda: got i32, need a float type");
}
template <typename Fn>
Status WithBool(bool value, Fn&& fn) {
  return value ? fn(std::true_type{}) : fn(std::false_type{});
}

// Whether 16-byte accesses at multiples of eight elements of every row are legal.
inline bool VectorAligned(const TensorView& view) {
  const auto bytes = static_cast<int64_t>(DTypeBytes(view.dtype()));
  return reinterpret_cast<uintptr_t>(view.data()) % 16 == 0 &&
         view.dim(view.rank() - 1) % kVector == 0 &&
         (view.rank() == 1 || view.stride(0) * bytes % 16 == 0);
}

#ifdef __CUDACC__
__device__ inline float ToF32(float value) { return value; }
__device__ inline float ToF32(__nv_bfloat16 value) { return __bfloat162float(value); }
__device__ inline float ToF32(__half value) { return __half2float(value); }
template <typename T>
__device__ inline T FromF32(float value);
template <>
__device__ inline float FromF32<float>(float value) {
  return value;
}
template <>
__device__ inline __nv_bfloat16 FromF32<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}
template <>
__device__ inline __half FromF32<__half>(float value) {
  return __float2half_rn(value);
}

// Sixteen bytes in one load: of a struct of floats the compiler makes single ones.
__device__ inline void LoadFour(const float* from, float* to) {
  const float4 four = *reinterpret_cast<const float4*>(from);
  to[0] = four.x;
  to[1] = four.y;
  to[2] = four.z;
  to[3] = four.w;
}

// Eight elements as they lie.
template <typename T>
struct alignas(16) Pack final {
  uint32_t words[kVector * sizeof(T) / 4];
};

template <typename T>
__device__ inline void Unpack(const Pack<T>& pack, float (&to)[kVector]) {
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    if constexpr (sizeof(T) == 4) {
      to[i] = __uint_as_float(pack.words[i]);
    } else {
      const uint32_t word = pack.words[i / 2];
      if constexpr (std::is_same_v<T, __nv_bfloat16>) {  // the upper half of an f32
        to[i] = __uint_as_float(i % 2 == 0 ? word << 16 : word & 0xffff0000u);
      } else {
        to[i] =
            __half2float(__ushort_as_half(static_cast<uint16_t>(i % 2 == 0 ? word : word >> 16)));
      }
    }
  }
}

template <typename T>
__device__ inline Pack<T> PackOf(const float (&from)[kVector]) {
  Pack<T> pack;
  if constexpr (sizeof(T) == 4) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) pack.words[i] = __float_as_uint(from[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kVector / 2; ++i) {
      if constexpr (std::is_same_v<T, __nv_bfloat16>) {
        const __nv_bfloat162 pair = __floats2bfloat162_rn(from[2 * i], from[2 * i + 1]);
        pack.words[i] = *reinterpret_cast<const uint32_t*>(&pair);
      } else {
        const __half2 pair = __floats2half2_rn(from[2 * i], from[2 * i + 1]);
        pack.words[i] = *reinterpret_cast<const uint32_t*>(&pair);
      }
    }
  }
  return pack;
}

template <bool kAligned, typename T>
__device__ inline void LoadVector(const T* from, int count, float (&to)[kVector]) {
  if constexpr (kAligned) {
    Unpack(*reinterpret_cast<const Pack<T>*>(from), to);
  } else {
#pragma unroll
    for (int i = 0; i < kVector; ++i) to[i] = i < count ? ToF32(from[i]) : 0.0f;
  }
}

template <bool kAligned, typename T>
__device__ inline void StoreVector(T* to, int count, const float (&from)[kVector]) {
  if constexpr (kAligned) {
    *reinterpret_cast<Pack<T>*>(to) = PackOf<T>(from);
  } else {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      if (i < count) to[i] = FromF32<T>(from[i]);
    }
  }
}
#endif

}  // namespace lacuna::kernels::cuda
