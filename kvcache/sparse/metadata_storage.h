// MetadataStorage: the device memory of all metadata: per store, KvGroup and layer, [pages,
// kv_heads] slabs. Page ids are those of the KvStorage beside it.
//
// All of it is allocated once, at start. A page that is given to somebody else needs no cleaning:
// its first token makes the entries again from the keys that are valid then. Only groups that keep
// all pages have metadata: heads with a window never choose. Engine thread only.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "kernels/core/status.h"
#include "kernels/device/device.h"
#include "kernels/ops/metadata.h"
#include "kvcache/pages/kv_group.h"
#include "kvcache/sparse/plan_storage.h"

namespace lacuna::kvcache {

class MetadataStorage final {
 public:
  // `stores` as MetadataStores gives them. kInvalidArgument: sizes that cannot be; kExhausted: the
  // device has not that much.
  static Result<std::unique_ptr<MetadataStorage>> Create(kernels::Device& device,
                                                         const std::vector<KvGroup>& groups,
                                                         const std::vector<int64_t>& group_pages,
                                                         int64_t page_tokens,
                                                         std::vector<MetadataStore> stores);

  // Of one page, all layers and stores together: what it costs beside KvStorage::PageBytes.
  static int64_t PageBytes(const KvGroup& group, int64_t page_tokens,
                           std::span<const MetadataStore> stores);

  size_t stores() const { return stores_.size(); }
  // Of layer groups[group].layers[layer_in_group]; its data is null where the store has nothing.
  kernels::MetadataPool pool(size_t store, int group, int layer_in_group) const {
    return pools_[store][static_cast<size_t>(group)][static_cast<size_t>(layer_in_group)];
  }
  // The same by what is stored; without data when nobody stores that here.
  kernels::MetadataPool Find(const MetadataSpec& spec, int group, int layer_in_group) const;
  // Whether some mean is taken of keys of the page before.
  bool reads_previous_pages() const { return reads_previous_pages_; }
  int64_t bytes() const;

 private:
  MetadataStorage() = default;
  Status UploadChannels(kernels::Device& device);

  std::vector<MetadataStore> stores_;
  std::vector<kernels::Buffer> channels_;  // [stores], of labels
  std::vector<kernels::Buffer> memory_;    // one per group that has any
  std::vector<std::vector<std::vector<kernels::MetadataPool>>> pools_;  // [store][group][layer]
  bool reads_previous_pages_ = false;
};

}  // namespace lacuna::kvcache
