// Element types of tensors, and the scalar conversions between them (round to nearest even).
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace lacuna {

enum class DType : uint8_t { kF32, kBF16, kF16, kI32 };

constexpr size_t DTypeBytes(DType dtype) {
  return dtype == DType::kF32 || dtype == DType::kI32 ? 4 : 2;
}
std::string_view DTypeName(DType dtype);  // "f32", "bf16", "f16", "i32"

struct BF16 final {
  uint16_t bits = 0;
};
struct F16 final {
  uint16_t bits = 0;
};

inline float ToFloat(BF16 value) {
  return std::bit_cast<float>(static_cast<uint32_t>(value.bits) << 16);
}
inline BF16 ToBF16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {  // NaN stays a quiet NaN
    return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
  }
  return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}
float ToFloat(F16 value);
F16 ToF16(float value);

}  // namespace lacuna
