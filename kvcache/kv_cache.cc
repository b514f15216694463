#include "kvcache/kv_cache.h"

#include <algorithm>
#include <limits>
#include <map>
#include <string>
#include <utility>

#include "kernels/core/checked_math.h"

namespace lacuna::kvcache {

Result<std::unique_ptr<KvCache>> KvCache::Create(KvCacheOptions options) {
  if (options.groups.empty() || options.groups.size() != options.group_pages.size()) {
    return InvalidArgument("kv cache: need one pool size for each of at least one group");
  }
  if (options.page_tokens < 1) return InvalidArgument("kv cache: page_tokens is below 1");
  for (size_t g = 0; g < options.groups.size(); ++g) {
    const int64_t pages = options.group_pages[g];
    const auto tokens = CheckedMul(pages, options.page_tokens);
    if (pages < 1 || !CheckedNarrow<int32_t>(pages) || !tokens) {
      return InvalidArgument("kv cache: a pool of " + std::to_string(pages) + " pages");
    }
    const KvGroup& group = options.groups[g];
    if (group.window_tokens < 0 || group.sink_tokens < 0) {
      return InvalidArgument("kv cache: a negative window or sink");
    }
  }
  return std::unique_ptr<KvCache>(new KvCache(std::move(options)));
}

KvCache::KvCache(KvCacheOptions options) : options_(std::move(options)) {
  const auto full = [](const KvGroup& group) { return group.full(); };
  reuses_prefixes_ = options_.prefix_cache && std::ranges::all_of(options_.groups, full);
  for (const int64_t pages : options_.group_pages) {
    stores_.push_back(std::make_unique<Store>(static_cast<int32_t>(pages), options_.page_tokens));
  }
}

int64_t KvCache::sequence_tokens_max() const {
  int64_t tokens_max = std::numeric_limits<int64_t>::max();
  for (int g = 0; g < groups(); ++g) {
    const int64_t pages = counts(g).total;
    if (group(g).full() || pages < PagesFor(g, tokens_max, 1)) {
      tokens_max = std::min(tokens_max, pages * page_tokens());
    }
  }
  return tokens_max;
}

SequenceKv KvCache::MakeSequence(CacheScope scope, uint64_t kv_fingerprint,
                                 int64_t grain_tokens) const {
  SequenceKv kv;
  kv.scope = scope;
  kv.kv_fingerprint = kv_fingerprint;
  kv.grain_tokens = grain_tokens;
  kv.tables.resize(stores_.size());
  return kv;
}

Ledger KvCache::MakeLedger() const {
  std::vector<const PagePool*> pools;
  for (const auto& store : stores_) pools.push_back(&store->pool);
  return Ledger(pools);
}

int64_t KvCache::PagesFor(int g, int64_t tokens, int64_t chunk_tokens) const {
  const int64_t all = tokens / page_tokens() + (tokens % page_tokens() != 0);
  if (group(g).full()) return all;
  // The window of the chunk's first query and the chunk itself span consecutive tokens.
  const int64_t span = group(g).window_tokens - 1 + chunk_tokens;
  const int64_t kept = CeilDiv(span - 1, page_tokens()) + 1;
  return std::min(all, kept + CeilDiv(group(g).sink_tokens, page_tokens()));
}

int64_t KvCache::PagesLacking(int g, const SequenceKv& kv, int64_t tokens_end) const {
  const int64_t held = kv.tables[static_cast<size_t>(g)].logical_end();
  return std::max<int64_t>(0, CeilDiv(tokens_end, page_tokens()) - held);
}

int64_t KvCache::WholeGrainPages(const SequenceKv& kv, int64_t tokens) const {
  const int64_t grain = std::max(kv.grain_tokens, page_tokens());
  return tokens / grain * (grain / page_tokens());
}

// Equal pages of grains that go on in different ways hold different K and V. Which grain a page is
// of is told by a keyed hash alone; the tokens of a hit's grains are all compared all the same,
// page by page.
uint64_t KvCache::FingerprintAt(SequenceKv& kv, std::span<const TokenId> tokens,
                                int64_t page) const {
  if (kv.grain_tokens == 0) return kv.kv_fingerprint;
  const auto grain = static_cast<size_t>(page * page_tokens() / kv.grain_tokens);
  const auto size = static_cast<size_t>(kv.grain_tokens);
  for (size_t g = kv.grain_fingerprints.size(); g <= grain; ++g) {
    kv.grain_fingerprints.push_back(
        HashPage(options_.hash_key, kv.scope, kv.kv_fingerprint, tokens.subspan(g * size, size)));
  }
  return kv.grain_fingerprints[grain];
}

void KvCache::ExtendHashes(SequenceKv& kv, std::span<const TokenId> tokens, int64_t pages) const {
  for (auto p = static_cast<int64_t>(kv.hashes.size()); p < pages; ++p) {
    const auto page =
        tokens.subspan(static_cast<size_t>(p * page_tokens()), static_cast<size_t>(page_tokens()));
    const bool folds = p == 0 || (kv.grain_tokens > 0 && p * page_tokens() % kv.grain_tokens == 0);
    const uint64_t parent =
        (kv.hashes.empty() ? 0 : kv.hashes.back()) ^ (folds ? FingerprintAt(kv, tokens, p) : 0);
    kv.hashes.push_back(HashPage(options_.hash_key, kv.scope, parent, page));
  }
}

PrefixHit KvCache::Lookup(SequenceKv& kv, std::span<const TokenId> tokens, int64_t limit) const {
  PrefixHit hit;
  hit.pages.resize(stores_.size());
  if (!reuses_prefixes_) return hit;
  int64_t pages = WholeGrainPages(kv, std::min(limit, static_cast<int64_t>(tokens.size())));
  for (size_t g = 0; g < stores_.size(); ++g) {
    PageId parent = PrefixIndex::kNoPage;
    for (int64_t p = 0; p < pages; ++p) {
      ExtendHashes(kv, tokens, p + 1);
      const auto page = tokens.subspan(static_cast<size_t>(p * page_tokens()),
                                       static_cast<size_t>(page_tokens()));
      parent = stores_[g]->index.Find({kv.scope, FingerprintAt(kv, tokens, p), parent, page,
                                       kv.hashes[static_cast<size_t>(p)]});
      if (parent == PrefixIndex::kNoPage) {
        pages = p;
        break;
      }
      hit.pages[g].push_back(parent);
    }
  }
  pages = WholeGrainPages(kv, pages * page_tokens());
  for (auto& group_pages : hit.pages) group_pages.resize(static_cast<size_t>(pages));
  hit.tokens = pages * page_tokens();
  return hit;
}

Status KvCache::CheckClaims(std::span<SequenceKv* const> preempted,
                            std::span<const PageClaim> claims) const {
  Ledger ledger = MakeLedger();
  for (int g = 0; g < groups(); ++g) {
    for (const SequenceKv* kv : preempted) ledger.Drop(g, kv->tables[static_cast<size_t>(g)]);
    for (const PageClaim& claim : claims) {
      const bool hits = claim.hit != nullptr && claim.hit->tokens > 0;
      int64_t lacking = PagesLacking(g, *claim.kv, claim.tokens_end);
      if (hits) {
        const auto& pages = claim.hit->pages[static_cast<size_t>(g)];
        lacking -= static_cast<int64_t>(pages.size());
        for (const PageId page : pages) {
          if (!ledger.Hold(g, page)) return Exhausted("kv cache: no page left for a prefix");
        }
      }
      if (!ledger.Take(g, std::max<int64_t>(0, lacking))) {
        return Exhausted("kv cache: no page left for a step");
      }
    }
  }
  return OkStatus();
}

Status KvCache::Commit(std::span<SequenceKv* const> preempted, std::span<const PageClaim> claims) {
  LACUNA_RETURN_IF_ERROR(CheckClaims(preempted, claims));
  for (SequenceKv* kv : preempted) Release(*kv);
  for (const PageClaim& claim : claims) {
    if (claim.hit == nullptr || claim.hit->tokens == 0) continue;
    LACUNA_CHECK(claim.kv->computed_tokens == 0);
    for (size_t g = 0; g < stores_.size(); ++g) {
      for (const PageId page : claim.hit->pages[g]) {
        claim.kv->tables[g].Append(stores_[g]->pool.Acquire(page));
      }
    }
    claim.kv->computed_tokens = claim.hit->tokens;
    claim.kv->published_pages = claim.hit->tokens / page_tokens();
  }
  for (const PageClaim& claim : claims) {
    for (int g = 0; g < groups(); ++g) {
      for (int64_t n = PagesLacking(g, *claim.kv, claim.tokens_end); n > 0; --n) {
        claim.kv->tables[static_cast<size_t>(g)].Append(TakePage(*stores_[static_cast<size_t>(g)]));
      }
    }
    claim.kv->claimed_tokens = std::max(claim.kv->claimed_tokens, claim.tokens_end);
  }
  return OkStatus();
}

PageRef KvCache::TakePage(Store& store) {
  PageRef page = store.pool.Take();
  if (page) return page;
  LACUNA_CHECK(store.index.EvictOldest());  // CheckClaims counted it
  return store.pool.Take();
}

void KvCache::PublishFullPages(SequenceKv& kv, std::span<const TokenId> tokens, int64_t end) {
  const int64_t full = WholeGrainPages(kv, std::min(kv.computed_tokens, end));
  if (full <= kv.published_pages) return;
  ExtendHashes(kv, tokens, full);
  for (int64_t p = kv.published_pages; p < full; ++p) {
    for (size_t g = 0; g < stores_.size(); ++g) {
      PageTable& table = kv.tables[g];
      const PrefixIndex::Place place{
          .scope = kv.scope,
          .kv_fingerprint = FingerprintAt(kv, tokens, p),
          .parent = p == 0 ? PrefixIndex::kNoPage : table.page(p - 1),
          .tokens = tokens.subspan(static_cast<size_t>(p * page_tokens()),
                                   static_cast<size_t>(page_tokens())),
          .hash = kv.hashes[static_cast<size_t>(p)]};
      PageRef equal = stores_[g]->index.Publish(place, table.page(p));
      if (equal) table.Replace(p, std::move(equal));
    }
  }
  kv.published_pages = full;
}

void KvCache::Advance(SequenceKv& kv, std::span<const TokenId> tokens, int64_t computed,
                      int64_t publish_end) {
  LACUNA_CHECK(computed >= kv.computed_tokens && computed <= static_cast<int64_t>(tokens.size()));
  kv.computed_tokens = computed;
  if (reuses_prefixes_) PublishFullPages(kv, tokens, publish_end);
  for (int g = 0; g < groups(); ++g) {
    if (group(g).full()) continue;
    // The next query sees keys from computed + 1 - window on.
    const int64_t seen = std::max<int64_t>(0, computed + 1 - group(g).window_tokens);
    const int64_t sink_pages = CeilDiv(group(g).sink_tokens, page_tokens());
    kv.tables[static_cast<size_t>(g)].Drop(sink_pages, seen / page_tokens());
  }
}

void KvCache::Release(SequenceKv& kv) {
  for (PageTable& table : kv.tables) table.Clear();
  kv.computed_tokens = 0;
  kv.claimed_tokens = 0;
  kv.published_pages = 0;
}

uint64_t KvCache::evicted_pages() const {
  uint64_t pages = 0;
  for (const auto& store : stores_) pages += store->index.evicted_pages();
  return pages;
}

Status KvCache::CheckTable(int g, const SequenceKv& kv) const {
  const PageTable& table = kv.tables[static_cast<size_t>(g)];
  const int64_t placed = std::max(kv.computed_tokens, kv.claimed_tokens);
  if (table.logical_end() != CeilDiv(placed, page_tokens())) {
    return InternalError("a page table does not cover exactly the computed and claimed tokens");
  }
  const PagePool& pool = stores_[static_cast<size_t>(g)]->pool;
  const int64_t seen =
      group(g).full() ? 0 : std::max<int64_t>(0, kv.computed_tokens + 1 - group(g).window_tokens);
  const int64_t sink_pages = CeilDiv(group(g).sink_tokens, page_tokens());
  int64_t next = 0;
  for (int64_t i = 0; i < table.size(); ++i) {
    const int64_t logical = table.span().logical[static_cast<size_t>(i)];
    if (next >= sink_pages) next = std::max(next, seen / page_tokens());
    if (logical != next++) return InternalError("a page table lacks a page or kept one too many");
    if (PageId{table.span().pages[static_cast<size_t>(i)]} != table.page(i)) {
      return InternalError("a page span differs from the rights held");
    }
    if (pool.published(table.page(i)) != (reuses_prefixes_ && i < kv.published_pages)) {
      return InternalError("a page that is not full is published, or a full one is not");
    }
  }
  return OkStatus();
}

Status KvCache::CheckInvariants(std::span<const SequenceKv* const> live) const {
  for (int g = 0; g < groups(); ++g) {
    const Store& store = *stores_[static_cast<size_t>(g)];
    LACUNA_RETURN_IF_ERROR(store.pool.CheckInvariants());
    LACUNA_RETURN_IF_ERROR(store.index.CheckInvariants());
    std::vector<int32_t> holders(static_cast<size_t>(store.pool.counts().total), 0);
    std::map<PageId, const SequenceKv*> firsts;  // that hold it
    for (const SequenceKv* kv : live) {
      LACUNA_RETURN_IF_ERROR(CheckTable(g, *kv));
      const PageTable& table = kv->tables[static_cast<size_t>(g)];
      for (int64_t i = 0; i < table.size(); ++i) {
        ++holders[static_cast<size_t>(table.page(i).value)];
        const SequenceKv& first = *firsts.try_emplace(table.page(i), kv).first->second;
        if (first.scope != kv->scope || first.kv_fingerprint != kv->kv_fingerprint) {
          return InternalError("a page is reachable from two scopes or fingerprints");
        }
      }
    }
    for (size_t p = 0; p < holders.size(); ++p) {
      if (holders[p] != store.pool.refs(PageId{static_cast<int32_t>(p)})) {
        return InternalError("a page's references are not its holders");
      }
    }
  }
  return OkStatus();
}

}  // namespace lacuna::kvcache
