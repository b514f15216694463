// KvPool: the pages of one layer of one KvGroup, a view on device memory. SEAM.
//
// A slab is the K and V of one (page, kv head) and is contiguous; its inner layout belongs to the
// backend, which alone writes (AppendKv) and reads it (attention). Everybody else moves whole
// slabs.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/core/dtype.h"

namespace lacuna::kernels {

struct KvPool final {
  void* data = nullptr;  // [pages, kv_heads] slabs
  DType dtype = DType::kBF16;
  int64_t pages = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t page_tokens = 0;  // 16 or 64

  int64_t SlabBytes() const {
    return 2 * page_tokens * head_dim * static_cast<int64_t>(DTypeBytes(dtype));
  }
  int64_t Bytes() const { return pages * kv_heads * SlabBytes(); }
  std::byte* Slab(int64_t page, int64_t kv_head) const {
    return static_cast<std::byte*>(data) + (page * kv_heads + kv_head) * SlabBytes();
  }
};

}  // namespace lacuna::kernels
