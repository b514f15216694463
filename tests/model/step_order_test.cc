// How a step's sequences are ordered, padded and cut into classes, and the graphs of padded steps.
#include "engine/execute/step_order.h"

#include <gtest/gtest.h>

#include <random>
#include <set>

#include "engine/execute/graph_cache.h"

namespace lacuna::engine {
namespace {

constexpr int64_t kTilesMax = 8;
const HeadLaunches kLaunches(2, nullptr);

kvcache::SparsePlan PlanOf(uint64_t path) {
  kvcache::SparsePlan plan;
  plan.path_fingerprint = path;
  plan.sparse_decode = plan.sparse_prefill = true;
  return plan;
}

StepSequence Row(const kvcache::SparsePlan* plan, bool dense = false) {
  static const TokenId kToken = 1;
  StepSequence row{.tokens = {&kToken, 1}, .decode = true, .pages = {}, .logits_from = 0};
  row.plan = plan;
  row.select.counts.dense = dense;
  return row;
}

TEST(StepOrderTest, PaddingIsBoundedAndOfFewSizes) {
  std::set<int64_t> sizes;
  for (int64_t count = 0; count <= 512; ++count) {
    const int64_t rows = PaddedRows(count, 512);
    EXPECT_GE(rows, count);
    EXPECT_LE(rows, PaddedRowsMax(count)) << count;
    EXPECT_EQ(PaddedRows(count, count), count);
    sizes.insert(rows);
  }
  EXPECT_LE(sizes.size(), 20u);
}

TEST(StepOrderTest, PartsOfAStepStandOneBehindTheOtherWithTheirPadding) {
  const kvcache::SparsePlan a = PlanOf(7), b = PlanOf(9);
  std::mt19937 random(1);
  for (int repeat = 0; repeat < 50; ++repeat) {
    StepBatch batch;
    const size_t count = 1 + random() % 64;
    int64_t of_a = 0, of_b = 0;
    for (size_t i = 0; i < count; ++i) {
      const uint32_t kind = random() % 4;  // of the third kind: by a plan that leaves it dense
      of_a += kind == 0;
      of_b += kind == 1;
      batch.sequences.push_back(Row(kind == 0 ? &a : kind == 3 ? nullptr : &b, kind == 2));
    }
    StepOrder order;
    OrderStep(batch, kLaunches, kTilesMax, order);
    EXPECT_EQ(order.decode_rows, static_cast<int64_t>(count));
    PadOrder(64, order);
    int64_t row = order.dense_rows, sequences = static_cast<int64_t>(count) - of_a - of_b;
    EXPECT_GE(order.dense_rows, sequences);
    ASSERT_EQ(order.decode.size(), static_cast<size_t>((of_a > 0) + (of_b > 0)));
    for (const StepOrder::Class& one : order.decode) {
      EXPECT_EQ(one.count, one.plan == &a ? of_a : of_b);
      EXPECT_EQ(one.first, sequences);
      EXPECT_EQ(one.row, row);
      EXPECT_GE(one.rows, one.count);
      sequences += one.count;
      row += one.rows;
    }
    EXPECT_EQ(order.decode_rows, row);
    if (order.decode.empty()) continue;
    EXPECT_LE(row, PaddedRowsMax(64));
  }
}

TEST(StepOrderTest, ClassesOfChunksEndWhereTheirTilesAreTooMany) {
  const kvcache::SparsePlan plan = PlanOf(7);
  const std::vector<TokenId> tokens(512);
  StepBatch batch;
  for (const size_t rows : {65u, 64u, 512u, 1u, 200u, 128u}) {  // 2, 1, 8, 1, 4 and 2 tiles
    StepSequence chunk{.tokens = std::span(tokens).first(rows), .pages = {}};
    chunk.plan = &plan;
    chunk.prompt_tokens = 512;
    batch.sequences.push_back(chunk);
  }
  StepOrder order;
  OrderStep(batch, kLaunches, kTilesMax, order);
  std::vector<int64_t> counts;
  for (const StepOrder::Class& one : order.prefill) {
    counts.push_back(one.count);
    EXPECT_TRUE(one.sparse);
  }
  EXPECT_EQ(counts, (std::vector<int64_t>{2, 1, 3}));
  EXPECT_EQ(order.prefill[2].first, 3);
}

struct CountedGraph final : kernels::Graph {
  explicit CountedGraph(int& alive_in) : alive(alive_in) { ++alive; }
  ~CountedGraph() override { --alive; }
  Status Launch(kernels::Stream&) override { return OkStatus(); }
  int& alive;
};

TEST(GraphCacheTest, IsBoundedAndKeepsWhatMayStillRun) {
  int alive = 0;
  {
    GraphCache cache;
    for (int64_t step = 0; step < 300; ++step) {
      GraphKey key{.room = step};
      key.classes[0] = {.path = static_cast<uint64_t>(1 + step % 2), .rows = 1};
      cache.Of(key, step, step - 1).graph = std::make_unique<CountedGraph>(alive);
      EXPECT_LE(alive, static_cast<int>(GraphCache::kGraphsMax) + 2);
    }
    cache.DropPath(1, 300);
    EXPECT_GE(alive, static_cast<int>(GraphCache::kGraphsMax));  // steps until 300 may run
    GraphKey key{.room = 299};
    key.classes[0] = {.path = 2, .rows = 1};
    EXPECT_NE(cache.Of(key, 301, 301).graph, nullptr);
    EXPECT_EQ(alive, static_cast<int>(GraphCache::kGraphsMax) / 2);
  }
  EXPECT_EQ(alive, 0);
}

}  // namespace
}  // namespace lacuna::engine
