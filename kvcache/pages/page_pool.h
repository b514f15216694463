// PagePool: which pages of one KvGroup are free, used or cached. Counts and ids only, no memory.
//
// A page is in exactly one state: free (nobody's), used (at least one PageRef), cached (published
// in a PrefixIndex, no PageRef, may be evicted). Cached pages stand in the order in which they were
// last used. Every operation is O(1). Owned by the KvCache; engine thread only.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/core/ids.h"
#include "kernels/core/status.h"

namespace lacuna::kvcache {

class PagePool;

// The right to one page. Move-only: the page goes back when its last right is gone.
class PageRef final {
 public:
  PageRef() = default;
  PageRef(PageRef&& other) noexcept;
  PageRef& operator=(PageRef&& other) noexcept;
  ~PageRef() { Reset(); }

  explicit operator bool() const { return pool_ != nullptr; }
  PageId id() const { return id_; }
  void Reset();

 private:
  friend class PagePool;
  PageRef(PagePool* pool, PageId id) : pool_(pool), id_(id) {}

  PagePool* pool_ = nullptr;
  PageId id_{-1};
};

enum class PageState { kFree, kUsed, kCached };

struct PoolCounts final {
  int64_t total = 0, free = 0, used = 0, cached = 0;
};

class PagePool final {
 public:
  explicit PagePool(int32_t pages_total);
  PagePool(const PagePool&) = delete;
  PagePool& operator=(const PagePool&) = delete;
  ~PagePool();  // no PageRef may outlive it

  // A free page, or an empty ref when there is none (evict first).
  PageRef Take();
  // One more right to a used or cached page.
  PageRef Acquire(PageId id);
  // From now on the used page is kept as cached when its last right goes.
  void Publish(PageId id);
  // Makes a cached page free.
  void Evict(PageId id);
  // The cached page unused for the longest time; {-1} when there is none.
  PageId OldestCached() const { return PageId{oldest_}; }

  PageState state(PageId id) const;
  int32_t refs(PageId id) const { return at(id).refs; }
  bool published(PageId id) const { return at(id).published; }
  const PoolCounts& counts() const { return counts_; }
  // Walks both lists: every page is in one state and on one list, and the counts add up.
  Status CheckInvariants() const;

 private:
  friend class PageRef;
  struct Page {
    int32_t refs = 0;
    bool published = false;
    int32_t prev = -1, next = -1;  // on the free list (next only) or the cached list
  };

  const Page& at(PageId id) const { return pages_[static_cast<size_t>(id.value)]; }
  Page& at(PageId id) { return pages_[static_cast<size_t>(id.value)]; }
  void Release(PageId id);
  void PushFree(PageId id);
  void PushCached(PageId id);
  void UnlinkCached(PageId id);

  std::vector<Page> pages_;
  PoolCounts counts_;
  int32_t free_ = -1;                  // last in, first out
  int32_t oldest_ = -1, newest_ = -1;  // cached
};

}  // namespace lacuna::kvcache
