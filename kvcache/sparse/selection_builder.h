// SelectionBuilder: the page lists of one step in one KvGroup, made from the sequences' PageSpans,
// in arrays that somebody else owns (a part of what is copied to the device).
//
// Today every list is the dense selection (all pages of the span; a window group's span holds no
// more than its window). Engine thread only.
#pragma once

#include <cstdint>

#include "kernels/core/status.h"
#include "kernels/ops/selection.h"
#include "kvcache/pages/page_span.h"

namespace lacuna::kvcache {

struct SelectionArrays final {
  int32_t* pages = nullptr;    // [entries]
  int32_t* logical = nullptr;  // [entries]
  int64_t* offsets = nullptr;  // [lists + 1]: list i is the entries [offsets[i], offsets[i + 1])

  kernels::PageLists Lists(int64_t lists) const {
    return {
        .pages = pages, .logical = logical, .begins = offsets, .ends = offsets + 1, .lists = lists};
  }
};

class SelectionBuilder final {
 public:
  SelectionBuilder() = default;
  explicit SelectionBuilder(const SelectionArrays& arrays);
  // Appends one list with every page of the span; an empty span gives an empty list. There must be
  // room for it.
  void AddDense(const PageSpan& span);

 private:
  SelectionArrays arrays_;
  int64_t lists_ = 0;
};

// Writes the slots (page * page_tokens + offset) of `count` tokens from `first_position` on.
// kInternal: the span lacks a page, which would be the scheduler's mistake.
Status FillSlots(const PageSpan& span, int64_t page_tokens, int32_t first_position, int32_t count,
                 int32_t* slots);

}  // namespace lacuna::kvcache
