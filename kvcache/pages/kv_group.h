// KvGroup: a set of (layer, kv head) with one residency rule; one page id serves all of them. SEAM.
//
// Full groups keep every page of a sequence. Window groups (sliding-window layers, streaming heads,
// attention sinks) keep the sink tokens and the last window_tokens; pages in between are freed.
#pragma once

#include <cstdint>
#include <vector>

namespace lacuna::kvcache {

struct KvLayer final {
  int32_t layer = 0;
  int32_t kv_heads = 0;    // heads of this layer that live in this group
  int32_t first_head = 0;  // they are neighbours, from this one on
};

struct KvGroup final {
  std::vector<KvLayer> layers;
  int32_t head_dim = 0;
  int32_t window_tokens = 0;  // 0: full. Counts the query's own key.
  int32_t sink_tokens = 0;

  bool full() const { return window_tokens == 0; }
};

}  // namespace lacuna::kvcache
