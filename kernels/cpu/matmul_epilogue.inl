// out = alpha * (c + bias), rounded and accumulated as asked. Included by the kernels of each
// instruction set inside its own namespace; LACUNA_ISA names it. Calls nothing shared.
#include <cstdint>

#include "kernels/cpu/matmul_kernels.h"

namespace lacuna::kernels::cpu::LACUNA_ISA {
namespace {

inline uint16_t RoundToBf16(float value) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, value);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t quiet_nan = (bits >> 16) | 0x40u;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded);
}

inline __attribute__((always_inline)) void FinishRow(const PanelArgs& args, int64_t row,
                                                     const float* c, int64_t columns) {
  float y[kPanelColumns];
  for (int64_t j = 0; j < columns; ++j) {
    y[j] = args.alpha * (args.bias != nullptr ? c[j] + args.bias[j] : c[j]);
  }
  if (args.out_bf16) {
    uint16_t* out = static_cast<uint16_t*>(args.out) + row * args.out_stride;
    for (int64_t j = 0; j < columns; ++j) out[j] = RoundToBf16(y[j]);
  } else {
    float* out = static_cast<float*>(args.out) + row * args.out_stride;
    for (int64_t j = 0; j < columns; ++j) out[j] = args.accumulate ? out[j] + y[j] : y[j];
  }
}

// c: [rows][kPanelColumns], for the rows of out from `first` on.
void Finish(const PanelArgs& args, int64_t first, int64_t rows, const float* c) {
  for (int64_t r = 0; r < rows; ++r) {
    if (args.columns == kPanelColumns) {
      FinishRow(args, first + r, c + r * kPanelColumns, kPanelColumns);
    } else {
      FinishRow(args, first + r, c + r * kPanelColumns, args.columns);
    }
  }
}

}  // namespace
}  // namespace lacuna::kernels::cpu::LACUNA_ISA
