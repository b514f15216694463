#include "server/text/bpe_merge.h"

#include <algorithm>
#include <cstddef>

namespace lacuna::server {

void BpeMerger::Run(std::vector<TokenId>& symbols) {
  if (symbols.size() <= kShortMax) {
    RunShort(symbols);
  } else {
    RunLong(symbols);
  }
}

void BpeMerger::RunShort(std::vector<TokenId>& symbols) {
  const auto rank_at = [&](size_t i) {
    const BpeMerge* merge = merges_.Find(symbols[i], symbols[i + 1]);
    return merge ? merge->rank : kNone;
  };
  ranks_.clear();
  for (size_t i = 0; i + 1 < symbols.size(); ++i) ranks_.push_back(rank_at(i));
  while (!ranks_.empty()) {
    const auto best = std::min_element(ranks_.begin(), ranks_.end());
    if (*best == kNone) return;
    const auto i = static_cast<size_t>(best - ranks_.begin());
    symbols[i] = merges_.Find(symbols[i], symbols[i + 1])->merged;
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(i) + 1);
    ranks_.erase(best);
    if (i > 0) ranks_[i - 1] = rank_at(i - 1);
    if (i < ranks_.size()) ranks_[i] = rank_at(i);
  }
}

void BpeMerger::Offer(uint32_t left) {
  const uint32_t right = nodes_[left].next;
  if (right == kNone) return;
  const BpeMerge* merge = merges_.Find(nodes_[left].id, nodes_[right].id);
  if (!merge) return;
  uint32_t& index = bucket_of_rank_[merge->rank];
  if (index == kNone) {
    if (free_buckets_.empty()) {
      free_buckets_.push_back(static_cast<uint32_t>(buckets_.size()));
      buckets_.emplace_back();
    }
    index = free_buckets_.back();
    free_buckets_.pop_back();
    ranks_waiting_.push(merge->rank);
  }
  Bucket& bucket = buckets_[index];
  if (!bucket.places.empty() && bucket.places.back() > left) bucket.sorted = false;
  bucket.places.push_back(left);
}

uint32_t BpeMerger::Take(uint32_t& rank) {
  while (!ranks_waiting_.empty()) {
    rank = ranks_waiting_.top();
    Bucket& bucket = buckets_[bucket_of_rank_[rank]];
    if (!bucket.sorted) {
      std::sort(bucket.places.begin() + static_cast<std::ptrdiff_t>(bucket.done),
                bucket.places.end());
      bucket.sorted = true;
    }
    if (bucket.done < bucket.places.size()) return bucket.places[bucket.done++];
    bucket.places.clear();
    bucket.done = 0;
    free_buckets_.push_back(bucket_of_rank_[rank]);
    bucket_of_rank_[rank] = kNone;
    ranks_waiting_.pop();
  }
  return kNone;
}

void BpeMerger::RunLong(std::vector<TokenId>& symbols) {
  const auto count = static_cast<uint32_t>(symbols.size());
  nodes_.resize(count);
  for (uint32_t i = 0; i < count; ++i) {
    nodes_[i] = {symbols[i], i == 0 ? kNone : i - 1, i + 1 == count ? kNone : i + 1};
  }
  for (uint32_t i = 0; i < count; ++i) Offer(i);
  uint32_t rank = 0;
  for (uint32_t left = Take(rank); left != kNone; left = Take(rank)) {
    Node& node = nodes_[left];
    if (node.id == kNoToken || node.next == kNone) continue;  // merged away since it was offered
    Node& right = nodes_[node.next];
    const BpeMerge* merge = merges_.Find(node.id, right.id);
    if (!merge || merge->rank != rank) continue;
    node.id = merge->merged;
    right.id = kNoToken;
    node.next = right.next;
    if (right.next != kNone) nodes_[right.next].previous = left;
    if (node.previous != kNone) Offer(node.previous);
    Offer(left);
  }
  symbols.clear();
  for (uint32_t i = 0; i != kNone; i = nodes_[i].next) symbols.push_back(nodes_[i].id);
  // One long text must not leave its buffers in the pool for ever.
  if (count > 1 << 16) {
    nodes_ = {};
    buckets_ = {};
    free_buckets_ = {};
  }
}

}  // namespace lacuna::server
