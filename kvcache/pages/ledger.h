// Ledger: a scratch copy of the page counts, on which a step is planned before any page moves.
//
// `available` counts pages that nobody would hold if the plan were committed: free and cached ones
// alike, since a cached page is evicted on demand. References are counted exactly, page by page,
// so that pages shared by two preempted sequences come back once. Any thread; reads the pools.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "kvcache/pages/page_pool.h"
#include "kvcache/pages/page_table.h"

namespace lacuna::kvcache {

class Ledger final {
 public:
  explicit Ledger(const std::vector<const PagePool*>& pools);

  int groups() const { return static_cast<int>(groups_.size()); }
  int64_t available(int group) const { return at(group).available; }
  int64_t total(int group) const { return at(group).pool->counts().total; }

  // Pages that only the plan knows so far. Take is false, and takes none, when too few are there.
  bool Take(int group, int64_t pages);
  void Return(int group, int64_t pages) { at(group).available += pages; }

  // One reference to an existing page more, or one less. Hold is false when its page was the last
  // one available and is planned for something else.
  bool Hold(int group, PageId page);
  void Drop(int group, PageId page);
  void Drop(int group, const PageTable& table);

 private:
  struct Group {
    const PagePool* pool = nullptr;
    int64_t available = 0;
    std::unordered_map<PageId, int32_t> refs{};  // of the touched pages, as planned
  };
  const Group& at(int group) const { return groups_[static_cast<size_t>(group)]; }
  Group& at(int group) { return groups_[static_cast<size_t>(group)]; }
  static int32_t& Refs(Group& group, PageId page);

  std::vector<Group> groups_;
};

}  // namespace lacuna::kvcache
