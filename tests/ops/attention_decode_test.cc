// AttendDecode against double precision, on every backend.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "tests/ops/attention_fixture.h"

namespace lacuna::kernels {
namespace {

struct DecodeCase final {
  std::vector<int> lengths;  // of the sequences; row i attends to sequence i
  bool lists_per_head = false;
  double keep = 1.0;  // share of the pages that a list holds
  int threads = 2;
  bool deterministic = false;
};

void CheckDecode(const AttentionSpec& spec, const DecodeCase& test) {
  SCOPED_TRACE(Describe(spec) + " threads " + std::to_string(test.threads));
  AttentionWorld world(MakeTestBackend(spec.which, test.threads, test.deterministic).value(), spec,
                       test.lengths, 11);
  const auto rows = static_cast<int>(test.lengths.size());
  const int lists_per_row = test.lists_per_head ? spec.kv_heads : 1;
  ListBuilder lists;
  std::vector<std::vector<bool>> listed;  // [list][page]
  std::vector<int32_t> positions;
  for (int row = 0; row < rows; ++row) {
    // Every other row asks from the middle: the pages after it are listed but hidden.
    positions.push_back(row % 2 == 0 ? world.tokens(row) - 1 : world.tokens(row) / 2);
    for (int i = 0; i < lists_per_row; ++i) {
      auto& kept = listed.emplace_back();
      for (int page = 0; page < world.pages(row); ++page) {
        kept.push_back(std::abs(world.Random(1.0f)) < test.keep);
        if (kept.back()) world.AddPage(&lists, row, page);
      }
      lists.Close();
    }
  }
  TestTensor q = world.MakeTensor(spec.dtype(), rows, spec.q_heads * spec.head_dim);
  TestTensor out = world.MakeTensor(spec.dtype(), rows, spec.q_heads * spec.head_dim);
  TestTensor lse = world.MakeTensor(DType::kF32, rows, spec.q_heads);
  world.FillRandom(&q, 4.0f);
  DeviceLists device_lists(world.backend(), lists);
  TestArray<int32_t> device_positions(world.backend(), positions);
  const AttendDecodeArgs args{
      .q = q.view3(spec.q_heads),
      .pool = world.pool(),
      .positions = TensorView(device_positions.device(), DType::kI32, {rows}),
      .lists = device_lists.view(),
      .lists_per_row = lists_per_row,
      .params = world.params(),
      .dropped_lse = {},
      .out = out.view3(spec.q_heads),
      .lse = lse.view()};
  Stream stream;
  ASSERT_EQ(AttendDecode(world.backend(), args, stream), OkStatus());

  const int group = spec.q_heads / spec.kv_heads;
  for (int row = 0; row < rows; ++row) {
    for (int head = 0; head < spec.q_heads; ++head) {
      const auto& kept = listed[static_cast<size_t>(row * lists_per_row +
                                                    (test.lists_per_head ? head / group : 0))];
      const auto expected = world.Reference(
          q, row, head, row, positions[static_cast<size_t>(row)],
          [&](int key) { return kept[static_cast<size_t>(key / spec.page_tokens)]; });
      world.ExpectHead(out, lse, row, head, expected);
      if (testing::Test::HasFatalFailure()) return;
    }
  }
  out.ExpectGuards();
  lse.ExpectGuards();
}

class AttentionDecode : public ::testing::TestWithParam<BackendCase> {
 protected:
  void SetUp() override { SkipsOrFails(MakeTestBackend(GetParam())); }
  AttentionSpec Base() const {
    AttentionSpec spec;
    spec.which = GetParam();
    return spec;
  }
};

TEST_P(AttentionDecode, Lengths) {
  for (int page_tokens : {16, 64}) {
    AttentionSpec spec = Base();
    spec.page_tokens = page_tokens;
    CheckDecode(spec, {{1, 2, 15, 16, 17, 63, 64, 65, 130, 700}});
    for (int threads : {1, 2, 3}) {
      CheckDecode(spec, {.lengths = {1900}, .threads = threads});
      CheckDecode(spec, {.lengths = {1900}, .threads = threads, .deterministic = true});
    }
  }
}

TEST_P(AttentionDecode, HeadsAndDims) {
  const std::pair<int, int> heads[] = {{1, 1}, {4, 2}, {7, 1}, {6, 2}, {16, 1}, {15, 3}, {71, 1}};
  for (const auto& [q_heads, kv_heads] : heads) {
    AttentionSpec spec = Base();
    spec.q_heads = q_heads;
    spec.kv_heads = kv_heads;
    CheckDecode(spec, {{900, 40}});
  }
  for (int head_dim : {16, 32, 48, 80, 96, 112, 128, 256}) {
    AttentionSpec spec = Base();
    spec.head_dim = head_dim;
    CheckDecode(spec, {{900, 40}});
    spec.page_tokens = 16;
    CheckDecode(spec, {{300, 40}});
  }
}

TEST_P(AttentionDecode, RaggedListsPerHead) {
  for (int page_tokens : {16, 64}) {
    AttentionSpec spec = Base();
    spec.page_tokens = page_tokens;
    spec.kv_heads = 4;
    spec.q_heads = 12;
    // The short rows end up with empty lists.
    CheckDecode(spec, {{1900, 700, 40, 20}, true, 0.3, 2});
    CheckDecode(spec, {{1900}, true, 0.4, 3});
    CheckDecode(spec, {{1900}, false, 0.2, 3});
  }
}

TEST_P(AttentionDecode, WindowsAndSinks) {
  for (const StaticShape& shape : {StaticShape{1, 0}, {64, 4}, {100, 70}, {5000, 4}}) {
    for (int page_tokens : {16, 64}) {
      AttentionSpec spec = Base();
      spec.shape = shape;
      spec.page_tokens = page_tokens;
      CheckDecode(spec, {{1900, 70, 5}});
      CheckDecode(spec, {{1900}});
    }
  }
}

TEST_P(AttentionDecode, SoftcapAndSinkLogits) {
  AttentionSpec spec = Base();
  spec.sink_logits = true;
  CheckDecode(spec, {{1900}});
  CheckDecode(spec, {{1900, 40}, true, 0.3});
  spec.softcap = 2.5f;
  CheckDecode(spec, {{1900}});
  spec.sink_logits = false;
  CheckDecode(spec, {{1900}});
}

INSTANTIATE_TEST_SUITE_P(Every, AttentionDecode, ::testing::ValuesIn(BackendCases(true)), CaseName);
INSTANTIATE_TEST_SUITE_P(Emulated, AttentionDecode,
                         ::testing::ValuesIn(EmulatedCases(true, {DType::kBF16, DType::kF32})),
                         CaseName);

}  // namespace
}  // namespace lacuna::kernels
