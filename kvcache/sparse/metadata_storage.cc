#include "kvcache/sparse/metadata_storage.h"

#include <optional>
#include <string>

#include "kernels/core/checked_math.h"

namespace lacuna::kvcache {
namespace {

using kernels::MetadataPool;

// Without memory; of no spec where the store has nothing.
MetadataPool LayerPool(const MetadataStore& store, const KvGroup& group, const KvLayer& layer,
                       int64_t pages, int64_t page_tokens) {
  if (!group.full() || !store.layers[static_cast<size_t>(layer.layer)]) return {};
  return {.spec = store.spec,
          .pages = pages,
          .kv_heads = layer.kv_heads,
          .head_dim = group.head_dim,
          .page_tokens = page_tokens};
}

}  // namespace

int64_t MetadataStorage::PageBytes(const KvGroup& group, int64_t page_tokens,
                                   std::span<const MetadataStore> stores) {
  int64_t bytes = 0;
  for (const MetadataStore& store : stores) {
    for (const KvLayer& layer : group.layers) {
      bytes += LayerPool(store, group, layer, 1, page_tokens).Bytes();
    }
  }
  return bytes;
}

Status MetadataStorage::UploadChannels(kernels::Device& device) {
  kernels::Stream stream;
  for (const MetadataStore& store : stores_) {
    const auto bytes = static_cast<int64_t>(store.channels.size() * sizeof(int16_t));
    kernels::Buffer& buffer = channels_.emplace_back();
    if (bytes == 0) continue;
    LACUNA_ASSIGN_OR_RETURN(buffer, device.Allocate(bytes));
    LACUNA_RETURN_IF_ERROR(device.Copy(buffer.data(), store.channels.data(), bytes, stream));
  }
  return device.Synchronize(stream);
}

Result<std::unique_ptr<MetadataStorage>> MetadataStorage::Create(
    kernels::Device& device, const std::vector<KvGroup>& groups,
    const std::vector<int64_t>& group_pages, int64_t page_tokens,
    std::vector<MetadataStore> stores) {
  if (group_pages.size() != groups.size()) {
    return InvalidArgument("metadata: got pages of " + std::to_string(group_pages.size()) +
                           " groups, need " + std::to_string(groups.size()));
  }
  std::unique_ptr<MetadataStorage> storage(new MetadataStorage());
  storage->stores_ = std::move(stores);
  LACUNA_RETURN_IF_ERROR(storage->UploadChannels(device));
  storage->pools_.resize(storage->stores_.size());
  for (size_t g = 0; g < groups.size(); ++g) {
    const int64_t page_bytes = PageBytes(groups[g], page_tokens, storage->stores_);
    const std::optional<int64_t> bytes = CheckedMul(group_pages[g], page_bytes);
    if (group_pages[g] < 1 || !bytes) {
      return InvalidArgument("metadata: got " + std::to_string(group_pages[g]) + " pages of " +
                             std::to_string(page_bytes) + " bytes");
    }
    kernels::Buffer buffer;
    if (*bytes > 0) {
      LACUNA_ASSIGN_OR_RETURN(buffer, device.Allocate(*bytes));
    }
    std::byte* data = buffer.data();
    for (size_t s = 0; s < storage->stores_.size(); ++s) {
      const MetadataStore& store = storage->stores_[s];
      const auto row = static_cast<int64_t>(store.channels.size() / store.layers.size());
      std::vector<MetadataPool>& pools = storage->pools_[s].emplace_back();
      for (const KvLayer& layer : groups[g].layers) {
        pools.push_back(LayerPool(store, groups[g], layer, group_pages[g], page_tokens));
        if (!pools.back().spec.any()) continue;
        pools.back().data = data;
        data += pools.back().Bytes();
        if (row == 0) continue;
        pools.back().channels = reinterpret_cast<const int16_t*>(storage->channels_[s].data()) +
                                layer.layer * row + layer.first_head * store.spec.channels;
      }
    }
    storage->memory_.push_back(std::move(buffer));
  }
  for (const MetadataStore& store : storage->stores_) {
    if (store.spec.window_tokens > store.spec.sub_tokens) storage->reads_previous_pages_ = true;
  }
  return storage;
}

kernels::MetadataPool MetadataStorage::Find(const MetadataSpec& spec, int group,
                                            int layer_in_group) const {
  for (size_t s = 0; spec.any() && s < stores_.size(); ++s) {
    if (stores_[s].spec == spec) return pool(s, group, layer_in_group);
  }
  return {};
}

int64_t MetadataStorage::bytes() const {
  int64_t bytes = 0;
  for (const kernels::Buffer& buffer : memory_) bytes += buffer.bytes();
  for (const kernels::Buffer& buffer : channels_) bytes += buffer.bytes();
  return bytes;
}

}  // namespace lacuna::kvcache
