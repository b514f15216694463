// Overflow-safe arithmetic for sizes and offsets that come from a file or a request.
#pragma once

#include <concepts>
#include <cstdint>
#include <limits>
#include <optional>
#include <utility>

namespace lacuna {

template <std::integral T>
constexpr std::optional<T> CheckedAdd(T a, T b) {
  T out{};
  return __builtin_add_overflow(a, b, &out) ? std::nullopt : std::optional<T>(out);
}

template <std::integral T>
constexpr std::optional<T> CheckedMul(T a, T b) {
  T out{};
  return __builtin_mul_overflow(a, b, &out) ? std::nullopt : std::optional<T>(out);
}

// The value in the narrower type, or nothing when it does not fit.
template <std::integral To, std::integral From>
constexpr std::optional<To> CheckedNarrow(From value) {
  if (!std::in_range<To>(value)) return std::nullopt;
  return static_cast<To>(value);
}

constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t RoundUp(int64_t a, int64_t b) { return CeilDiv(a, b) * b; }

}  // namespace lacuna
