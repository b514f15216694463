// HeadOrder: how the kv heads of each layer stand in a model whose streaming heads keep only sink
// and window: those that keep all pages first, so that each KvGroup's heads are neighbours.
//
// Weights are loaded in this order, query heads with their kv head; whoever reads a table by head
// (of a plan, of a store) reads it through the order. Immutable; any thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kvcache/sparse/plan.h"
#include "kvcache/sparse/plan_storage.h"

namespace lacuna::engine {

class HeadOrder final {
 public:
  explicit HeadOrder(const kvcache::SparsePlan& residency);

  int32_t layers() const { return static_cast<int32_t>(full_.size()); }
  int32_t kv_heads() const { return kv_heads_; }
  // Heads of the layer that keep all pages: places [0, full_heads).
  int32_t full_heads(int64_t layer) const { return full_[static_cast<size_t>(layer)]; }
  // The number, in the checkpoint and in plans, of the head at each place.
  std::span<const int32_t> heads(int64_t layer) const {
    return std::span(heads_).subspan(static_cast<size_t>(layer * kv_heads_),
                                     static_cast<size_t>(kv_heads_));
  }
  // What the other heads see.
  kernels::StaticShape decode_shape() const { return decode_shape_; }
  kernels::StaticShape prefill_shape() const { return prefill_shape_; }

  // [layers, kv_heads, per_head] values as plans have them, in the order of the places.
  template <typename T>
  std::vector<T> Arranged(std::span<const T> values) const {
    std::vector<T> arranged;
    const size_t per_head = values.size() / heads_.size();
    for (size_t place = 0; place < heads_.size(); ++place) {
      const size_t layer = place / static_cast<size_t>(kv_heads_);
      const size_t head =
          layer * static_cast<size_t>(kv_heads_) + static_cast<size_t>(heads_[place]);
      const auto from = values.subspan(head * per_head, per_head);
      arranged.insert(arranged.end(), from.begin(), from.end());
    }
    return arranged;
  }

 private:
  int32_t kv_heads_ = 0;
  std::vector<int32_t> heads_;  // [layers, kv_heads]
  std::vector<int32_t> full_;   // [layers]
  kernels::StaticShape decode_shape_, prefill_shape_;
};

// The stores with their tables in the order of a model's heads (null: as they are).
std::vector<kvcache::MetadataStore> ArrangedStores(std::vector<kvcache::MetadataStore> stores,
                                                   const HeadOrder* order);

}  // namespace lacuna::engine
