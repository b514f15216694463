// The merge loop of byte pair encoding: repeatedly joins the leftmost pair of the lowest rank.
//
// BpeMerges is immutable after load; a BpeMerger belongs to one thread at a time.
#pragma once

#include <cstdint>
#include <queue>
#include <vector>

#include "kernels/core/ids.h"
#include "server/text/tokenizer_tables.h"

namespace lacuna::server {

struct BpeMerge {
  uint32_t rank;   // lower merges first
  TokenId merged;  // id of the joined token
};

class BpeMerges final {
 public:
  // The last merge of a pair wins, as in Hugging Face's map.
  void Add(TokenId left, TokenId right, BpeMerge merge) { map_.Insert(Key(left, right), merge); }
  const BpeMerge* Find(TokenId left, TokenId right) const { return map_.Find(Key(left, right)); }

 private:
  static uint64_t Key(TokenId left, TokenId right) {
    return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
  }
  FlatMap64<BpeMerge> map_;
};

class BpeMerger final {
 public:
  explicit BpeMerger(const BpeMerges& merges, uint32_t rank_count)
      : merges_(merges), bucket_of_rank_(rank_count, kNone) {}

  // Merges `symbols` in place until no pair is left. O(n^2) for short words, where scanning beats
  // any queue, and O(n log n) for long ones.
  void Run(std::vector<TokenId>& symbols);

 private:
  static constexpr uint32_t kNone = ~uint32_t{0};
  static constexpr size_t kShortMax = 32;

  struct Node {
    TokenId id;
    uint32_t previous;
    uint32_t next;
  };
  // The places (left nodes) of one rank, in ascending order from `done` on once sorted.
  struct Bucket {
    std::vector<uint32_t> places;
    size_t done = 0;
    bool sorted = true;
  };

  void RunShort(std::vector<TokenId>& symbols);
  void RunLong(std::vector<TokenId>& symbols);
  void Offer(uint32_t left);
  // The leftmost place of the lowest rank, or kNone when all are done.
  uint32_t Take(uint32_t& rank);

  const BpeMerges& merges_;
  std::vector<uint32_t> ranks_;  // RunShort: rank of each adjacent pair
  // RunLong. Buckets by rank instead of one heap of places: a long word has few distinct ranks
  // beside its places, and a merge seldom offers a place left of the one just taken.
  std::vector<Node> nodes_;
  std::vector<uint32_t> bucket_of_rank_;
  std::vector<Bucket> buckets_;
  std::vector<uint32_t> free_buckets_;
  std::priority_queue<uint32_t, std::vector<uint32_t>, std::greater<>> ranks_waiting_;
};

}  // namespace lacuna::server
