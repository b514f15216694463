#include "kvcache/prefix/prefix_index.h"

#include <gtest/gtest.h>

#include <set>
#include <vector>

namespace lacuna::kvcache {
namespace {

constexpr PageId kNone = PrefixIndex::kNoPage;

struct PrefixIndexTest : ::testing::Test {
  PagePool pool{8};
  PrefixIndex index{pool, 2};

  // Takes a page, publishes it and gives it back: cached.
  PageId Cache(uint64_t scope, PageId parent, std::vector<TokenId> tokens, uint64_t hash) {
    PageRef page = pool.Take();
    const PageId id = page.id();
    PageRef equal = index.Publish({CacheScope{scope}, 0, parent, tokens, hash}, id);
    return equal ? equal.id() : id;
  }
  PageId Find(uint64_t scope, PageId parent, std::vector<TokenId> tokens, uint64_t hash) {
    return index.Find({CacheScope{scope}, 0, parent, tokens, hash});
  }
  void TearDown() override {
    EXPECT_TRUE(index.CheckInvariants().ok()) << index.CheckInvariants().ToString();
    EXPECT_TRUE(pool.CheckInvariants().ok());
  }
};

TEST_F(PrefixIndexTest, EqualHashesDoNotHit) {
  const PageId a = Cache(1, kNone, {1, 2}, 42);
  EXPECT_EQ(Find(1, kNone, {1, 2}, 42), a);
  EXPECT_EQ(Find(1, kNone, {1, 3}, 42), kNone);  // tokens
  EXPECT_EQ(Find(2, kNone, {1, 2}, 42), kNone);  // scope
  EXPECT_EQ(Find(1, a, {1, 2}, 42), kNone);      // parent
  EXPECT_EQ(Find(1, kNone, {1, 2}, 43), kNone);
  const PageId b = Cache(2, kNone, {1, 2}, 42);
  const PageId c = Cache(1, kNone, {1, 3}, 42);
  EXPECT_EQ(std::set<PageId>({a, b, c}).size(), 3u);
  EXPECT_EQ(Find(1, kNone, {1, 2}, 42), a);
  EXPECT_EQ(Find(2, kNone, {1, 2}, 42), b);
  EXPECT_EQ(Find(1, kNone, {1, 3}, 42), c);
  EXPECT_TRUE(index.EvictOldest());  // a, in the middle of the chain of equal hashes
  EXPECT_EQ(Find(1, kNone, {1, 2}, 42), kNone);
  EXPECT_EQ(Find(2, kNone, {1, 2}, 42), b);
  EXPECT_EQ(Find(1, kNone, {1, 3}, 42), c);
}

TEST_F(PrefixIndexTest, AnEqualPageIsSharedInsteadOfPublishedTwice) {
  PageRef first = pool.Take(), second = pool.Take();
  const std::vector<TokenId> tokens = {5, 6};
  const PrefixIndex::Place place{CacheScope{1}, 0, kNone, tokens, 7};
  EXPECT_FALSE(index.Publish(place, first.id()));
  const PageRef shared = index.Publish(place, second.id());
  EXPECT_EQ(shared.id(), first.id());
  EXPECT_EQ(pool.refs(first.id()), 2);
  EXPECT_FALSE(pool.published(second.id()));
  EXPECT_EQ(index.size(), 1);
}

TEST_F(PrefixIndexTest, EvictsLeavesBeforeParents) {
  std::vector<PageRef> chain;
  PageId parent = kNone;
  for (TokenId i = 0; i < 3; ++i) {
    chain.push_back(pool.Take());
    const std::vector<TokenId> tokens = {i, i};
    EXPECT_FALSE(index.Publish({CacheScope{1}, 0, parent, tokens, static_cast<uint64_t>(i)},
                               chain.back().id()));
    parent = chain.back().id();
  }
  const std::vector<PageId> ids = {chain[0].id(), chain[1].id(), chain[2].id()};
  EXPECT_FALSE(index.EvictOldest());  // all in use
  while (!chain.empty()) chain.pop_back();
  for (int left = 2; left >= 0; --left) {
    ASSERT_TRUE(index.EvictOldest());
    EXPECT_EQ(pool.state(ids[static_cast<size_t>(left)]), PageState::kFree);
    EXPECT_TRUE(index.CheckInvariants().ok());
  }
  EXPECT_EQ(index.evicted_pages(), 3u);
  EXPECT_EQ(index.size(), 0);
}

TEST(KeyedHashTest, DependsOnEveryInput) {
  const std::vector<TokenId> tokens = {1, 2, 3}, other = {1, 2, 4}, padded = {1, 2, 3, 0};
  const HashKey key{1, 2};
  std::set<uint64_t> hashes = {
      HashPage(key, CacheScope{1}, 0, tokens),    HashPage(key, CacheScope{2}, 0, tokens),
      HashPage(key, CacheScope{1}, 1, tokens),    HashPage(key, CacheScope{1}, 0, other),
      HashPage(key, CacheScope{1}, 0, padded),    HashPage({2, 2}, CacheScope{1}, 0, tokens),
      HashPage({1, 3}, CacheScope{1}, 0, tokens),
  };
  EXPECT_EQ(hashes.size(), 7u);
  EXPECT_EQ(HashPage(key, CacheScope{1}, 0, tokens), HashPage(key, CacheScope{1}, 0, tokens));
  const HashKey a = RandomHashKey(), b = RandomHashKey();
  EXPECT_TRUE(a.k0 != b.k0 || a.k1 != b.k1);
}

}  // namespace
}  // namespace lacuna::kvcache
