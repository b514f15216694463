// The inner kernels of Matmul: some rows of x times one panel of the packed weight. Any thread.
//
// A panel is kPanelColumns output features. bf16: [k_padded / 2][kPanelColumns][2], the pairs that
// VDPBF16PS and the AMX tiles want; f32: [k_padded][kPanelColumns]. The padding is zero. In every
// kernel an output accumulates along k in one fixed order, whatever the number of rows: its bits
// depend on its own row of x alone.
#pragma once

#include <cstdint>

#include "kernels/cpu/isa.h"

namespace lacuna::kernels::cpu {

inline constexpr int64_t kPanelColumns = 32;
inline constexpr int64_t kKPadding = 32;  // k_padded is a multiple: one AMX tile of bf16

struct PanelArgs final {
  const void* x;  // [rows, k] bf16 or f32, as the panel
  int64_t x_stride;
  int64_t rows;
  int64_t k;
  const void* panel;
  int64_t columns;    // of this panel that exist, 1..kPanelColumns
  const float* bias;  // [columns] or null
  void* out;          // [rows, columns]
  int64_t out_stride;
  bool out_bf16;
  bool accumulate;
  float alpha;
  void* scratch;  // AMX: 32 rows of k_padded bf16 that belong to the calling worker
};
using PanelKernel = void (*)(const PanelArgs& args);

struct PanelKernels final {
  PanelKernel bf16;
  PanelKernel f32;
  int64_t strip_rows;  // computed together; blocks of rows are best a multiple
};

// Without AVX512_BF16 the weights are widened to f32 in registers.
const PanelKernels& PanelKernelsOf(Isa isa);

}  // namespace lacuna::kernels::cpu
