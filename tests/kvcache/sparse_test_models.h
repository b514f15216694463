// Shapes and made-up artefacts that the tests of profiles and plans share.
#pragma once

#include <cstdint>

#include "kvcache/sparse/artefacts.h"

namespace lacuna::kvcache {

inline AttentionShape Recall12m() {
  return {.layers = 6,
          .q_heads = 8,
          .kv_heads = 2,
          .head_dim = 64,
          .page_tokens = 64,
          .layer_window_tokens = {}};
}

inline AttentionShape Llama8B() {
  return {.layers = 32,
          .q_heads = 32,
          .kv_heads = 8,
          .head_dim = 128,
          .page_tokens = 64,
          .layer_window_tokens = {}};
}

// Every table, with values that differ from head to head.
inline SparseArtefacts MakeArtefacts(const AttentionShape& shape) {
  SparseArtefacts artefacts;
  artefacts.model = "made up";
  const int32_t kv = shape.layers * shape.kv_heads, q = shape.layers * shape.q_heads;
  for (int32_t i = 0; i < kv; ++i) {
    artefacts.head_scores.push_back(static_cast<float>((i * 7) % kv) / static_cast<float>(kv));
    for (int32_t c = 0; c < shape.head_dim; ++c) {
      artefacts.channels.push_back(static_cast<int16_t>((c * 5 + i) % shape.head_dim));
    }
  }
  for (int32_t i = 0; i < q; ++i) {
    artefacts.patterns.push_back(
        {i % 3 == 0 ? PatternKind::kAShape : PatternKind::kVerticalSlash, 100 + i, 800 + i});
    artefacts.spans.push_back(
        {static_cast<float>(1024 * (i % 3) - 1024), static_cast<float>(i % 8) / 8.0f});
    artefacts.prefill_p.push_back(0.9f);
    artefacts.thresholds.push_back(static_cast<float>(i) / 16.0f);
  }
  artefacts.planner_layers = {0, shape.layers / 2};
  return artefacts;
}

}  // namespace lacuna::kvcache
