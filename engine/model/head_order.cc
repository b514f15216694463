#include "engine/model/head_order.h"

#include <algorithm>

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

HeadLaunches::HeadLaunches(int32_t kv_heads, const HeadOrder* order)
    : all_stored_(order == nullptr) {
  for (int32_t layer = 0; order != nullptr && layer < order->layers(); ++layer) {
    counts_.push_back(order->full_heads(layer));
  }
  if (counts_.empty()) counts_.push_back(kv_heads);
  std::ranges::sort(counts_);
  counts_.erase(std::unique(counts_.begin(), counts_.end()), counts_.end());
}

int64_t HeadLaunches::StatsOf(int64_t rows, int64_t heads) const {
  int64_t before = 0;
  for (const int64_t count : counts_) before += count < heads ? count : 0;
  return rows * before;
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
