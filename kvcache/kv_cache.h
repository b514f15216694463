// KvCache: the pools and prefix indices of all KvGroups, and the only way to move their pages.
//
// A step's page operations are committed all or nothing. Full pages of computed tokens are
// published as soon as they are full; a sequence that computed an equal page swaps to the published
// one. Prefixes are reused only when every group is full: a window group lacks the middle of a
// sequence, so a model with one never hits. Owned by the engine loop; engine thread only.
#pragma once

#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <vector>

#include "kernels/core/ids.h"
#include "kernels/core/status.h"
#include "kvcache/pages/kv_group.h"
#include "kvcache/pages/ledger.h"
#include "kvcache/pages/page_pool.h"
#include "kvcache/pages/page_table.h"
#include "kvcache/prefix/prefix_index.h"

namespace lacuna::kvcache {

// The KV of one sequence. computed_tokens of its tokens have their K and V in the tables' pages.
struct SequenceKv final {
  CacheScope scope;
  // Of how K and V of its prompt are computed, 0: densely; and in what grains: K and V of one
  // depend on all of its tokens. A multiple of page_tokens; 0: on those before them alone.
  uint64_t kv_fingerprint = 0;
  int64_t grain_tokens = 0;
  int64_t computed_tokens = 0;
  int64_t claimed_tokens = 0;  // the pages of this many have been claimed: those of steps under way
  std::vector<PageTable> tables;  // one per group
  int64_t published_pages = 0;
  std::vector<uint64_t> hashes;  // of the full pages of its tokens, as far as they were asked for
  std::vector<uint64_t> grain_fingerprints;  // likewise, of whole grains with their tokens
};

// Published pages that hold the first `tokens` tokens.
struct PrefixHit final {
  int64_t tokens = 0;
  std::vector<std::vector<PageId>> pages;  // per group
};

// Pages so that the first tokens_end tokens of a sequence have a place, after the hit (if any).
struct PageClaim final {
  SequenceKv* kv = nullptr;
  const PrefixHit* hit = nullptr;
  int64_t tokens_end = 0;
};

struct KvCacheOptions final {
  std::vector<KvGroup> groups;
  std::vector<int64_t> group_pages;
  int64_t page_tokens = 64;
  bool prefix_cache = true;
  HashKey hash_key = RandomHashKey();
};

class KvCache final {
 public:
  static Result<std::unique_ptr<KvCache>> Create(KvCacheOptions options);

  int groups() const { return static_cast<int>(stores_.size()); }
  int64_t page_tokens() const { return options_.page_tokens; }
  bool reuses_prefixes() const { return reuses_prefixes_; }
  // Tokens that one sequence alone can have computed; INT64_MAX when only window groups exist.
  int64_t sequence_tokens_max() const;
  SequenceKv MakeSequence(CacheScope scope, uint64_t kv_fingerprint = 0,
                          int64_t grain_tokens = 0) const;

  Ledger MakeLedger() const;
  // Pages of `group` that a sequence of `tokens` tokens holds at most while it runs in chunks.
  int64_t PagesFor(int group, int64_t tokens, int64_t chunk_tokens) const;
  // Pages that `kv` lacks, so that tokens [0, tokens_end) have a place.
  int64_t PagesLacking(int group, const SequenceKv& kv, int64_t tokens_end) const;
  // The longest published prefix of tokens[0, limit), in whole grains. Changes nothing but the
  // memos of hashes.
  PrefixHit Lookup(SequenceKv& kv, std::span<const TokenId> tokens, int64_t limit) const;

  // Releases `preempted`, then gives every claim its pages. An error changes nothing.
  Status Commit(std::span<SequenceKv* const> preempted, std::span<const PageClaim> claims);
  // The first `computed` of `tokens` now have their K and V: publishes, drops what windows left.
  // Full pages of whole grains of the first publish_end tokens become prefixes that others may
  // find.
  void Advance(SequenceKv& kv, std::span<const TokenId> tokens, int64_t computed,
               int64_t publish_end = std::numeric_limits<int64_t>::max());
  void Release(SequenceKv& kv);

  const PoolCounts& counts(int group) const {
    return stores_[static_cast<size_t>(group)]->pool.counts();
  }
  uint64_t evicted_pages() const;
  // `live`: every sequence that holds pages. Walks everything.
  Status CheckInvariants(std::span<const SequenceKv* const> live) const;

 private:
  struct Store {
    Store(int32_t pages, int64_t page_tokens) : pool(pages), index(pool, page_tokens) {}
    PagePool pool;
    PrefixIndex index;
  };

  explicit KvCache(KvCacheOptions options);
  const KvGroup& group(int index) const { return options_.groups[static_cast<size_t>(index)]; }
  Status CheckClaims(std::span<SequenceKv* const> preempted,
                     std::span<const PageClaim> claims) const;
  Status CheckTable(int group, const SequenceKv& kv) const;
  PageRef TakePage(Store& store);
  // Of page `page`: the sequence's, or its grain's with all of that one's tokens.
  uint64_t FingerprintAt(SequenceKv& kv, std::span<const TokenId> tokens, int64_t page) const;
  int64_t WholeGrainPages(const SequenceKv& kv, int64_t tokens) const;
  void ExtendHashes(SequenceKv& kv, std::span<const TokenId> tokens, int64_t pages) const;
  void PublishFullPages(SequenceKv& kv, std::span<const TokenId> tokens, int64_t end);

  KvCacheOptions options_;
  bool reuses_prefixes_ = false;
  std::vector<std::unique_ptr<Store>> stores_;  // one per group
};

}  // namespace lacuna::kvcache
