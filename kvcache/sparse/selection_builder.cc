#include "kvcache/sparse/selection_builder.h"

#include <algorithm>
#include <string>

namespace lacuna::kvcache {

SelectionBuilder::SelectionBuilder(const SelectionArrays& arrays) : arrays_(arrays) {
  arrays_.offsets[0] = 0;
}

void SelectionBuilder::AddDense(const PageSpan& span) {
  const int64_t begin = arrays_.offsets[lists_];
  std::ranges::copy(span.pages, arrays_.pages + begin);
  std::ranges::copy(span.logical, arrays_.logical + begin);
  arrays_.offsets[++lists_] = begin + static_cast<int64_t>(span.pages.size());
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
