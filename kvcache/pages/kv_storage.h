// KvStorage: owns the device memory of every pool: per KvGroup and layer, [pages, kv_heads] slabs.
//
// All of it is allocated once, at start; which sequence owns a page is PagePool's business. One
// page index serves all layers of its group. Page 0 is an ordinary page. Engine thread only.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "kernels/core/dtype.h"
#include "kernels/core/status.h"
#include "kernels/device/device.h"
#include "kernels/ops/kv_pool.h"
#include "kvcache/pages/kv_group.h"

namespace lacuna::kvcache {

class KvStorage final {
 public:
  // `group_pages`: pages of each group's pool. kInvalidArgument: sizes that slots (i32) cannot
  // address; kExhausted: the device has not that much.
  static Result<std::unique_ptr<KvStorage>> Create(kernels::Device& device,
                                                   const std::vector<KvGroup>& groups,
                                                   std::vector<int64_t> group_pages,
                                                   int64_t page_tokens, DType dtype);

  // The pages of layer groups[group].layers[layer_in_group].
  kernels::KvPool pool(int group, int layer_in_group) const {
    return pools_[static_cast<size_t>(group)][static_cast<size_t>(layer_in_group)];
  }
  const std::vector<int64_t>& group_pages() const { return group_pages_; }
  int64_t page_tokens() const { return page_tokens_; }
  int64_t bytes() const;

  // Of one page, all layers of the group together.
  static int64_t PageBytes(const KvGroup& group, int64_t page_tokens, DType dtype);

 private:
  KvStorage() = default;

  std::vector<kernels::Buffer> memory_;              // one per group
  std::vector<std::vector<kernels::KvPool>> pools_;  // [group][layer in group], views on memory_
  std::vector<int64_t> group_pages_;
  int64_t page_tokens_ = 0;
};

}  // namespace lacuna::kvcache
