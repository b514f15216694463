// RangeKeys: the keys of one kv head of a sequence, as the kernels of SelectRanges read them out of
// KV slabs. Keys behind the slice's last, and those whose page is not listed, read as zeros.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cuda/kv_layout.cuh"
#include "kernels/cuda/ranges/range_work.h"
#include "kernels/cuda/vectors.cuh"

namespace lacuna::kernels::cuda {

template <typename T>
class RangeKeys final {
 public:
  __device__ RangeKeys(const RangeWork& work, int kv_head)
      : work_(work),
        slab_(work.pool + kv_head * work.slab_bytes),
        begin_(work.lists.begins[work.chunk_index]),
        end_(work.lists.ends[work.chunk_index]) {}

  // The K of token's page, or null.
  __device__ const T* Find(int token) const {
    if (token >= work_.keys) return nullptr;
    const int logical = token / work_.page_tokens;
    int64_t at = begin_ + logical;  // of a list that leaves nothing out
    if (at >= end_ || work_.lists.logical[at] != logical) {
      at = Search(logical);
      if (at < 0) return nullptr;
    }
    return reinterpret_cast<const T*>(slab_ +
                                      work_.lists.pages[at] * work_.kv_heads * work_.slab_bytes);
  }
  // Eight channels of the key in row `row` of a page; head_dim is a multiple of eight.
  __device__ const Pack<T>* At(const T* page, int row, int channel) const {
    if constexpr (sizeof(T) == 4) {
      return reinterpret_cast<const Pack<T>*>(page + row * work_.head_dim + channel);
    } else {
      return reinterpret_cast<const Pack<T>*>(
          page + KvElement(row, channel, work_.page_tokens, work_.head_dim));
    }
  }

  __device__ void Load(int token, int channel, Pack<T>* out) const {
    const T* page = Find(token);
    if (page != nullptr) *out = *At(page, token % work_.page_tokens, channel);
  }
  // One channel of any head_dim; f32 only has those that are no multiple of eight.
  __device__ T Load(int token, int channel) const {
    const T* page = Find(token);
    if (page == nullptr) return FromF32<T>(0.0f);
    const int row = token % work_.page_tokens;
    if constexpr (sizeof(T) == 4) return page[row * work_.head_dim + channel];
    return page[KvElement(row, channel, work_.page_tokens, work_.head_dim)];
  }

 private:
  __device__ int64_t Search(int logical) const {
    int64_t low = begin_, high = end_;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (work_.lists.logical[middle] < logical) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low < end_ && work_.lists.logical[low] == logical ? low : -1;
  }

  const RangeWork& work_;
  const std::byte* slab_;  // of page 0, for the kv head
  int64_t begin_, end_;    // of the list
};

}  // namespace lacuna::kernels::cuda
