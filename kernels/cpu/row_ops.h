// RowOps: the elementwise ops on one row, compiled once per instruction set. Any thread.
//
// All arithmetic is f32; a row's bits depend on that row alone. Activations are bf16 or f32.
#pragma once

#include <cstdint>

#include "kernels/core/dtype.h"
#include "kernels/cpu/isa.h"

namespace lacuna::kernels::cpu {

struct RmsNormRow final {
  const void* x;
  const float* weight;
  void* out;  // may be x
  DType x_dtype;
  DType out_dtype;
  bool accumulate;  // out is f32
  float eps;
  int64_t dim;
};

struct RopeRow final {
  void* x;  // one head
  const float* cosines;
  const float* sines;
  DType dtype;
  bool interleaved;
  int64_t pairs;
};

struct GatedRow final {
  const void* gate;
  const void* up;
  void* out;
  DType dtype;
  bool gelu;  // else silu
  int64_t dim;
};

struct EmbedRow final {
  const void* table_row;
  float* out;
  DType dtype;  // of the table: f32, bf16 or f16
  float scale;
  int64_t dim;
};

struct RowOps final {
  void (*rms_norm)(const RmsNormRow& row);
  void (*rope)(const RopeRow& row);
  void (*gated)(const GatedRow& row);
  void (*embed)(const EmbedRow& row);
  void (*softcap)(float* x, int64_t dim, float cap);
};

const RowOps& RowOpsOf(Isa isa);

}  // namespace lacuna::kernels::cpu
