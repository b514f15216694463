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

// All keys of the groups of 16 that hold one of `keys`.
uint64_t WholeGroups(uint64_t keys) {
  uint64_t groups = 0;
  for (int g = 0; g < kBlockGroups; ++g) {
    const uint64_t group = Bits(g * kGroupKeys, (g + 1) * kGroupKeys);
    if ((keys & group) != 0) groups |= group;
  }
  return groups;
}

}  // namespace

BlockCursor::BlockCursor(const KvPool& pool, const Scope& scope) : pool_(pool), scope_(scope) {
  const int64_t window = scope.shape.window_tokens;
  if (window > 0) window_begin_ = std::max<int64_t>(scope.first_position - window + 1, 0);
  gathered_.gathered = true;
}

bool BlockCursor::Next(KvBlock* block) {
  while (NextNeighbours(block)) {
    if (!scope_.gather || !thin_ || Gather(block)) return true;
  }
  *block = gathered_;
  gathered_.keys = 0;
  return block->keys != 0;
}

// Moves the visible groups of `block` over; true when that has filled a block, which it then is.
bool BlockCursor::Gather(KvBlock* block) {
  const KvBlock from = *block;
  const uint64_t keys = from.keys & SeenKeys(from.first_key);
  bool full = false;
  for (int g = 0; g < kBlockGroups; ++g) {
    const uint64_t group = keys >> (g * kGroupKeys) & 0xffffu;
    if (group == 0) continue;
    const int at = gathered_groups_++;
    gathered_.k[at] = from.k[g];
    gathered_.v[at] = from.v[g];
    gathered_.keys |= group << (at * kGroupKeys);
    if (gathered_groups_ < kBlockGroups) continue;
    *block = gathered_;
    full = true;
    gathered_.keys = 0;
    gathered_groups_ = 0;
  }
  return full;
}

bool BlockCursor::NextNeighbours(KvBlock* block) {
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
    const uint64_t seen = WholeGroups(SeenKeys(block->first_key));
    const uint64_t stored = TakePages(block) & seen;
    block->keys &= seen;
    thin_ = WholeGroups(block->keys) != stored;
    if (ranges_ != nullptr) block->keys &= KeysInRanges(block->first_key);
    if (block->keys != 0) return true;
  }
  return false;
}

// All listed pages that fall into the block; returns the keys that they hold, listed or not.
uint64_t BlockCursor::TakePages(KvBlock* block) {
  const auto bytes = static_cast<int64_t>(DTypeBytes(pool_.dtype));
  const int64_t group_key_bytes = kGroupKeys * bytes * (pool_.dtype == DType::kBF16 ? 2 : 1);
  const int64_t group_value_bytes = kGroupKeys * pool_.head_dim * bytes;
  const auto page_groups = static_cast<int>(pool_.page_tokens / kGroupKeys);
  const uint64_t page_keys = Bits(0, pool_.page_tokens);
  const PageLists& lists = *scope_.lists;
  uint64_t stored = 0;
  block->keys = 0;
  block->gathered = false;
  for (; scope_.begin < scope_.end; ++scope_.begin) {
    const int64_t offset = lists.logical[scope_.begin] * pool_.page_tokens - block->first_key;
    if (offset >= kBlockKeys) break;
    const uint64_t keys =
        lists.masks == nullptr ? page_keys : lists.masks[scope_.begin] & page_keys;
    stored |= page_keys << offset;
    block->keys |= keys << offset;
    const std::byte* slab = pool_.Slab(lists.pages[scope_.begin], scope_.kv_head);
    const auto first = static_cast<int>(offset / kGroupKeys);
    for (int g = 0; g < page_groups; ++g) {
      block->k[first + g] = slab + g * group_key_bytes;
      block->v[first + g] = slab + pool_.SlabBytes() / 2 + g * group_value_bytes;
    }
  }
  return stored;
}

uint64_t BlockCursor::KeysInRanges(int64_t first_key) {
  while (range_ < range_end_ && ranges_->end[range_] <= first_key) ++range_;
  uint64_t keys = 0;
  for (int64_t i = range_; i < range_end_ && ranges_->begin[i] < first_key + kBlockKeys; ++i) {
    keys |= Bits(ranges_->begin[i] - first_key, ranges_->end[i] - first_key);
  }
  return keys;
}

// The keys that some query of the tile may see.
uint64_t BlockCursor::SeenKeys(int64_t first_key) const {
  const uint64_t seen = Bits(0, scope_.last_position + 1 - first_key);
  if (window_begin_ == 0) return seen;
  return seen & (Bits(window_begin_ - first_key, kBlockKeys) |
                 Bits(0, scope_.shape.sink_tokens - first_key));
}

}  // namespace lacuna::kernels::cpu
