#include "kernels/cpu/attention_blocks.h"

#include <algorithm>

namespace lacuna::kernels::cpu {

bool BlockCursor::Next(KvBlock* block) {
  while (scope_.begin < scope_.end) {
    const int64_t first_token = scope_.lists->logical[scope_.begin] * pool_.page_tokens;
    block->first_key = first_token / kBlockKeys * kBlockKeys;
    if (block->first_key > scope_.last_position) return false;
    if (BelowWindow(block->first_key)) {
      ++scope_.begin;
      continue;
    }
    TakePages(block);
    if (ranges_ != nullptr) block->groups &= GroupsInRanges(block->first_key);
    if (block->groups != 0) return true;
  }
  return false;
}

bool BlockCursor::BelowWindow(int64_t first_key) const {
  const StaticShape& shape = scope_.shape;
  return shape.window_tokens > 0 && first_key >= shape.sink_tokens &&
         first_key + kBlockKeys <= scope_.first_position - shape.window_tokens + 1;
}

// All listed pages that fall into the block.
void BlockCursor::TakePages(KvBlock* block) {
  const auto bytes = static_cast<int64_t>(DTypeBytes(pool_.dtype));
  const int64_t group_key_bytes = kGroupKeys * bytes * (pool_.dtype == DType::kBF16 ? 2 : 1);
  const int64_t group_value_bytes = kGroupKeys * pool_.head_dim * bytes;
  const auto page_groups = static_cast<int>(pool_.page_tokens / kGroupKeys);
  block->groups = 0;
  const std::byte* slab = nullptr;
  for (; scope_.begin < scope_.end; ++scope_.begin) {
    const int64_t offset =
        scope_.lists->logical[scope_.begin] * pool_.page_tokens - block->first_key;
    if (offset >= kBlockKeys) break;
    slab = pool_.Slab(scope_.lists->pages[scope_.begin], scope_.kv_head);
    const auto first = static_cast<int>(offset / kGroupKeys);
    for (int g = 0; g < page_groups; ++g) {
      block->k[first + g] = slab + g * group_key_bytes;
      block->v[first + g] = slab + pool_.SlabBytes() / 2 + g * group_value_bytes;
      block->groups |= 1u << (first + g);
    }
  }
  // Scores of absent keys are computed, then masked: any readable keys do.
  for (int g = 0; g < kBlockGroups; ++g) {
    if ((block->groups >> g) & 1u) continue;
    block->k[g] = slab;
    block->v[g] = slab;
  }
}

uint32_t BlockCursor::GroupsInRanges(int64_t first_key) {
  while (range_ < range_end_ && ranges_->end[range_] <= first_key) ++range_;
  uint32_t groups = 0;
  for (int64_t i = range_; i < range_end_ && ranges_->begin[i] < first_key + kBlockKeys; ++i) {
    const int64_t first = std::max<int64_t>(ranges_->begin[i] - first_key, 0) / kGroupKeys;
    const int64_t end = std::min<int64_t>(ranges_->end[i] - first_key, kBlockKeys) / kGroupKeys;
    for (int64_t g = first; g < end; ++g) groups |= 1u << g;
  }
  return groups;
}

}  // namespace lacuna::kernels::cpu
