#include "kernels/cpu/range_keys.h"

#include <algorithm>
#include <cstring>

#include "kernels/core/dtype.h"

namespace lacuna::kernels::cpu {
namespace {

constexpr int64_t kGroupTokens = 16;  // lie in one page whatever its size
constexpr int64_t kBlockGroupsMax = 8;

// Keys that lie one after another in a slab, to one row.
template <int64_t kCount>
void CopyRun(const uint32_t* from, int64_t page_tokens, int64_t units, uint32_t* to,
             int64_t stride) {
  for (int64_t unit = 0; unit < units; ++unit) {
    std::memcpy(to + unit * stride, from + unit * page_tokens, 4 * kCount);
  }
}

void CopyRun(const uint32_t* from, int64_t page_tokens, int64_t units, uint32_t* to, int64_t stride,
             int64_t count) {
  if (count == 16) return CopyRun<16>(from, page_tokens, units, to, stride);
  if (count == 8) return CopyRun<8>(from, page_tokens, units, to, stride);
  if (count == 4) return CopyRun<4>(from, page_tokens, units, to, stride);
  if (count == 1) return CopyRun<1>(from, page_tokens, units, to, stride);
  for (int64_t unit = 0; unit < units; ++unit) {
    std::memcpy(to + unit * stride, from + unit * page_tokens, static_cast<size_t>(4 * count));
  }
}

// Adds the first `count` of 16 keys of a unit, each lane to its own sum; bf16 holds two channels.
void AddGroup(const uint32_t* from, int64_t count, bool bf16, float* even, float* odd) {
  uint32_t words[kGroupTokens] = {};
  std::memcpy(words, from, static_cast<size_t>(4 * count));
  for (int i = 0; i < kGroupTokens; ++i) {
    const uint32_t word = words[i];
    even[i] += __builtin_bit_cast(float, bf16 ? word << 16 : word);
    odd[i] += bf16 ? __builtin_bit_cast(float, word & 0xffff0000u) : 0.0f;
  }
}

float SumOf(const float* lanes) {
  float sum = 0.0f;
  for (int i = 0; i < kGroupTokens; ++i) sum += lanes[i];
  return sum;
}

}  // namespace

const uint32_t* KeySource::Find(int64_t token, int64_t kv_head) const {
  const int64_t logical = token / pool.page_tokens;
  int64_t at = list_begin + logical;  // of a list that leaves nothing out
  if (at >= list_end || lists.logical[at] != logical) {
    const int32_t* end = lists.logical + list_end;
    const int32_t* found = std::lower_bound(lists.logical + list_begin, end, logical);
    if (found == end || *found != logical) return nullptr;
    at = found - lists.logical;
  }
  const std::byte* slab = pool.Slab(lists.pages[at], kv_head);
  return static_cast<const uint32_t*>(static_cast<const void*>(slab)) + token % pool.page_tokens;
}

void PackKeys(const KeySource& source, int64_t kv_head, int64_t first, int64_t end, int64_t stride,
              uint32_t* rows) {
  const int64_t units = source.units();
  const int64_t page_tokens = source.pool.page_tokens;
  const int64_t exist = std::clamp(source.tokens, first, end);
  bool whole = exist == end;
  for (int64_t token = first; whole && token < end; token += page_tokens) {
    whole = source.Find(token, kv_head) != nullptr;
  }
  if (!whole) std::memset(rows, 0, static_cast<size_t>(4 * (end - first) * units));
  int64_t token = first;
  while (token < exist) {
    const int64_t page_end = std::min(exist, (token / page_tokens + 1) * page_tokens);
    const uint32_t* from = source.Find(token, kv_head);
    while (token < page_end) {
      const int64_t count = std::min(page_end, (token / stride + 1) * stride) - token;
      if (from != nullptr) {
        uint32_t* row = rows + (token - first) / stride * units * stride + token % stride;
        CopyRun(from, page_tokens, units, row, stride, count);
        from += count;
      }
      token += count;
    }
  }
}

void MeanKeys(const KeySource& source, int64_t kv_head, int64_t block_tokens, int64_t first,
              int64_t end, int64_t blocks, float* means) {
  const bool bf16 = source.pool.dtype == DType::kBF16;
  const int64_t page_tokens = source.pool.page_tokens;
  for (int64_t block = first; block < end; ++block) {
    const int64_t begin = block * block_tokens;
    const int64_t count = std::min(source.tokens - begin, block_tokens);
    const int64_t groups = (count + kGroupTokens - 1) / kGroupTokens;
    const uint32_t* from[kBlockGroupsMax];
    for (int64_t g = 0; g < groups; ++g) {
      from[g] = source.Find(begin + g * kGroupTokens, kv_head);
    }
    const float share = 1.0f / static_cast<float>(std::max<int64_t>(count, 1));
    for (int64_t unit = 0; unit < source.units(); ++unit) {
      float even[kGroupTokens] = {};
      float odd[kGroupTokens] = {};
      for (int64_t g = 0; g < groups; ++g) {
        if (from[g] == nullptr) continue;
        AddGroup(from[g] + unit * page_tokens, std::min(kGroupTokens, count - g * kGroupTokens),
                 bf16, even, odd);
      }
      if (bf16) {
        means[2 * unit * blocks + block] = SumOf(even) * share;
        means[(2 * unit + 1) * blocks + block] = SumOf(odd) * share;
      } else {
        means[unit * blocks + block] = SumOf(even) * share;
      }
    }
  }
}

}  // namespace lacuna::kernels::cpu
