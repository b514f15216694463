// Ops on attention outputs: repair of sparse prefill, and the comparison of sparse with dense.
// SEAM.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/core/tensor_view.h"
#include "kernels/ops/attention.h"
#include "kernels/ops/sparse_kinds.h"

namespace lacuna::kernels {

// How many rows of the chunk have a position that is a multiple of `stride`.
inline int64_t CorrectedRows(const PrefillChunk& chunk, int64_t stride) {
  const int64_t first = chunk.first_position, end = first + chunk.rows;
  return (end + stride - 1) / stride - (first + stride - 1) / stride;
}

// Rows whose position is a multiple of `stride` were also computed densely; row j of `dense` is the
// j-th such row, over all chunks in order. With s(r) the last such row at or before r in the chunk:
//   kDelta:      out[r] += dense[s(r)] - out[s(r)]  for every r from the chunk's first such row on
//   kOverwrite:  out[s] = dense[s]
// (Delta Attention: Willette et al. 2025.)
struct CorrectPrefillArgs final {
  PrefillCorrectKind kind = PrefillCorrectKind::kDelta;
  std::span<const PrefillChunk> chunks;  // host memory
  int32_t stride_rows = 64;
  TensorView dense;  // [dense rows, q_heads, head_dim] act
  TensorView out;    // [tokens, q_heads, head_dim] act, in place
};

// How far a sparse decode row is from the dense one, in one layer. A head whose dense lse is -inf
// has nothing to capture: mass 1. A sparse row beside a dense one of zeros: error 1, 0 if equal.
struct AttentionAudit final {
  float captured_mass = 0;  // sum over layers of mean over heads of exp(lse_sparse - lse_dense)
  float output_error = 0;   // sum over layers of |sparse - dense| / |dense|, 2-norms of the row
  int32_t layers = 0;
};
struct CompareAttentionArgs final {
  TensorView sparse, dense;          // [rows, q_heads, head_dim] act
  TensorView sparse_lse, dense_lse;  // [rows, q_heads] f32
  AttentionAudit* audits = nullptr;  // audits[row * stride] is added to
  int64_t stride = 1;
};

}  // namespace lacuna::kernels
