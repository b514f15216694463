// What plans mean for memory: which heads keep which tokens, and what is stored beside keys. Pure
// functions for whoever plans capacity and builds KvGroups, at start; any thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kvcache/sparse/plan.h"

namespace lacuna::kvcache {

// Heads that keep the same tokens: the KvGroups that a server of this plan alone would have.
struct Residency final {
  struct LayerHead {
    int32_t layer = 0, kv_head = 0;
    bool operator==(const LayerHead&) const = default;
  };
  int32_t sink_tokens = 0;
  int32_t window_tokens = 0;          // while generating; 0: all tokens are kept
  int32_t prefill_window_tokens = 0;  // while the prompt is computed
  std::vector<LayerHead> heads;       // ascending
  bool operator==(const Residency&) const = default;
};
// The first keeps all tokens (it may have no heads). Spans keep all: they grow with the sequence.
std::vector<Residency> ResidencyOf(const SparsePlan& plan);

// Bytes of metadata per token, all layers and heads together.
double MetadataBytesPerToken(const SparsePlan& plan);

// One kind of metadata, and the layers whose pages carry it.
struct MetadataStore final {
  MetadataSpec spec;
  std::vector<bool> layers;       // [layers]
  std::vector<int16_t> channels;  // labels: [layers, kv_heads, spec.channels]
  bool operator==(const MetadataStore&) const = default;
};
// What a server must write so that rows of any of `plans` can run in one step on shared pages. A
// plan finds its own by spec. All plans are of one shape.
std::vector<MetadataStore> MetadataStores(std::span<const SparsePlan* const> plans);

}  // namespace lacuna::kvcache
