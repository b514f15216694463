#include "kernels/cpu/attention_blocks.h"

#include <algorithm>

namespace lacuna::kernels::cpu {
namespace {

// Bits [first, end) of a block's keys; either may lie outside it.
uint64_t Bits(int64_t first, int64_t end) {
  const auto below = [](int64_t bit) {
    return bit >= kBlockKeys ? ~uint64_t{0} : (uint64_t{1} << std::max<int64_t>(bit, 0)) - 1;
  };
  return below(end) & ~below(first);
}

}  // namespace

BlockCursor::BlockCursor(const KvPool& pool, const Scope& scope) : pool_(pool), scope_(scope) {
  const int64_t window = scope.shape.window_tokens;
  if (window > 0) window_begin_ = std::max<int64_t>(scope.first_position - window + 1, 0);
}

bool BlockCursor::Next(KvBlock* block) {
  const int32_t* logical = scope_.lists->logical;
  while (scope_.begin < scope_.end) {
    const int64_t first_token = logical[scope_.begin] * pool_.page_tokens;
    block->first_key = first_token / kBlockKeys * kBlockKeys;
    if (block->first_key > scope_.last_position) return false;
    const int64_t window_block = window_begin_ / kBlockKeys * kBlockKeys;
    if (block->first_key >= scope_.shape.sink_tokens && block->first_key < window_block) {
      // Between the sink and the window lie most pages of a long sequence.
      scope_.begin = std::lower_bound(logical + scope_.begin, logical + scope_.end,
                                      window_block / pool_.page_tokens) -
                     logical;
      continue;
    }
    TakePages(block);
    if (ranges_ != nullptr) block->keys &= KeysInRanges(block->first_key);
    block->keys &= SeenGroups(block->first_key);
    if (block->keys != 0) return true;
  }
  return false;
}

// All listed pages that fall into the block.
void BlockCursor::TakePages(KvBlock* block) {
  const auto bytes = static_cast<int64_t>(DTypeBytes(pool_.dtype));
  const int64_t group_key_bytes = kGroupKeys * bytes * (pool_.dtype == DType::kBF16 ? 2 : 1);
  const int64_t group_value_bytes = kGroupKeys * pool_.head_dim * bytes;
  const auto page_groups = static_cast<int>(pool_.page_tokens / kGroupKeys);
  const uint64_t page_keys = Bits(0, pool_.page_tokens);
  const PageLists& lists = *scope_.lists;
  block->keys = 0;
  for (; scope_.begin < scope_.end; ++scope_.begin) {
    const int64_t offset = lists.logical[scope_.begin] * pool_.page_tokens - block->first_key;
    if (offset >= kBlockKeys) break;
    const uint64_t keys =
        lists.masks == nullptr ? page_keys : lists.masks[scope_.begin] & page_keys;
    block->keys |= keys << offset;
    const std::byte* slab = pool_.Slab(lists.pages[scope_.begin], scope_.kv_head);
    const auto first = static_cast<int>(offset / kGroupKeys);
    for (int g = 0; g < page_groups; ++g) {
      block->k[first + g] = slab + g * group_key_bytes;
      block->v[first + g] = slab + pool_.SlabBytes() / 2 + g * group_value_bytes;
    }
  }
}

uint64_t BlockCursor::KeysInRanges(int64_t first_key) {
  while (range_ < range_end_ && ranges_->end[range_] <= first_key) ++range_;
  uint64_t keys = 0;
  for (int64_t i = range_; i < range_end_ && ranges_->begin[i] < first_key + kBlockKeys; ++i) {
    keys |= Bits(ranges_->begin[i] - first_key, ranges_->end[i] - first_key);
  }
  return keys;
}

// The groups of 16 keys that some query of the tile may see, as bits of all their keys.
uint64_t BlockCursor::SeenGroups(int64_t first_key) const {
  uint64_t seen = Bits(0, scope_.last_position + 1 - first_key);
  if (window_begin_ > 0) {
    seen &=
        Bits(window_begin_ - first_key, kBlockKeys) | Bits(0, scope_.shape.sink_tokens - first_key);
  }
  uint64_t groups = 0;
  for (int g = 0; g < kBlockGroups; ++g) {
    const uint64_t group = Bits(g * kGroupKeys, (g + 1) * kGroupKeys);
    if ((seen & group) != 0) groups |= group;
  }
  return groups;
}

}  // namespace lacuna::kernels::cpu
