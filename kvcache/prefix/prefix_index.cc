#include "kvcache/prefix/prefix_index.h"

#include <algorithm>

namespace lacuna::kvcache {

PrefixIndex::PrefixIndex(PagePool& pool, int64_t page_tokens)
    : pool_(pool),
      page_tokens_(page_tokens),
      nodes_(static_cast<size_t>(pool.counts().total)),
      tokens_(static_cast<size_t>(pool.counts().total * page_tokens)) {
  first_.reserve(nodes_.size());
}

PageId PrefixIndex::Find(const Place& place) const {
  const auto found = first_.find(place.hash);
  if (found == first_.end()) return kNoPage;
  for (PageId id = found->second; id != kNoPage; id = at(id).next) {
    const Node& node = at(id);
    if (node.scope == place.scope && node.kv_fingerprint == place.kv_fingerprint &&
        node.parent == place.parent &&
        std::equal(place.tokens.begin(), place.tokens.end(), TokensOf(id),
                   TokensOf(id) + page_tokens_)) {
      return id;
    }
  }
  return kNoPage;
}

PageRef PrefixIndex::Publish(const Place& place, PageId page) {
  LACUNA_CHECK(static_cast<int64_t>(place.tokens.size()) == page_tokens_);
  const PageId equal = Find(place);
  if (equal != kNoPage) return pool_.Acquire(equal);
  if (place.parent != kNoPage) {
    LACUNA_CHECK(at(place.parent).live);
    ++at(place.parent).children;
  }
  pool_.Publish(page);
  Node& node = at(page);
  LACUNA_CHECK(!node.live);
  const auto [slot, added] = first_.try_emplace(place.hash, page);
  node = {.scope = place.scope,
          .kv_fingerprint = place.kv_fingerprint,
          .hash = place.hash,
          .parent = place.parent,
          .next = added ? kNoPage : slot->second,
          .live = true};
  slot->second = page;
  std::copy(place.tokens.begin(), place.tokens.end(), TokensOf(page));
  ++size_;
  return {};
}

bool PrefixIndex::EvictOldest() {
  const PageId oldest = pool_.OldestCached();
  if (oldest == kNoPage) return false;
  Erase(oldest);
  pool_.Evict(oldest);
  ++evicted_pages_;
  return true;
}

void PrefixIndex::Erase(PageId id) {
  Node& node = at(id);
  LACUNA_CHECK(node.live && node.children == 0);
  const auto slot = first_.find(node.hash);
  LACUNA_CHECK(slot != first_.end());
  PageId* link = &slot->second;
  while (*link != id) link = &at(*link).next;
  *link = node.next;
  if (slot->second == kNoPage) first_.erase(slot);
  if (node.parent != kNoPage) --at(node.parent).children;
  node = Node{};
  --size_;
}

Status PrefixIndex::CheckInvariants() const {
  std::vector<int32_t> children(nodes_.size(), 0);
  int64_t live = 0;
  for (size_t i = 0; i < nodes_.size(); ++i) {
    const PageId id{static_cast<int32_t>(i)};
    const Node& node = nodes_[i];
    if (node.live != pool_.published(id)) return InternalError("a node's page is not published");
    if (!node.live) continue;
    ++live;
    if (node.parent == kNoPage) continue;
    const Node& parent = at(node.parent);
    if (!parent.live || parent.scope != node.scope) {
      return InternalError("a prefix page has no parent in its scope");
    }
    if (pool_.refs(id) > 0 && pool_.refs(node.parent) == 0) {
      return InternalError("a used prefix page has an unused parent");
    }
    ++children[static_cast<size_t>(node.parent.value)];
  }
  for (size_t i = 0; i < nodes_.size(); ++i) {
    if (children[i] != nodes_[i].children) return InternalError("prefix children miscounted");
  }
  return live == size_ ? OkStatus() : InternalError("prefix nodes miscounted");
}

}  // namespace lacuna::kvcache
