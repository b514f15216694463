// Metadata: numbers stored beside the keys of one (page, kv head), living and dying with the page.
// SEAM.
//
// A slab is what is stored of one (page, kv head); its inner layout belongs to the backend, which
// alone writes (AppendMetadata) and reads it (SelectKeys). Everybody else moves whole slabs.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/core/tensor_view.h"
#include "kernels/ops/kv_pool.h"
#include "kernels/ops/sparse_kinds.h"

namespace lacuna::kernels {

// What is stored. An entry speaks of sub_tokens consecutive keys (after rotary embedding):
//   kMinMax: per channel the least and the largest value; integers round outwards
//   kMean:   the mean of the entry's newest window_tokens keys, which may reach back before it
//   kLabels: `channels` channels of each key; kLowBit: the whole key (sub_tokens is 1 for both)
// An entry that is not full speaks of the keys it has.
struct MetadataSpec final {
  MetadataKind kind = MetadataKind::kNone;
  MetadataPrecision precision = MetadataPrecision::kBf16;
  int32_t sub_tokens = 16;     // 1, 16 or 64
  int32_t window_tokens = 16;  // sub_tokens or more, 64 at most
  int32_t channels = 0;        // of kLabels
  uint64_t channel_lists = 0;  // of kLabels: fingerprint of the lists
  bool operator==(const MetadataSpec&) const = default;

  bool any() const { return kind != MetadataKind::kNone; }
  // Of one page and kv head: vectors at their precision; integers have a bf16 scale and zero each.
  int64_t PageBytes(int64_t head_dim, int64_t page_tokens) const;
};

// The metadata of one layer of one KvGroup, a view on device memory; pages are those of its KvPool.
struct MetadataPool final {
  static constexpr int64_t kAlign = 64;
  void* data = nullptr;  // [pages, kv_heads] slabs
  MetadataSpec spec;
  int64_t pages = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t page_tokens = 0;
  const int16_t* channels = nullptr;  // kLabels: [kv_heads, spec.channels] ascending; device memory

  int64_t SlabBytes() const { return SlabBytes(spec, head_dim, page_tokens); }
  static int64_t SlabBytes(const MetadataSpec& spec, int64_t head_dim, int64_t page_tokens) {
    return (spec.PageBytes(head_dim, page_tokens) + kAlign - 1) / kAlign * kAlign;
  }
  int64_t Bytes() const { return pages * kv_heads * SlabBytes(); }
  std::byte* Slab(int64_t page, int64_t kv_head) const {
    return static_cast<std::byte*>(data) + (page * kv_heads + kv_head) * SlabBytes();
  }
};

// Brings the metadata up to date with tokens whose keys were just appended to `keys`: every entry
// that one of them belongs to is made again from the keys of its page. Slots as AppendKvArgs: a
// sequence's tokens ascend, and a page holds valid keys up to the largest offset among them.
struct AppendMetadataArgs final {
  TensorView slots;  // [tokens] i32; negative: skipped
  // [tokens] i32: the page before the token's own in its sequence, -1 for none. Read only when a
  // mean reaches back further than its entry; else empty.
  TensorView previous_pages;
  KvPool keys;
  MetadataPool metadata;
};

}  // namespace lacuna::kernels
