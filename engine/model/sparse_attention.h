// The attention of one layer of one step: dense rows and chunks, then class by class what plans
// say. Without classes it is two dense ops. Where the heads of a layer lie in two KvGroups, each
// group's are attended apart. Engine thread.
#pragma once

#include <cstdint>

#include "engine/model/model.h"
#include "kernels/core/status.h"
#include "kernels/core/tensor_view.h"
#include "kernels/ops/backend.h"

namespace lacuna::engine {

struct LayerAttention final {
  const StepInputs& step;
  int64_t layer = 0, layers = 0;
  int group = 0, layer_in_group = 0;
  TensorView q, out;  // [rows, q_heads, head_dim] act; of the heads in `pool`
  kernels::KvPool pool;
  kernels::AttentionParams params;     // of decode rows
  kernels::StaticShape prefill_shape;  // of chunks
  bool last = false;                   // only rows of last_chunks are read afterwards
};

Status AttendLayer(kernels::Backend& backend, const LayerAttention& layer, kernels::Stream& stream);

// Brings what is stored beside the layer's keys up to date with the step's rows.
Status AppendLayerMetadata(kernels::Backend& backend, const LayerAttention& layer,
                           kernels::Stream& stream);

}  // namespace lacuna::engine
