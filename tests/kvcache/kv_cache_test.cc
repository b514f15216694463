#include "kvcache/kv_cache.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <vector>

namespace lacuna::kvcache {
namespace {

std::unique_ptr<KvCache> MakeCache(std::vector<KvGroup> groups, std::vector<int64_t> pages) {
  KvCacheOptions options;
  options.groups = std::move(groups);
  options.group_pages = std::move(pages);
  options.page_tokens = 4;
  auto cache = KvCache::Create(std::move(options));
  EXPECT_TRUE(cache.ok());
  return std::move(*cache);
}

KvGroup Window(int32_t window_tokens, int32_t sink_tokens) {
  KvGroup group;
  group.window_tokens = window_tokens;
  group.sink_tokens = sink_tokens;
  return group;
}

std::vector<TokenId> Tokens(int64_t count, TokenId first = 0) {
  std::vector<TokenId> tokens(static_cast<size_t>(count));
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

std::vector<int32_t> Logical(const PageTable& table) {
  return {table.span().logical.begin(), table.span().logical.end()};
}

TEST(KvCacheTest, RefusesSenselessSizes) {
  const auto code = [](std::vector<KvGroup> groups, std::vector<int64_t> pages, int64_t tokens) {
    KvCacheOptions options;
    options.groups = std::move(groups);
    options.group_pages = std::move(pages);
    options.page_tokens = tokens;
    return KvCache::Create(std::move(options)).status().code();
  };
  EXPECT_EQ(code({}, {}, 4), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({KvGroup{}}, {}, 4), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({KvGroup{}}, {0}, 4), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({KvGroup{}}, {int64_t{1} << 31}, 4), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({KvGroup{}}, {1}, 0), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({Window(-1, 0)}, {1}, 4), StatusCode::kInvalidArgument);
  EXPECT_EQ(code({KvGroup{}}, {1}, 1), StatusCode::kOk);
}

TEST(KvCacheTest, AFailedCommitChangesNothing) {
  auto cache = MakeCache({KvGroup{}, KvGroup{}}, {4, 2});
  SequenceKv held = cache->MakeSequence(CacheScope{1}), greedy = cache->MakeSequence(CacheScope{1});
  ASSERT_TRUE(cache->Commit({}, std::vector<PageClaim>{{&held, nullptr, 4}}).ok());
  SequenceKv* preempted[] = {&held};
  const std::vector<PageClaim> claims = {{&greedy, nullptr, 12}};  // group 1 has two pages
  EXPECT_EQ(cache->Commit(preempted, claims).code(), StatusCode::kExhausted);
  EXPECT_EQ(held.tables[0].size(), 1);
  EXPECT_EQ(greedy.tables[0].size(), 0);
  EXPECT_EQ(cache->counts(0).used, 1);
  EXPECT_EQ(cache->counts(1).used, 1);
  cache->Release(held);
}

TEST(KvCacheTest, PrefixesAreFoundPageByPageInTheirScopeOnly) {
  auto cache = MakeCache({KvGroup{}}, {8});
  const std::vector<TokenId> tokens = Tokens(14);
  SequenceKv first = cache->MakeSequence(CacheScope{1});
  ASSERT_TRUE(cache->Commit({}, std::vector<PageClaim>{{&first, nullptr, 14}}).ok());
  cache->Advance(first, tokens, 14);
  EXPECT_EQ(first.published_pages, 3);  // the fourth is not full
  SequenceKv second = cache->MakeSequence(CacheScope{1});
  EXPECT_EQ(cache->Lookup(second, tokens, 14).tokens, 12);
  EXPECT_EQ(cache->Lookup(second, tokens, 11).tokens, 8);
  EXPECT_EQ(cache->Lookup(second, tokens, 3).tokens, 0);
  SequenceKv stranger = cache->MakeSequence(CacheScope{2});
  EXPECT_EQ(cache->Lookup(stranger, tokens, 14).tokens, 0);
  SequenceKv shifted = cache->MakeSequence(CacheScope{1});
  EXPECT_EQ(cache->Lookup(shifted, Tokens(14, 4), 14).tokens, 0);  // equal page, other parent

  const PrefixHit hit = cache->Lookup(second, tokens, 13);
  ASSERT_TRUE(cache->Commit({}, std::vector<PageClaim>{{&second, &hit, 14}}).ok());
  EXPECT_EQ(second.computed_tokens, 12);
  EXPECT_EQ(cache->counts(0).used, 5);
  cache->Advance(second, tokens, 14);
  const SequenceKv* live[] = {&first, &second};
  EXPECT_TRUE(cache->CheckInvariants(live).ok());
  cache->Release(first);
  cache->Release(second);
  EXPECT_EQ(cache->counts(0).cached, 3);
}

TEST(KvCacheTest, PagesComputedInAnotherWayAreNotFound) {
  auto cache = MakeCache({KvGroup{}}, {12});
  const std::vector<TokenId> tokens = Tokens(14);
  std::vector<SequenceKv> sequences;
  for (const uint64_t fingerprint : {0, 7, 8}) {
    SequenceKv kv = cache->MakeSequence(CacheScope{1}, fingerprint);
    EXPECT_EQ(cache->Lookup(kv, tokens, 14).tokens, 0) << fingerprint;
    ASSERT_TRUE(cache->Commit({}, std::vector<PageClaim>{{&kv, nullptr, 14}}).ok());
    cache->Advance(kv, tokens, 14);
    sequences.push_back(std::move(kv));
  }
  EXPECT_EQ(cache->counts(0).used, 12);  // none is shared
  const SequenceKv* live[] = {&sequences[0], &sequences[1], &sequences[2]};
  EXPECT_TRUE(cache->CheckInvariants(live).ok());
  SequenceKv again = cache->MakeSequence(CacheScope{1}, 7);
  const PrefixHit hit = cache->Lookup(again, tokens, 14);
  ASSERT_EQ(hit.tokens, 12);
  EXPECT_EQ(hit.pages[0][0], sequences[1].tables[0].page(0));
  for (SequenceKv& kv : sequences) cache->Release(kv);
}

// The hash only finds candidates: an equal one does not make pages equal.
TEST(PrefixFingerprintTest, AnEqualHashDoesNotReachAnotherFingerprint) {
  PagePool pool(2);
  PrefixIndex index(pool, 2);
  const std::vector<TokenId> tokens = {1, 2};
  PageRef page = pool.Take();
  const PrefixIndex::Place dense{CacheScope{1}, 0, PrefixIndex::kNoPage, tokens, 42};
  PrefixIndex::Place sparse = dense;
  sparse.kv_fingerprint = 9;
  EXPECT_FALSE(index.Publish(dense, page.id()));
  EXPECT_EQ(index.Find(dense), page.id());
  EXPECT_EQ(index.Find(sparse), PrefixIndex::kNoPage);
}

TEST(KvCacheTest, GrainsAreSharedWholeOrNotAtAll) {
  auto cache = MakeCache({KvGroup{}}, {24});
  const std::vector<TokenId> tokens = Tokens(30);
  const auto make = [&] { return cache->MakeSequence(CacheScope{1}, 5, 12); };
  SequenceKv first = make();
  ASSERT_TRUE(cache->Commit({}, std::vector<PageClaim>{{&first, nullptr, 30}}).ok());
  cache->Advance(first, tokens, 30);
  EXPECT_EQ(first.published_pages, 6);  // the last grain is not whole
  SequenceKv same = make();
  const PrefixHit hit = cache->Lookup(same, tokens, 29);
  EXPECT_EQ(hit.tokens, 24);
  EXPECT_EQ(hit.pages[0].size(), 6u);
  EXPECT_EQ(cache->Lookup(same, tokens, 23).tokens, 12);
  EXPECT_EQ(cache->Lookup(same, tokens, 11).tokens, 0);

  // Two of the three pages of the second grain are equal, and were computed beside another third.
  std::vector<TokenId> other = tokens;
  other[22] += 1;
  SequenceKv second = make();
  const PrefixHit part = cache->Lookup(second, other, 29);
  EXPECT_EQ(part.tokens, 12);
  ASSERT_TRUE(cache->Commit({}, std::vector<PageClaim>{{&second, &part, 30}}).ok());
  cache->Advance(second, other, 30);
  EXPECT_EQ(second.published_pages, 6);
  EXPECT_EQ(second.tables[0].page(2), first.tables[0].page(2));
  for (int64_t page = 3; page < 6; ++page) {
    EXPECT_NE(second.tables[0].page(page), first.tables[0].page(page)) << page;
  }
  const SequenceKv* live[] = {&first, &second};
  EXPECT_TRUE(cache->CheckInvariants(live).ok());
  cache->Release(first);
  SequenceKv again = make();
  EXPECT_EQ(cache->Lookup(again, other, 29).pages[0][3], second.tables[0].page(3));
  cache->Release(second);
  EXPECT_EQ(cache->counts(0).cached, 9);
}

TEST(KvCacheTest, PagesBehindThePublishedEndStayPrivate) {
  auto cache = MakeCache({KvGroup{}}, {8});
  const std::vector<TokenId> tokens = Tokens(14);
  SequenceKv first = cache->MakeSequence(CacheScope{1});
  ASSERT_TRUE(cache->Commit({}, std::vector<PageClaim>{{&first, nullptr, 14}}).ok());
  cache->Advance(first, tokens, 10, 6);  // a page and a half
  EXPECT_EQ(first.published_pages, 1);
  cache->Advance(first, tokens, 14, 6);
  EXPECT_EQ(first.published_pages, 1);
  SequenceKv second = cache->MakeSequence(CacheScope{1});
  EXPECT_EQ(cache->Lookup(second, tokens, 14).tokens, 4);
  cache->Release(first);
  EXPECT_EQ(cache->counts(0).cached, 1);
}

TEST(KvCacheTest, EqualPagesComputedAtTheSameTimeBecomeOne) {
  auto cache = MakeCache({KvGroup{}}, {8});
  const std::vector<TokenId> tokens = Tokens(8);
  SequenceKv a = cache->MakeSequence(CacheScope{1}), b = cache->MakeSequence(CacheScope{1});
  ASSERT_TRUE(cache->Commit({}, std::vector<PageClaim>{{&a, nullptr, 8}, {&b, nullptr, 8}}).ok());
  EXPECT_EQ(cache->counts(0).used, 4);
  cache->Advance(a, tokens, 8);
  cache->Advance(b, tokens, 8);
  EXPECT_EQ(cache->counts(0).used, 2);
  EXPECT_EQ(a.tables[0].page(1), b.tables[0].page(1));
  cache->Release(a);
  EXPECT_EQ(cache->counts(0).cached, 0);
  cache->Release(b);
}

TEST(KvCacheTest, EvictsOnDemand) {
  auto cache = MakeCache({KvGroup{}}, {4});
  SequenceKv first = cache->MakeSequence(CacheScope{1}), next = cache->MakeSequence(CacheScope{1});
  ASSERT_TRUE(cache->Commit({}, std::vector<PageClaim>{{&first, nullptr, 12}}).ok());
  cache->Advance(first, Tokens(12), 12);
  cache->Release(first);
  EXPECT_EQ(cache->counts(0).cached, 3);
  ASSERT_TRUE(cache->Commit({}, std::vector<PageClaim>{{&next, nullptr, 12}}).ok());
  EXPECT_EQ(cache->evicted_pages(), 2u);
  EXPECT_EQ(cache->Lookup(first, Tokens(12), 12).tokens, 4);  // the root is left
  cache->Release(next);
}

TEST(KvCacheTest, WindowsKeepSinksAndWhatTheNextQuerySees) {
  auto cache = MakeCache({Window(6, 5)}, {10});
  EXPECT_FALSE(cache->reuses_prefixes());
  SequenceKv kv = cache->MakeSequence(CacheScope{1});
  const std::vector<TokenId> tokens = Tokens(32);
  for (int64_t computed = 1; computed <= 32; ++computed) {
    ASSERT_TRUE(cache->Commit({}, std::vector<PageClaim>{{&kv, nullptr, computed}}).ok());
    EXPECT_LE(kv.tables[0].size(), cache->PagesFor(0, 32, 1));
    cache->Advance(kv, tokens, computed);
    const std::vector<int32_t> logical = Logical(kv.tables[0]);
    for (int64_t key = 0; key < computed; ++key) {
      const bool seen = key < 5 || key > computed - 6;  // by the query at position `computed`
      const bool held = std::ranges::find(logical, key / 4) != logical.end();
      EXPECT_TRUE(held || !seen) << "key " << key << " of " << computed;
    }
    const SequenceKv* live[] = {&kv};
    EXPECT_TRUE(cache->CheckInvariants(live).ok());
  }
  EXPECT_EQ(Logical(kv.tables[0]), (std::vector<int32_t>{0, 1, 6, 7}));
  cache->Release(kv);
}

TEST(KvCacheTest, PageNeedOfAWindowIsBoundedAndReached) {
  auto cache = MakeCache({Window(6, 0)}, {10});
  EXPECT_EQ(cache->PagesFor(0, 1000, 1), 3);  // tokens 3..8 touch three pages
  EXPECT_EQ(cache->PagesFor(0, 5, 1), 2);
  EXPECT_EQ(cache->PagesFor(0, 1000, 8), 4);
  auto alone = MakeCache({Window(1, 0)}, {1});
  EXPECT_EQ(alone->PagesFor(0, 1000, 1), 1);
  EXPECT_GT(alone->sequence_tokens_max(), int64_t{1} << 40);
  EXPECT_EQ(MakeCache({Window(6, 0)}, {2})->sequence_tokens_max(), 8);
  EXPECT_EQ(MakeCache({KvGroup{}, Window(6, 0)}, {5, 3})->sequence_tokens_max(), 20);
}

}  // namespace
}  // namespace lacuna::kvcache
