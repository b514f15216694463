// Deterministic mode: the bits of an output row depend only on its query, position and list. Each
// test computes the same rows in two ways and compares bytes.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "tests/ops/attention_fixture.h"

namespace lacuna::kernels::cpu {
namespace {

constexpr int kTokens = 330;
constexpr int kFirst = 37;  // queries [kFirst, kTokens): cached tokens end inside a page

class AttentionDeterminism : public ::testing::TestWithParam<std::tuple<Isa, DType, int>> {
 protected:
  // Several shapes for each parameter, so that masks, tails and odd groups all take part.
  std::vector<AttentionSpec> Specs() const {
    AttentionSpec plain;
    plain.isa = std::get<0>(GetParam());
    plain.dtype = std::get<1>(GetParam());
    plain.page_tokens = std::get<2>(GetParam());
    AttentionSpec window = plain;
    window.q_heads = 6;
    window.head_dim = 96;
    window.shape = {70, 20};
    AttentionSpec capped = plain;
    capped.q_heads = 7;
    capped.kv_heads = 1;
    capped.head_dim = 48;
    capped.softcap = 3.0f;
    capped.sink_logits = true;
    return {plain, window, capped};
  }
};

// Rows of sequence 0 at positions [kFirst, kTokens), as chunks that end at `cuts`.
GuardedTensor Prefill(const AttentionWorld& world, GuardedTensor* q, const std::vector<int>& cuts,
                      int threads) {
  const AttentionSpec& spec = world.spec();
  GuardedTensor out(spec.dtype, kTokens - kFirst, spec.q_heads, spec.head_dim);
  ListBuilder lists;
  std::vector<PrefillChunk> chunks;
  int begin = kFirst;
  for (int end : cuts) {
    chunks.push_back({begin - kFirst, end - begin, begin});
    // A chunk's list may hold pages that come after it, and must not be moved by them.
    world.AddAllPages(&lists, 0);
    lists.Close();
    begin = end;
  }
  ThreadPool pool(threads, false);
  AttentionScratch scratch(threads);
  const AttendPrefillArgs args{q->view(), world.pool(),   chunks,     lists.View(),
                               nullptr,   world.params(), out.view(), {}};
  EXPECT_TRUE(AttendPrefillCpu(args, spec.isa, true, pool, scratch).ok());
  return out;
}

std::vector<int> CutsEvery(int tokens) {
  std::vector<int> cuts;
  for (int end = kFirst + tokens; end < kTokens; end += tokens) cuts.push_back(end);
  cuts.push_back(kTokens);
  return cuts;
}

// The number of rows that differ.
int Differing(const GuardedTensor& a, const GuardedTensor& b) {
  int differing = 0;
  for (int row = 0; row < kTokens - kFirst; ++row) differing += a.RowBytes(row) != b.RowBytes(row);
  return differing;
}

TEST_P(AttentionDeterminism, ChunkCutsAndThreads) {
  for (const AttentionSpec& spec : Specs()) {
    SCOPED_TRACE(Describe(spec));
    AttentionWorld world(spec, {kTokens}, 3);
    GuardedTensor q(spec.dtype, kTokens - kFirst, spec.q_heads, spec.head_dim);
    world.FillRandom(&q, 4.0f);
    const GuardedTensor whole = Prefill(world, &q, {kTokens}, 1);
    for (int threads : {2, 3})
      EXPECT_EQ(Differing(whole, Prefill(world, &q, {kTokens}, threads)), 0);
    for (int size : {1, 63, 64, 65}) {
      EXPECT_EQ(Differing(whole, Prefill(world, &q, CutsEvery(size), 2)), 0) << size;
    }
    std::mt19937 random(5);
    for (int trial = 0; trial < 5; ++trial) {
      std::vector<int> cuts;
      for (int end = kFirst; end < kTokens;) {
        end = std::min<int>(kTokens, end + 1 + static_cast<int>(random() % 90));
        cuts.push_back(end);
      }
      EXPECT_EQ(Differing(whole, Prefill(world, &q, cuts, 2)), 0) << "trial " << trial;
    }
  }
}

// One decode row for each query, all at once or alone, with lists that end at the query's page or
// go on: always the bits of the prefill.
TEST_P(AttentionDeterminism, DecodeEqualsPrefillInAnyBatch) {
  for (const AttentionSpec& spec : Specs()) {
    SCOPED_TRACE(Describe(spec));
    AttentionWorld world(spec, {kTokens}, 3);
    const int rows = kTokens - kFirst;
    GuardedTensor q(spec.dtype, rows, spec.q_heads, spec.head_dim);
    world.FillRandom(&q, 4.0f);
    const GuardedTensor expected = Prefill(world, &q, {kTokens}, 2);
    ListBuilder lists;
    std::vector<int32_t> positions;
    for (int row = 0; row < rows; ++row) {
      positions.push_back(kFirst + row);
      const int last = row % 3 == 0 ? world.pages(0) - 1 : positions.back() / spec.page_tokens;
      for (int page = 0; page <= last; ++page) world.AddPage(&lists, 0, page);
      lists.Close();
    }
    for (int threads : {1, 2, 3}) {
      ThreadPool pool(threads, false);
      AttentionScratch scratch(threads);
      for (int batch : {1, 7, rows}) {
        GuardedTensor out(spec.dtype, rows, spec.q_heads, spec.head_dim);
        for (int first = 0; first < rows; first += batch) {
          const int count = std::min(batch, rows - first);
          PageLists view = lists.View();
          view.begins += first;
          view.ends += first;
          view.lists = count;
          const AttendDecodeArgs args{q.view().Slice(first, count),
                                      world.pool(),
                                      TensorView(positions.data() + first, DType::kI32, {count}),
                                      view,
                                      1,
                                      world.params(),
                                      out.view().Slice(first, count),
                                      {}};
          ASSERT_TRUE(AttendDecodeCpu(args, spec.isa, true, pool, scratch).ok());
        }
        EXPECT_EQ(Differing(expected, out), 0) << "batch " << batch << " threads " << threads;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(EveryIsa, AttentionDeterminism,
                         ::testing::Combine(::testing::ValuesIn(IsasHere()),
                                            ::testing::Values(DType::kF32, DType::kBF16),
                                            ::testing::Values(16, 64)),
                         [](const auto& param) {
                           return std::string(IsaName(std::get<0>(param.param))) + "_" +
                                  std::string(DTypeName(std::get<1>(param.param))) + "_page" +
                                  std::to_string(std::get<2>(param.param));
                         });

}  // namespace
}  // namespace lacuna::kernels::cpu
