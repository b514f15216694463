// Argument structs of the dense ops. SEAM.
//
// "act" is the activation type of the backend's precision: bf16, f16, or f32 in verification mode.
// Views may be strided in their outermost dimension. No op allocates; none keeps a pointer after it
// is done. Ids, row indices and positions are in range (checked at intake): a backend that reads
// them on the host refuses others, one that reads them on the device makes NaN of their rows.
#pragma once

#include <cstdint>

#include "kernels/core/tensor_view.h"

namespace lacuna::kernels {

// out[t, :] = scale * table[ids[t], :]
struct EmbedArgs final {
  TensorView ids;    // [tokens] i32
  TensorView table;  // [vocab, hidden] f32 | bf16 | f16
  TensorView out;    // [tokens, hidden] f32
  float scale = 1.0f;
};

// Root mean square norm over the last dimension (Zhang and Sennrich 2019):
//   y = x / sqrt(mean(x^2) + eps) * weight;   out = y, or out += y when `accumulate`.
// `x` may be the same memory as `out`. Models that scale by (1 + w) fold the 1 at load.
struct RmsNormArgs final {
  TensorView x;       // [rows, dim] or [rows, heads, dim], f32 | act
  TensorView weight;  // [dim] f32
  TensorView out;     // the shape of x, f32 | act
  float eps = 1e-6f;
  bool accumulate = false;  // out must be f32
};

// A weight matrix in the layout that the backend multiplies fastest; made once at load.
class PreparedMatrix {
 public:
  virtual ~PreparedMatrix() = default;
  virtual int64_t rows() const = 0;     // out features
  virtual int64_t columns() const = 0;  // in features
  virtual int64_t bytes() const = 0;
};

// out = alpha * (x * weight^T + bias), or out += ... when `accumulate` (out f32). Accumulates in
// f32.
struct MatmulArgs final {
  TensorView x;  // [tokens, in] act
  const PreparedMatrix* weight = nullptr;
  TensorView bias;  // [out] f32, or empty
  TensorView out;   // [tokens, out] f32 | act
  float alpha = 1.0f;
  bool accumulate = false;
};

enum class Activation { kSilu, kGeluTanh };

// out[:, i] = activation(gate_up[:, i]) * gate_up[:, ffn + i]
struct GatedActivationArgs final {
  TensorView gate_up;  // [tokens, 2 * ffn] act
  TensorView out;      // [tokens, ffn] act
  Activation activation = Activation::kSilu;
};

// out[i, :] = x[rows[i], :]
struct GatherRowsArgs final {
  TensorView x;     // [tokens, dim] f32
  TensorView rows;  // [count] i32
  TensorView out;   // [count, dim] f32
};

// x = cap * tanh(x / cap), in place
struct SoftcapArgs final {
  TensorView x;  // [rows, dim] f32
  float cap = 0.0f;
};

}  // namespace lacuna::kernels
