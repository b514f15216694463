// AttentionObserver: sees the queries and keys of every layer as they are computed: for
// calibration (engine/calibrate). Called on the thread that runs Forward, in the order of layers.
#pragma once

#include <cstdint>

#include "kernels/core/tensor_view.h"

namespace lacuna::engine {

class AttentionObserver {
 public:
  virtual ~AttentionObserver() = default;
  // All rows of one step, normed and rotated; valid during the call.
  // q: [rows, q_heads, head_dim] act; k: [rows, kv_heads, head_dim] act; positions: [rows] i32.
  virtual void Observe(int64_t layer, const TensorView& q, const TensorView& k,
                       const TensorView& positions) = 0;
};

}  // namespace lacuna::engine
