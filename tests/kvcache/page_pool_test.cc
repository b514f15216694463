#include "kvcache/pages/page_pool.h"

#include <gtest/gtest.h>

#include <type_traits>
#include <utility>
#include <vector>

#include "kvcache/pages/ledger.h"
#include "kvcache/pages/page_table.h"

namespace lacuna::kvcache {
namespace {

static_assert(!std::is_copy_constructible_v<PageRef> && !std::is_copy_assignable_v<PageRef>);

void ExpectCounts(const PagePool& pool, int64_t free, int64_t used, int64_t cached) {
  EXPECT_EQ(pool.counts().free, free);
  EXPECT_EQ(pool.counts().used, used);
  EXPECT_EQ(pool.counts().cached, cached);
  EXPECT_TRUE(pool.CheckInvariants().ok()) << pool.CheckInvariants().ToString();
}

TEST(PagePoolTest, TakesEveryPageOnceAndThenNone) {
  PagePool pool(3);
  std::vector<PageRef> refs;
  std::vector<bool> seen(3, false);
  for (int i = 0; i < 3; ++i) {
    refs.push_back(pool.Take());
    ASSERT_TRUE(refs.back());
    EXPECT_FALSE(seen[static_cast<size_t>(refs.back().id().value)]);
    seen[static_cast<size_t>(refs.back().id().value)] = true;
  }
  EXPECT_FALSE(pool.Take());
  ExpectCounts(pool, 0, 3, 0);
  refs.clear();
  ExpectCounts(pool, 3, 0, 0);
}

TEST(PagePoolTest, MovesKeepOneRight) {
  PagePool pool(2);
  PageRef first = pool.Take();
  const PageId id = first.id();
  PageRef second = std::move(first);
  EXPECT_FALSE(first);  // NOLINT: the state after a move is the point
  EXPECT_EQ(second.id(), id);
  PageRef& self = second;
  second = std::move(self);
  ExpectCounts(pool, 1, 1, 0);
  second = pool.Take();  // gives the old one back
  ExpectCounts(pool, 1, 1, 0);
  second.Reset();
  second.Reset();
  ExpectCounts(pool, 2, 0, 0);
}

TEST(PagePoolTest, APublishedPageIsCachedWhenItsLastRightGoes) {
  PagePool pool(2);
  PageRef first = pool.Take();
  const PageId id = first.id();
  pool.Publish(id);
  PageRef second = pool.Acquire(id);
  EXPECT_EQ(pool.refs(id), 2);
  first.Reset();
  ExpectCounts(pool, 1, 1, 0);
  second.Reset();
  ExpectCounts(pool, 1, 0, 1);
  EXPECT_EQ(pool.state(id), PageState::kCached);
  first = pool.Acquire(id);
  ExpectCounts(pool, 1, 1, 0);
  first.Reset();
  pool.Evict(id);
  ExpectCounts(pool, 2, 0, 0);
  EXPECT_FALSE(pool.published(id));
}

TEST(PagePoolTest, CachedPagesStandInOrderOfLastUse) {
  PagePool pool(3);
  std::vector<PageId> ids;
  {
    std::vector<PageRef> refs;
    for (int i = 0; i < 3; ++i) refs.push_back(pool.Take());
    for (PageRef& ref : refs) {
      ids.push_back(ref.id());
      pool.Publish(ref.id());
    }
    for (PageRef& ref : refs) ref.Reset();
  }
  EXPECT_EQ(pool.OldestCached(), ids[0]);
  pool.Acquire(ids[0]).Reset();  // used again: now the newest
  EXPECT_EQ(pool.OldestCached(), ids[1]);
  pool.Acquire(ids[2]).Reset();
  pool.Evict(ids[1]);
  EXPECT_EQ(pool.OldestCached(), ids[0]);
  pool.Evict(ids[0]);
  pool.Evict(ids[2]);
  EXPECT_EQ(pool.OldestCached(), PageId{-1});
  ExpectCounts(pool, 3, 0, 0);
}

TEST(PagePoolDeathTest, WrongUseIsCaught) {
  PagePool pool(1);
  EXPECT_DEATH(pool.Acquire(PageId{0}), "page.refs > 0");
  EXPECT_DEATH(pool.Evict(PageId{0}), "kCached");
  EXPECT_DEATH(pool.Publish(PageId{0}), "refs > 0");
  EXPECT_DEATH(
      {
        PageRef outlives;
        PagePool other(1);
        outlives = other.Take();
        other.~PagePool();
      },
      "used == 0");
}

TEST(PageTableTest, AppendsReplacesDropsAndClears) {
  PagePool pool(8);
  PageTable table;
  for (int i = 0; i < 6; ++i) table.Append(pool.Take());
  EXPECT_EQ(table.logical_end(), 6);
  table.Drop(1, 4);
  ExpectCounts(pool, 5, 3, 0);
  const std::vector<int32_t> logical(table.span().logical.begin(), table.span().logical.end());
  EXPECT_EQ(logical, (std::vector<int32_t>{0, 4, 5}));
  table.Drop(1, 4);  // nothing there any more
  EXPECT_EQ(table.size(), 3);
  EXPECT_EQ(table.logical_end(), 6);
  table.Append(pool.Take());
  EXPECT_EQ(table.span().logical.back(), 6);
  PageRef other = pool.Take();
  const PageId id = other.id();
  table.Replace(2, std::move(other));
  EXPECT_EQ(table.page(2), id);
  EXPECT_EQ(table.span().pages[2], id.value);
  ExpectCounts(pool, 4, 4, 0);
  table.Drop(0, 100);
  EXPECT_EQ(table.logical_end(), 7);
  table.Clear();
  EXPECT_EQ(table.logical_end(), 0);
  ExpectCounts(pool, 8, 0, 0);
}

TEST(PageTableTest, ClearGivesTheDeepestPageBackFirst) {
  PagePool pool(3);
  PageTable table;
  for (int i = 0; i < 3; ++i) {
    table.Append(pool.Take());
    pool.Publish(table.page(i));
  }
  const PageId deepest = table.page(2), root = table.page(0);
  table.Clear();
  EXPECT_EQ(pool.OldestCached(), deepest);
  pool.Evict(deepest);
  EXPECT_NE(pool.OldestCached(), root);
}

TEST(LedgerTest, CountsSharedPagesOnce) {
  PagePool pool(6);
  PageTable a, b;
  for (int i = 0; i < 3; ++i) a.Append(pool.Take());
  for (int i = 0; i < 2; ++i) {
    pool.Publish(a.page(i));
    b.Append(pool.Acquire(a.page(i)));
  }
  b.Append(pool.Take());
  Ledger ledger({&pool});
  EXPECT_EQ(ledger.total(0), 6);
  EXPECT_EQ(ledger.available(0), 2);
  ledger.Drop(0, a);
  EXPECT_EQ(ledger.available(0), 3);  // two of its pages are still b's
  ledger.Drop(0, b);
  EXPECT_EQ(ledger.available(0), 6);
  EXPECT_EQ(pool.counts().used, 4);  // the pool knows nothing of it
  a.Clear();
  b.Clear();
}

TEST(LedgerTest, TakeHoldAndReturn) {
  PagePool pool(3);
  PageId cached;
  {
    const PageRef page = pool.Take();
    cached = page.id();
    pool.Publish(cached);
  }
  Ledger ledger({&pool});
  EXPECT_EQ(ledger.available(0), 3);  // a cached page is evicted on demand
  EXPECT_FALSE(ledger.Take(0, 4));
  EXPECT_EQ(ledger.available(0), 3);
  EXPECT_TRUE(ledger.Hold(0, cached));
  EXPECT_TRUE(ledger.Hold(0, cached));  // the second holder costs nothing
  EXPECT_EQ(ledger.available(0), 2);
  EXPECT_TRUE(ledger.Take(0, 2));
  EXPECT_FALSE(ledger.Take(0, 1));
  ledger.Return(0, 1);
  EXPECT_EQ(ledger.available(0), 1);
  Ledger full({&pool});
  EXPECT_TRUE(full.Take(0, 3));
  EXPECT_FALSE(full.Hold(0, cached));  // its page is planned for something else
}

}  // namespace
}  // namespace lacuna::kvcache
