// PrefixIndex: finds the published page that holds given tokens after a given prefix in a scope,
// computed in a given way (sparse prefill makes other K and V of the same tokens).
//
// One index per PagePool. A published page is one node; its parent is the page before it, present
// as long as the node is (a holder of a page holds all its parents, and PageTable gives pages back
// deepest first, so the oldest cached page never has a child). The hash only finds candidates: a
// hit has the same scope, fingerprint, parent and tokens, compared one by one.
// Sizes are fixed at start. Engine thread only.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "kvcache/pages/page_pool.h"
#include "kvcache/prefix/keyed_hash.h"

namespace lacuna::kvcache {

class PrefixIndex final {
 public:
  static constexpr PageId kNoPage{-1};

  // Where a page of tokens stands: what makes two pages equal, and its hash.
  struct Place final {
    CacheScope scope;
    uint64_t kv_fingerprint = 0;  // of all but tokens before them that made K and V; 0: densely
    PageId parent = kNoPage;
    std::span<const TokenId> tokens;  // exactly page_tokens
    uint64_t hash = 0;                // HashPage of the above
  };

  PrefixIndex(PagePool& pool, int64_t page_tokens);

  // The published page at `place`, or kNoPage.
  PageId Find(const Place& place) const;
  // Makes the used page findable at `place`. When an equal page is there already, returns a right
  // to that one instead (the caller puts it in the place of its own), else an empty ref.
  PageRef Publish(const Place& place, PageId page);
  // Frees the cached page that was unused for the longest time; false when none is cached.
  bool EvictOldest();

  uint64_t evicted_pages() const { return evicted_pages_; }
  int64_t size() const { return size_; }
  // Every node's page is published, its parent is a node of the same scope, its children are
  // counted.
  Status CheckInvariants() const;

 private:
  struct Node {
    CacheScope scope;
    uint64_t kv_fingerprint = 0;
    uint64_t hash = 0;
    PageId parent = kNoPage;
    PageId next = kNoPage;  // with the same hash
    int32_t children = 0;
    bool live = false;
  };
  const Node& at(PageId id) const { return nodes_[static_cast<size_t>(id.value)]; }
  Node& at(PageId id) { return nodes_[static_cast<size_t>(id.value)]; }
  TokenId* TokensOf(PageId id) { return &tokens_[static_cast<size_t>(id.value * page_tokens_)]; }
  const TokenId* TokensOf(PageId id) const {
    return &tokens_[static_cast<size_t>(id.value * page_tokens_)];
  }
  void Erase(PageId id);

  PagePool& pool_;
  int64_t page_tokens_;
  std::vector<Node> nodes_;      // by page
  std::vector<TokenId> tokens_;  // [pages, page_tokens]
  std::unordered_map<uint64_t, PageId> first_;
  int64_t size_ = 0;
  uint64_t evicted_pages_ = 0;
};

}  // namespace lacuna::kvcache
