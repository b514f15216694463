// SelectionBuilder: the page lists of one step in one KvGroup, made from the sequences' PageSpans.
//
// Today every list is the dense selection (all pages of the span; a window group's span holds no
// more than its window). Reused from step to step: after Reserve, a step allocates only when its
// sequences have more pages than any before. Engine thread only.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/core/status.h"
#include "kernels/ops/selection.h"
#include "kvcache/pages/page_span.h"

namespace lacuna::kvcache {

class SelectionBuilder final {
 public:
  void Reserve(int64_t lists_max, int64_t pages);
  void Clear();
  // Appends one list with every page of the span.
  void AddDense(const PageSpan& span);
  // Views into this object: good until the next call that changes it.
  kernels::PageLists lists() const;

 private:
  std::vector<int32_t> pages_;
  std::vector<int32_t> logical_;
  std::vector<int64_t> offsets_ = {0};
};

// Writes the slots (page * page_tokens + offset) of `count` tokens from `first_position` on.
// kInternal: the span lacks a page, which would be the scheduler's mistake.
Status FillSlots(const PageSpan& span, int64_t page_tokens, int32_t first_position, int32_t count,
                 int32_t* slots);

}  // namespace lacuna::kvcache
