// The warp-wide intrinsics of CUDA and of kernels/cuda/ptx.cuh, on the exchange of block.h.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "tests/cuda_emulator/block.h"

namespace cuda_emulator {

template <typename T>
struct ShuffleOperand final {
  T value;
  int source;  // lane; its own when the shuffle leaves its segment
};

// What a lane reads from one that is not there is undefined: all ones here.
template <typename T>
T Shuffle(uint32_t mask, const char* what, T value, int source) {
  static_assert(std::is_trivially_copyable_v<T>);
  ShuffleOperand<T> operand{value, source};
  WarpExchange(mask, what, &operand, [](void* const* lanes, uint32_t present) {
    T values[kLanes];
    std::memset(static_cast<void*>(values), 0xff, sizeof(values));
    for (int lane = 0; lane < kLanes; ++lane) {
      if ((present >> lane & 1) != 0) {
        values[lane] = static_cast<const ShuffleOperand<T>*>(lanes[lane])->value;
      }
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      if ((present >> lane & 1) == 0) continue;
      auto& to = *static_cast<ShuffleOperand<T>*>(lanes[lane]);
      to.value = values[to.source];
    }
  });
  return operand.value;
}

// Combines the values of all lanes, in ascending order of lanes, to one that all get.
template <typename T, typename Fn>
T Reduce(uint32_t mask, const char* what, T value, Fn) {
  static_assert(std::is_empty_v<Fn>);
  WarpExchange(mask, what, &value, [](void* const* lanes, uint32_t present) {
    T all{};
    bool first = true;
    for (int lane = 0; lane < kLanes; ++lane) {
      if ((present >> lane & 1) == 0) continue;
      const T own = *static_cast<const T*>(lanes[lane]);
      all = first ? own : Fn{}(all, own);
      first = false;
    }
    for (int lane = 0; lane < kLanes; ++lane) {
      if ((present >> lane & 1) != 0) *static_cast<T*>(lanes[lane]) = all;
    }
  });
  return value;
}

struct Or final {
  uint32_t operator()(uint32_t a, uint32_t b) const { return a | b; }
};
inline uint32_t Ballot(uint32_t mask, const char* what, int predicate) {
  return Reduce(mask, what, predicate != 0 ? 1u << Lane() : 0u, Or{});
}

}  // namespace cuda_emulator

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int segment = cuda_emulator::Lane() & ~(width - 1);
  return cuda_emulator::Shuffle(mask, "__shfl_sync", value, segment + (source & (width - 1)));
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = cuda_emulator::Lane();
  const int source = lane - static_cast<int>(delta);
  const bool outside = source < (lane & ~(width - 1));
  return cuda_emulator::Shuffle(mask, "__shfl_up_sync", value, outside ? lane : source);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  const int lane = cuda_emulator::Lane();
  const int source = lane + static_cast<int>(delta);
  const bool outside = source > (lane | (width - 1));
  return cuda_emulator::Shuffle(mask, "__shfl_down_sync", value, outside ? lane : source);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32) {
  const int lane = cuda_emulator::Lane();
  const int source = lane ^ lanes;
  const bool outside = source > (lane | (width - 1)) || source >= 32;
  return cuda_emulator::Shuffle(mask, "__shfl_xor_sync", value, outside ? lane : source);
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return cuda_emulator::Ballot(mask, "__ballot_sync", predicate);
}
inline int __any_sync(unsigned mask, int predicate) {
  return cuda_emulator::Ballot(mask, "__any_sync", predicate) != 0 ? 1 : 0;
}
inline int __all_sync(unsigned mask, int predicate) {
  return cuda_emulator::Ballot(mask, "__all_sync", predicate == 0 ? 1 : 0) == 0 ? 1 : 0;
}
inline void __syncwarp(unsigned mask = ~0u) { cuda_emulator::Ballot(mask, "__syncwarp", 0); }
// Any set of lanes that holds the caller is right; this is the least.
inline unsigned __activemask() { return 1u << cuda_emulator::Lane(); }

template <typename T>
unsigned __match_any_sync(unsigned mask, T value) {
  struct Operand final {
    T value;
    unsigned equal;
  } operand{value, 0};
  cuda_emulator::WarpExchange(
      mask, "__match_any_sync", &operand, [](void* const* lanes, uint32_t present) {
        for (int a = 0; a < 32; ++a) {
          if ((present >> a & 1) == 0) continue;
          auto& to = *static_cast<Operand*>(lanes[a]);
          for (int b = 0; b < 32; ++b) {
            if ((present >> b & 1) == 0) continue;
            if (std::memcmp(&static_cast<Operand*>(lanes[b])->value, &to.value, sizeof(T)) == 0) {
              to.equal |= 1u << b;
            }
          }
        }
      });
  return operand.equal;
}
template <typename T>
unsigned __match_all_sync(unsigned mask, T value, int* same) {
  const unsigned equal = __match_any_sync(mask, value);
  *same = cuda_emulator::Ballot(mask, "__match_all_sync", equal != mask) == 0 ? 1 : 0;
  return *same != 0 ? mask : 0;
}

#define LACUNA_EMULATED_REDUCE(name, type, expression)                                           \
  inline type name(unsigned mask, type value) {                                                  \
    return cuda_emulator::Reduce(mask, #name, value, [](type a, type b) { return expression; }); \
  }
LACUNA_EMULATED_REDUCE(__reduce_add_sync, unsigned, a + b)
LACUNA_EMULATED_REDUCE(__reduce_min_sync, unsigned, a < b ? a : b)
LACUNA_EMULATED_REDUCE(__reduce_max_sync, unsigned, a > b ? a : b)
LACUNA_EMULATED_REDUCE(__reduce_and_sync, unsigned, a& b)
LACUNA_EMULATED_REDUCE(__reduce_or_sync, unsigned, a | b)
LACUNA_EMULATED_REDUCE(__reduce_xor_sync, unsigned, a ^ b)
LACUNA_EMULATED_REDUCE(__reduce_add_sync, int,
                       static_cast<int>(static_cast<unsigned>(a) + static_cast<unsigned>(b)))
LACUNA_EMULATED_REDUCE(__reduce_min_sync, int, a < b ? a : b)
LACUNA_EMULATED_REDUCE(__reduce_max_sync, int, a > b ? a : b)
#undef LACUNA_EMULATED_REDUCE
