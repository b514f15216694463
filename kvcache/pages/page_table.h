// PageTable: the pages of one sequence in one KvGroup, ascending by logical index.
//
// Full groups hold a page for every logical index from 0; window groups lack the dropped middle.
// Owned by the sequence; engine thread only.
#pragma once

#include <cstdint>
#include <vector>

#include "kvcache/pages/page_pool.h"
#include "kvcache/pages/page_span.h"

namespace lacuna::kvcache {

class PageTable final {
 public:
  // The page of the next logical index.
  void Append(PageRef page);
  // Another page with equal content in the place of page number `index` (not logical).
  void Replace(int64_t index, PageRef page);
  // Gives back pages with logical index in [first, end). O(pages held).
  void Drop(int64_t first, int64_t end);
  // Gives back all, deepest first, so that cached children are always evicted before parents.
  void Clear();

  int64_t size() const { return static_cast<int64_t>(refs_.size()); }
  int64_t logical_end() const { return logical_end_; }
  PageId page(int64_t index) const { return refs_[static_cast<size_t>(index)].id(); }
  PageSpan span() const { return {ids_, logical_}; }

 private:
  std::vector<PageRef> refs_;
  std::vector<int32_t> ids_, logical_;
  int64_t logical_end_ = 0;
};

}  // namespace lacuna::kvcache
