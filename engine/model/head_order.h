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

// Which heads of a layer one launch speaks of: all of them, with a shape for each that streams; or,
// where streaming heads have pages of their own, those alone that keep all pages, and layers differ
// in how many these are. Immutable; any thread.
class HeadLaunches final {
 public:
  // `order` may be null.
  HeadLaunches(int32_t kv_heads, const HeadOrder* order);

  // Whether what the streaming heads do not see is stored all the same.
  bool all_stored() const { return all_stored_; }
  bool TakesShapes(const kvcache::SparsePlan& plan) const {
    return plan.static_heads && all_stored_;
  }
  // Choices that a sequence with the plan keeps at one time, and where a layer's stands. Layers
  // that differ in their heads have one each.
  int64_t Slots(const kvcache::SparsePlan& plan) const {
    return all_stored_ ? plan.slots : plan.shape.layers;
  }
  int64_t SlotOf(const kvcache::SparsePlan& plan, int64_t layer) const {
    return all_stored_ ? plan.layers[static_cast<size_t>(layer)].slot : layer;
  }
  // What is added up, [rows, heads] for each number of heads that a launch speaks of: one area
  // behind the other. All of them, and where that for `heads` begins, for heads of kv.
  int64_t StatsCount(int64_t rows) const { return StatsOf(rows, counts_.back() + 1); }
  int64_t StatsOf(int64_t rows, int64_t heads) const;
  std::span<const int64_t> counts() const { return counts_; }

 private:
  bool all_stored_ = true;
  std::vector<int64_t> counts_;  // ascending; at least one
};

// The stores with their tables in the order of a model's heads (null: as they are).
std::vector<kvcache::MetadataStore> ArrangedStores(std::vector<kvcache::MetadataStore> stores,
                                                   const HeadOrder* order);

}  // namespace lacuna::engine
