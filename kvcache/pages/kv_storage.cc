#include "kvcache/pages/kv_storage.h"

#include <limits>
#include <string>

#include "kernels/core/checked_math.h"

namespace lacuna::kvcache {
namespace {

kernels::KvPool LayerPool(const KvGroup& group, const KvLayer& layer, int64_t pages,
                          int64_t page_tokens, DType dtype) {
  return {.dtype = dtype,
          .pages = pages,
          .kv_heads = layer.kv_heads,
          .head_dim = group.head_dim,
          .page_tokens = page_tokens};
}

}  // namespace

int64_t KvStorage::PageBytes(const KvGroup& group, int64_t page_tokens, DType dtype) {
  int64_t bytes = 0;
  for (const KvLayer& layer : group.layers) {
    bytes += LayerPool(group, layer, 1, page_tokens, dtype).Bytes();
  }
  return bytes;
}

int64_t KvStorage::bytes() const {
  int64_t bytes = 0;
  for (const kernels::Buffer& buffer : memory_) bytes += buffer.bytes();
  return bytes;
}

Result<std::unique_ptr<KvStorage>> KvStorage::Create(kernels::Device& device,
                                                     const std::vector<KvGroup>& groups,
                                                     std::vector<int64_t> group_pages,
                                                     int64_t page_tokens, DType dtype) {
  if (group_pages.size() != groups.size()) {
    return InvalidArgument("KV storage: got pages of " + std::to_string(group_pages.size()) +
                           " groups, need " + std::to_string(groups.size()));
  }
  if (page_tokens != 16 && page_tokens != 64) {
    return InvalidArgument("KV storage: got pages of " + std::to_string(page_tokens) +
                           " tokens, need 16 or 64");
  }
  std::unique_ptr<KvStorage> storage(new KvStorage());
  storage->page_tokens_ = page_tokens;
  for (size_t g = 0; g < groups.size(); ++g) {
    const int64_t pages = group_pages[g];
    const std::optional<int64_t> bytes =
        CheckedMul(pages, PageBytes(groups[g], page_tokens, dtype));
    if (pages < 1 || pages > std::numeric_limits<int32_t>::max() / page_tokens || !bytes) {
      return InvalidArgument("KV storage: got " + std::to_string(pages) + " pages, need 1 to " +
                             std::to_string(std::numeric_limits<int32_t>::max() / page_tokens));
    }
    LACUNA_ASSIGN_OR_RETURN(kernels::Buffer buffer, device.Allocate(*bytes));
    std::byte* data = buffer.data();
    std::vector<kernels::KvPool> pools;
    for (const KvLayer& layer : groups[g].layers) {
      pools.push_back(LayerPool(groups[g], layer, pages, page_tokens, dtype));
      pools.back().data = data;
      data += pools.back().Bytes();
    }
    storage->memory_.push_back(std::move(buffer));
    storage->pools_.push_back(std::move(pools));
  }
  storage->group_pages_ = std::move(group_pages);
  return storage;
}

}  // namespace lacuna::kvcache
