#include "kvcache/pages/page_pool.h"

#include <utility>

namespace lacuna::kvcache {

PageRef::PageRef(PageRef&& other) noexcept
    : pool_(std::exchange(other.pool_, nullptr)), id_(std::exchange(other.id_, PageId{-1})) {}

PageRef& PageRef::operator=(PageRef&& other) noexcept {
  if (this != &other) {
    Reset();
    pool_ = std::exchange(other.pool_, nullptr);
    id_ = std::exchange(other.id_, PageId{-1});
  }
  return *this;
}

void PageRef::Reset() {
  if (pool_ != nullptr) std::exchange(pool_, nullptr)->Release(std::exchange(id_, PageId{-1}));
}

PagePool::PagePool(int32_t pages_total) {
  LACUNA_CHECK(pages_total >= 0);
  pages_.resize(static_cast<size_t>(pages_total));
  counts_.total = pages_total;
  for (int32_t i = pages_total - 1; i >= 0; --i) PushFree(PageId{i});
}

PagePool::~PagePool() { LACUNA_CHECK(counts_.used == 0); }

PageRef PagePool::Take() {
  if (free_ < 0) return {};
  const PageId id{free_};
  Page& page = at(id);
  free_ = page.next;
  page = Page{.refs = 1};
  --counts_.free;
  ++counts_.used;
  return {this, id};
}

PageRef PagePool::Acquire(PageId id) {
  Page& page = at(id);
  LACUNA_CHECK(page.refs > 0 || page.published);
  if (page.refs == 0) {
    UnlinkCached(id);
    ++counts_.used;
  }
  ++page.refs;
  return {this, id};
}

void PagePool::Publish(PageId id) {
  LACUNA_CHECK(at(id).refs > 0 && !at(id).published);
  at(id).published = true;
}

void PagePool::Evict(PageId id) {
  LACUNA_CHECK(state(id) == PageState::kCached);
  UnlinkCached(id);
  at(id).published = false;
  PushFree(id);
}

PageState PagePool::state(PageId id) const {
  if (at(id).refs > 0) return PageState::kUsed;
  return at(id).published ? PageState::kCached : PageState::kFree;
}

void PagePool::Release(PageId id) {
  Page& page = at(id);
  LACUNA_CHECK(page.refs > 0);
  if (--page.refs > 0) return;
  --counts_.used;
  page.published ? PushCached(id) : PushFree(id);
}

void PagePool::PushFree(PageId id) {
  at(id) = Page{.next = free_};
  free_ = id.value;
  ++counts_.free;
}

void PagePool::PushCached(PageId id) {
  Page& page = at(id);
  page.prev = newest_;
  page.next = -1;
  (newest_ < 0 ? oldest_ : at(PageId{newest_}).next) = id.value;
  newest_ = id.value;
  ++counts_.cached;
}

void PagePool::UnlinkCached(PageId id) {
  Page& page = at(id);
  (page.prev < 0 ? oldest_ : at(PageId{page.prev}).next) = page.next;
  (page.next < 0 ? newest_ : at(PageId{page.next}).prev) = page.prev;
  page.prev = page.next = -1;
  --counts_.cached;
}

Status PagePool::CheckInvariants() const {
  std::vector<char> seen(pages_.size(), 0);
  PoolCounts walked{.total = static_cast<int64_t>(pages_.size())};
  for (int32_t i = free_; i >= 0; i = pages_[static_cast<size_t>(i)].next) {
    if (state(PageId{i}) != PageState::kFree)
      return InternalError("a page in use is on the free list");
    if (seen[static_cast<size_t>(i)]++) return InternalError("a page is twice on the free list");
    ++walked.free;
  }
  for (int32_t i = oldest_; i >= 0; i = pages_[static_cast<size_t>(i)].next) {
    if (state(PageId{i}) != PageState::kCached)
      return InternalError("the cached list holds another");
    if (seen[static_cast<size_t>(i)]++) return InternalError("a page is on two lists");
    ++walked.cached;
  }
  for (size_t i = 0; i < pages_.size(); ++i) {
    const bool used = pages_[i].refs > 0;
    if (used == (seen[i] != 0)) return InternalError("a page is in no state or in two");
    walked.used += used;
  }
  if (walked.free != counts_.free || walked.cached != counts_.cached ||
      walked.used != counts_.used || walked.total != counts_.total ||
      counts_.free + counts_.used + counts_.cached != counts_.total) {
    return InternalError("free + used + cached is not total");
  }
  return OkStatus();
}

}  // namespace lacuna::kvcache
