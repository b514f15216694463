#include "kvcache/sparse/plan_storage.h"

#include <algorithm>

namespace lacuna::kvcache {

std::vector<Residency> ResidencyOf(const SparsePlan& plan) {
  std::vector<Residency> groups(1);
  for (int32_t layer = 0; layer < plan.shape.layers; ++layer) {
    for (int32_t kv_head = 0; kv_head < plan.shape.kv_heads; ++kv_head) {
      const HeadPlan& head = plan.head(layer, kv_head);
      const bool streams = head.role == HeadRole::kStreaming;
      const auto found = std::ranges::find_if(groups, [&](const Residency& group) {
        return streams ? group.window_tokens == head.decode.window_tokens &&
                             group.prefill_window_tokens == head.prefill.window_tokens &&
                             group.sink_tokens == head.decode.sink_tokens
                       : group.window_tokens == 0;
      });
      if (found != groups.end()) {
        found->heads.push_back({layer, kv_head});
      } else {
        groups.push_back({.sink_tokens = head.decode.sink_tokens,
                          .window_tokens = head.decode.window_tokens,
                          .prefill_window_tokens = head.prefill.window_tokens,
                          .heads = {{layer, kv_head}}});
      }
    }
  }
  return groups;
}

double MetadataBytesPerToken(const SparsePlan& plan) {
  int64_t bytes = 0;  // of one page
  for (int32_t layer = 0; layer < plan.shape.layers; ++layer) {
    const LayerPlan& one = plan.layers[static_cast<size_t>(layer)];
    for (int32_t kv_head = 0; kv_head < plan.shape.kv_heads; ++kv_head) {
      if (plan.head(layer, kv_head).role != HeadRole::kFull) continue;
      if (one.stores_metadata)
        bytes += plan.decode.metadata.PageBytes(plan.shape.head_dim, plan.shape.page_tokens);
      if (one.stores_refine_metadata)
        bytes += plan.decode.refine_metadata.PageBytes(plan.shape.head_dim, plan.shape.page_tokens);
    }
  }
  return static_cast<double>(bytes) / plan.shape.page_tokens;
}

std::vector<MetadataStore> MetadataStores(std::span<const SparsePlan* const> plans) {
  std::vector<MetadataStore> stores;
  for (const SparsePlan* plan : plans) {
    for (const bool refine : {false, true}) {
      const MetadataSpec& spec = refine ? plan->decode.refine_metadata : plan->decode.metadata;
      if (!spec.any()) continue;
      auto store = std::ranges::find(stores, spec, &MetadataStore::spec);
      if (store == stores.end()) {
        const bool labels = spec.kind == MetadataKind::kLabels;
        stores.push_back({.spec = spec,
                          .layers = std::vector<bool>(plan->layers.size()),
                          .channels = labels ? plan->channels : std::vector<int16_t>()});
        store = stores.end() - 1;
      }
      for (size_t layer = 0; layer < plan->layers.size(); ++layer) {
        const LayerPlan& one = plan->layers[layer];
        const bool stored = refine ? one.stores_refine_metadata : one.stores_metadata;
        if (stored) store->layers[layer] = true;
      }
    }
  }
  return stores;
}

}  // namespace lacuna::kvcache
