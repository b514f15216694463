// DecoderWeights: a decoder's parameters on the device, fused as the forward pass multiplies them.
// Loaded once on one thread, immutable afterwards.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "engine/loader/checkpoint.h"
#include "engine/loader/model_config.h"
#include "engine/model/head_order.h"
#include "kernels/core/status.h"
#include "kernels/core/tensor_view.h"
#include "kernels/device/device.h"
#include "kernels/ops/backend.h"

namespace lacuna::engine {

// A tensor that owns its device memory.
struct Parameter final {
  kernels::Buffer memory;
  TensorView view;  // empty: the model has none
};

// y = x * weight^T + bias
struct Linear final {
  std::unique_ptr<kernels::PreparedMatrix> weight;
  Parameter bias;  // [out] f32, or empty
};

struct DecoderLayer final {
  // [hidden] f32 each; empty where the family has none.
  Parameter norm_before_attention, norm_after_attention, norm_before_mlp, norm_after_mlp;
  Parameter q_norm, k_norm;  // [head_dim], or [heads * head_dim]
  Linear qkv;                // [(q_heads + 2 kv_heads) * head_dim, hidden]
  Linear output;             // [hidden, q_heads * head_dim]
  Linear gate_up;            // [2 * ffn, hidden]
  Linear down;               // [hidden, ffn]
};

struct DecoderWeights final {
  Parameter embedding;  // [vocab, hidden], as stored
  std::vector<DecoderLayer> layers;
  Parameter final_norm;  // [hidden] f32
  Linear head;           // [vocab, hidden]
  int64_t parameters = 0;
  int64_t bytes = 0;
};

// `backend` null: every tensor is asked for, so that names and shapes are checked, but none kept.
// `heads`: the order in which each layer's heads are loaded; null: as stored.
Result<DecoderWeights> LoadDecoderWeights(const ModelConfig& config, WeightSource& source,
                                          kernels::Backend* backend,
                                          const HeadOrder* heads = nullptr);

}  // namespace lacuna::engine
