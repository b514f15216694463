// Deterministic mode: the bits of an output row depend only on its query, position and list. Each
// test computes the same rows in two ways and compares bytes.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "tests/ops/attention_fixture.h"

namespace lacuna::kernels {
namespace {

constexpr int kTokens = 330;
constexpr int kFirst = 37;  // queries [kFirst, kTokens): cached tokens end inside a page

class AttentionDeterminism : public ::testing::TestWithParam<std::tuple<BackendCase, int>> {
 protected:
  void SetUp() override { SkipsOrFails(MakeTestBackend(std::get<0>(GetParam()), 2, true)); }
  // Several shapes for each parameter, so that masks, tails and odd groups all take part.
  std::vector<AttentionSpec> Specs() const {
    AttentionSpec plain;
    plain.which = std::get<0>(GetParam());
    plain.page_tokens = std::get<1>(GetParam());
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

AttentionWorld MakeWorld(const AttentionSpec& spec, int threads) {
  return AttentionWorld(MakeTestBackend(spec.which, threads, true).value(), spec, {kTokens}, 3);
}

// Rows of sequence 0 at positions [kFirst, kTokens), as chunks that end at `cuts`.
TestTensor Prefill(const AttentionSpec& spec, const std::vector<int>& cuts, int threads) {
  AttentionWorld world = MakeWorld(spec, threads);  // the same numbers every time
  const int rows = kTokens - kFirst;
  TestTensor q = world.MakeTensor(spec.dtype(), rows, spec.q_heads * spec.head_dim);
  TestTensor out = world.MakeTensor(spec.dtype(), rows, spec.q_heads * spec.head_dim);
  world.FillRandom(&q, 4.0f);
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
  DeviceLists device_lists(world.backend(), lists);
  const AttendPrefillArgs args{.q = q.view3(spec.q_heads),
                               .pool = world.pool(),
                               .chunks = chunks,
                               .lists = device_lists.view(),
                               .params = world.params(),
                               .out = out.view3(spec.q_heads),
                               .lse = {}};
  Stream stream;
  EXPECT_EQ(AttendPrefill(world.backend(), args, stream), OkStatus());
  EXPECT_EQ(world.backend().device().Synchronize(stream), OkStatus());
  return out;
}

std::vector<int> CutsEvery(int tokens) {
  std::vector<int> cuts;
  for (int end = kFirst + tokens; end < kTokens; end += tokens) cuts.push_back(end);
  cuts.push_back(kTokens);
  return cuts;
}

// The number of rows that differ.
int Differing(const TestTensor& a, const TestTensor& b) {
  int differing = 0;
  for (int row = 0; row < kTokens - kFirst; ++row) differing += a.RowBytes(row) != b.RowBytes(row);
  return differing;
}

TEST_P(AttentionDeterminism, ChunkCutsAndThreads) {
  for (const AttentionSpec& spec : Specs()) {
    SCOPED_TRACE(Describe(spec));
    const TestTensor whole = Prefill(spec, {kTokens}, 1);
    for (int threads : {2, 3}) EXPECT_EQ(Differing(whole, Prefill(spec, {kTokens}, threads)), 0);
    for (int size : {1, 63, 64, 65}) {
      EXPECT_EQ(Differing(whole, Prefill(spec, CutsEvery(size), 2)), 0) << size;
    }
    std::mt19937 random(5);
    for (int trial = 0; trial < 5; ++trial) {
      std::vector<int> cuts;
      for (int end = kFirst; end < kTokens;) {
        end = std::min<int>(kTokens, end + 1 + static_cast<int>(random() % 90));
        cuts.push_back(end);
      }
      EXPECT_EQ(Differing(whole, Prefill(spec, cuts, 2)), 0) << "trial " << trial;
    }
  }
}

// One decode row for each query, `batch` at a time, with lists that end at the query's page or go
// on.
TestTensor Decode(const AttentionSpec& spec, int batch, int threads) {
  AttentionWorld world = MakeWorld(spec, threads);
  const int rows = kTokens - kFirst;
  TestTensor q = world.MakeTensor(spec.dtype(), rows, spec.q_heads * spec.head_dim);
  TestTensor out = world.MakeTensor(spec.dtype(), rows, spec.q_heads * spec.head_dim);
  world.FillRandom(&q, 4.0f);
  ListBuilder lists;
  std::vector<int32_t> positions;
  for (int row = 0; row < rows; ++row) {
    positions.push_back(kFirst + row);
    const int last = row % 3 == 0 ? world.pages(0) - 1 : positions.back() / spec.page_tokens;
    for (int page = 0; page <= last; ++page) world.AddPage(&lists, 0, page);
    lists.Close();
  }
  DeviceLists device_lists(world.backend(), lists);
  TestArray<int32_t> device_positions(world.backend(), positions);
  Stream stream;
  for (int first = 0; first < rows; first += batch) {
    const int count = std::min(batch, rows - first);
    PageLists view = device_lists.view();
    view.begins += first;
    view.ends += first;
    view.lists = count;
    const AttendDecodeArgs args{
        .q = q.view3(spec.q_heads).Slice(first, count),
        .pool = world.pool(),
        .positions = TensorView(device_positions.device() + first, DType::kI32, {count}),
        .lists = view,
        .params = world.params(),
        .dropped_lse = {},
        .out = out.view3(spec.q_heads).Slice(first, count),
        .lse = {}};
    EXPECT_EQ(AttendDecode(world.backend(), args, stream), OkStatus());
  }
  EXPECT_EQ(world.backend().device().Synchronize(stream), OkStatus());
  return out;
}

// The bits of a row do not depend on its batch.
TEST_P(AttentionDeterminism, DecodeInAnyBatch) {
  for (const AttentionSpec& spec : Specs()) {
    SCOPED_TRACE(Describe(spec));
    const TestTensor whole = Decode(spec, kTokens - kFirst, 2);
    for (int batch : {1, 7}) {
      EXPECT_EQ(Differing(whole, Decode(spec, batch, 2)), 0) << "batch " << batch;
    }
  }
}

// The bits of the prefill where the backend promises them; else its numbers.
TEST_P(AttentionDeterminism, DecodeEqualsPrefillInAnyBatch) {
  for (const AttentionSpec& spec : Specs()) {
    SCOPED_TRACE(Describe(spec));
    const TestTensor expected = Prefill(spec, {kTokens}, 2);
    const auto backend = MakeTestBackend(spec.which, 2, true);
    ASSERT_TRUE(backend.ok());
    if (!(*backend)->decode_equals_prefill()) {
      const TestTensor decoded = Decode(spec, kTokens - kFirst, 2);
      for (int64_t row = 0; row < decoded.rows(); ++row) {
        for (int64_t i = 0; i < decoded.dim(); ++i) {
          ASSERT_NEAR(decoded.at(row, i), expected.at(row, i), 8e-3) << "row " << row;
        }
      }
      continue;
    }
    for (int threads : {1, 2, 3}) {
      for (int batch : {1, 7, kTokens - kFirst}) {
        EXPECT_EQ(Differing(expected, Decode(spec, batch, threads)), 0)
            << "batch " << batch << " threads " << threads;
      }
    }
  }
}

std::string DeterminismName(const testing::TestParamInfo<std::tuple<BackendCase, int>>& which) {
  return std::get<0>(which.param).Name() + "_page" + std::to_string(std::get<1>(which.param));
}
INSTANTIATE_TEST_SUITE_P(Every, AttentionDeterminism,
                         ::testing::Combine(::testing::ValuesIn(BackendCases(true)),
                                            ::testing::Values(16, 64)),
                         DeterminismName);
INSTANTIATE_TEST_SUITE_P(Emulated, AttentionDeterminism,
                         ::testing::Combine(::testing::ValuesIn(EmulatedCases(true,
                                                                              {DType::kBF16})),
                                            ::testing::Values(64)),
                         DeterminismName);

}  // namespace
}  // namespace lacuna::kernels
