#include "kvcache/pages/page_table.h"

#include <algorithm>
#include <utility>

namespace lacuna::kvcache {

void PageTable::Append(PageRef page) {
  LACUNA_CHECK(page);
  ids_.push_back(page.id().value);
  logical_.push_back(static_cast<int32_t>(logical_end_++));
  refs_.push_back(std::move(page));
}

void PageTable::Replace(int64_t index, PageRef page) {
  LACUNA_CHECK(page && index >= 0 && index < size());
  ids_[static_cast<size_t>(index)] = page.id().value;
  refs_[static_cast<size_t>(index)] = std::move(page);
}

void PageTable::Drop(int64_t first, int64_t end) {
  const auto from = std::lower_bound(logical_.begin(), logical_.end(), first) - logical_.begin();
  const auto to = std::lower_bound(logical_.begin() + from, logical_.end(), end) - logical_.begin();
  if (from == to) return;
  refs_.erase(refs_.begin() + from, refs_.begin() + to);
  ids_.erase(ids_.begin() + from, ids_.begin() + to);
  logical_.erase(logical_.begin() + from, logical_.begin() + to);
}

void PageTable::Clear() {
  while (!refs_.empty()) refs_.pop_back();
  ids_.clear();
  logical_.clear();
  logical_end_ = 0;
}

}  // namespace lacuna::kvcache
