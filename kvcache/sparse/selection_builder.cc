#include "kvcache/sparse/selection_builder.h"

#include <algorithm>
#include <string>

namespace lacuna::kvcache {

void SelectionBuilder::Reserve(int64_t lists_max, int64_t pages) {
  pages_.reserve(static_cast<size_t>(pages));
  logical_.reserve(static_cast<size_t>(pages));
  offsets_.reserve(static_cast<size_t>(lists_max) + 1);
}

void SelectionBuilder::Clear() {
  pages_.clear();
  logical_.clear();
  offsets_.resize(1);
}

void SelectionBuilder::AddDense(const PageSpan& span) {
  pages_.insert(pages_.end(), span.pages.begin(), span.pages.end());
  logical_.insert(logical_.end(), span.logical.begin(), span.logical.end());
  offsets_.push_back(static_cast<int64_t>(pages_.size()));
}

kernels::PageLists SelectionBuilder::lists() const {
  return {.pages = pages_.data(),
          .logical = logical_.data(),
          .begins = offsets_.data(),
          .ends = offsets_.data() + 1,
          .lists = static_cast<int64_t>(offsets_.size()) - 1};
}

Status FillSlots(const PageSpan& span, int64_t page_tokens, int32_t first_position, int32_t count,
                 int32_t* slots) {
  const int32_t tokens = static_cast<int32_t>(page_tokens);
  auto it = std::ranges::lower_bound(span.logical, first_position / tokens);
  for (int32_t i = 0; i < count; ++i) {
    const int32_t position = first_position + i;
    while (it != span.logical.end() && *it < position / tokens) ++it;
    if (it == span.logical.end() || *it != position / tokens) {
      return InternalError("no page holds position " + std::to_string(position));
    }
    const size_t index = static_cast<size_t>(it - span.logical.begin());
    slots[i] = span.pages[index] * tokens + position % tokens;
  }
  return OkStatus();
}

}  // namespace lacuna::kvcache
