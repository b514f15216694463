#include "engine/model/head_order.h"

namespace lacuna::engine {

HeadOrder::HeadOrder(const kvcache::SparsePlan& residency) : kv_heads_(residency.shape.kv_heads) {
  for (int32_t layer = 0; layer < residency.shape.layers; ++layer) {
    full_.push_back(0);
    for (const bool streams : {false, true}) {
      for (int32_t head = 0; head < kv_heads_; ++head) {
        const kvcache::HeadPlan& plan = residency.head(layer, head);
        if ((plan.role == kvcache::HeadRole::kStreaming) != streams) continue;
        heads_.push_back(head);
        full_.back() += streams ? 0 : 1;
        if (!streams) continue;
        decode_shape_ = plan.decode;  // the same of all
        prefill_shape_ = plan.prefill;
      }
    }
  }
}

std::vector<kvcache::MetadataStore> ArrangedStores(std::vector<kvcache::MetadataStore> stores,
                                                   const HeadOrder* order) {
  for (kvcache::MetadataStore& store : stores) {
    if (order != nullptr)
      store.channels = order->Arranged(std::span<const int16_t>(store.channels));
  }
  return stores;
}

}  // namespace lacuna::engine
