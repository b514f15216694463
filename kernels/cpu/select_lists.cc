// Lists of pages with masks from a choice, and what is reported of them.
#include <bit>
#include <cmath>
#include <limits>

#include "kernels/cpu/select_call.h"

namespace lacuna::kernels::cpu {

void SelectCall::MakeLists(int64_t row, int64_t owner, Worker& worker) {
  const Row& state = StateOf(row);
  const OwnerHeads heads = HeadsOf(owner);
  for (int64_t kv = heads.first; kv < heads.end; ++kv) {
    const ListCounts counts = MakeList(row, kv, worker);
    const bool selects = state.act != Row::Act::kDense && !HasWindow(row, kv);
    if (!args_.dropped_lse.empty()) {
      WriteDropped(row, kv, selects ? state.tokens - counts.keys : 0);
    }
    if (args_.stats == nullptr || !selects) continue;
    SelectStats& stats = args_.stats[row * kv_heads_ + kv];
    stats.pages_considered += state.pages;
    stats.pages_selected += counts.pages;
    stats.keys_selected += counts.keys;
    ++stats.layers;
    if (state.act != Row::Act::kChoose) continue;
    stats.estimated_mass += static_cast<float>(worker.mass);
    ++stats.choices;
  }
}

// The tokens of one page that a head reads. A page that is read to its last visible token is listed
// whole, as dense attention lists it.
uint64_t SelectCall::MaskOf(int64_t row, int64_t kv_head, int64_t page,
                            const Worker& worker) const {
  const Row& state = scratch_.rows[static_cast<size_t>(row)];
  const uint64_t full = BlockMask(0, page_tokens_);
  const int64_t first = page * page_tokens_;
  if (HasWindow(row, kv_head)) {
    const StaticShape& shape = args_.shapes[row * kv_heads_ + kv_head];
    const bool inside =
        first < shape.sink_tokens || first + page_tokens_ > state.tokens - shape.window_tokens;
    return inside ? full : 0;
  }
  if (state.act == Row::Act::kDense) return full;
  const uint64_t mask =
      worker.seen[static_cast<size_t>(first / kBlockTokens)] >> first % kBlockTokens & full;
  if (mask == 0) return 0;
  const uint64_t visible = full & BlockMask(0, state.tokens - first);
  return (mask & visible) == visible ? full : mask & visible;
}

SelectCall::ListCounts SelectCall::MakeList(int64_t row, int64_t kv_head, const Worker& worker) {
  const Row& state = StateOf(row);
  const SelectedLists& out = args_.out;
  const int64_t list = row * kv_heads_ + kv_head, begin = list * out.stride;
  ListCounts counts;
  for (int64_t i = 0; i < state.pages; ++i) {
    const int32_t logical = args_.pages.logical[state.first_entry + i];
    const uint64_t mask = MaskOf(row, kv_head, logical, worker);
    if (mask == 0) continue;
    if (counts.pages == out.stride) {
      overflowed_.store(true, std::memory_order_relaxed);
      break;
    }
    const int64_t at = begin + counts.pages++;
    out.pages[at] = args_.pages.pages[state.first_entry + i];
    out.logical[at] = logical;
    out.masks[at] = mask;
    counts.keys += std::popcount(mask & BlockMask(0, state.tokens - logical * page_tokens_));
  }
  out.begins[list] = begin;
  out.ends[list] = begin + counts.pages;
  return counts;
}

void SelectCall::WriteDropped(int64_t row, int64_t kv_head, int64_t dropped) const {
  float* to = args_.dropped_lse.as<float>() + row * args_.dropped_lse.stride(0);
  const bool corrects = args_.path.correct == DecodeCorrectKind::kDenominator && dropped > 0;
  for (int64_t head = kv_head * group_; head < (kv_head + 1) * group_; ++head) {
    const float threshold =
        args_.path.head_thresholds ? args_.thresholds[head] : RowOf(row).threshold;
    to[head] = corrects ? threshold + std::log(static_cast<float>(dropped))
                        : -std::numeric_limits<float>::infinity();
  }
}

}  // namespace lacuna::kernels::cpu
