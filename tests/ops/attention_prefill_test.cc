// AttendPrefill against double precision, on every backend.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/ops/attention_fixture.h"

namespace lacuna::kernels {
namespace {

// Key ranges of one call, with the lookup that the reference needs.
struct RangeBuilder final {
  std::vector<int32_t> begin, end;
  std::vector<int64_t> offsets{0}, chunk_offsets;
  bool Contains(int64_t list, int key) const {
    for (int64_t i = offsets[static_cast<size_t>(list)]; i < offsets[static_cast<size_t>(list) + 1];
         ++i) {
      const auto at = static_cast<size_t>(i);
      if (key >= begin[at] && key < end[at]) return true;
    }
    return false;
  }
};

// Built ranges on the backend's device.
class DeviceRanges final {
 public:
  DeviceRanges(Backend& backend, const RangeBuilder& ranges)
      : begin_(backend, ranges.begin),
        end_(backend, ranges.end),
        offsets_(backend, ranges.offsets),
        chunk_offsets_(backend, ranges.chunk_offsets) {}
  KeyRanges view() {
    const int64_t* offsets = offsets_.device();
    return {begin_.device(), end_.device(), offsets, offsets + 1, chunk_offsets_.device()};
  }

 private:
  TestArray<int32_t> begin_, end_;
  TestArray<int64_t> offsets_, chunk_offsets_;
};

// Random ranges for each (chunk, head, tile); some lists are empty.
RangeBuilder RandomRanges(const std::vector<PrefillChunk>& chunks, int heads,
                          AttentionWorld* world) {
  RangeBuilder ranges;
  for (const PrefillChunk& chunk : chunks) {
    ranges.chunk_offsets.push_back(static_cast<int64_t>(ranges.offsets.size()) - 1);
    for (int list = 0; list < heads * ((chunk.rows + 63) / 64); ++list) {
      int key = 0;
      while (list % 5 != 4 && key < chunk.first_position + chunk.rows) {
        const int begin = key + 16 * static_cast<int>(4 * std::abs(world->Random(1.0f)));
        const int end = begin + 16 * (1 + static_cast<int>(6 * std::abs(world->Random(1.0f))));
        ranges.begin.push_back(begin);
        ranges.end.push_back(end);
        key = end + 16;
      }
      ranges.offsets.push_back(static_cast<int64_t>(ranges.begin.size()));
    }
  }
  return ranges;
}

// Chunks [first position, end) of the world's sequences, one each, with rows that no chunk owns
// between them.
void CheckPrefill(const AttentionSpec& spec, const std::vector<std::pair<int, int>>& spans,
                  bool with_ranges, int threads) {
  SCOPED_TRACE(Describe(spec) + (with_ranges ? " ranges" : ""));
  std::vector<int> lengths;
  for (const auto& span : spans) lengths.push_back(span.second);
  AttentionWorld world(MakeTestBackend(spec.which, threads).value(), spec, lengths, 7);
  std::vector<PrefillChunk> chunks;
  ListBuilder lists;
  int rows = 1;
  for (size_t s = 0; s < spans.size(); ++s) {
    const auto [first, end] = spans[s];
    chunks.push_back({rows, end - first, first});
    rows += end - first + 1;
    world.AddAllPages(&lists, static_cast<int>(s));
    lists.Close();
  }
  TestTensor q = world.MakeTensor(spec.dtype(), rows, spec.q_heads * spec.head_dim);
  TestTensor out = world.MakeTensor(spec.dtype(), rows, spec.q_heads * spec.head_dim);
  TestTensor lse = world.MakeTensor(DType::kF32, rows, spec.q_heads);
  world.FillRandom(&q, 4.0f);
  const RangeBuilder ranges = RandomRanges(chunks, spec.q_heads, &world);
  DeviceLists device_lists(world.backend(), lists);
  DeviceRanges device_ranges(world.backend(), ranges);
  const KeyRanges key_ranges = device_ranges.view();
  const AttendPrefillArgs args{.q = q.view3(spec.q_heads),
                               .pool = world.pool(),
                               .chunks = chunks,
                               .lists = device_lists.view(),
                               .ranges = with_ranges ? &key_ranges : nullptr,
                               .params = world.params(),
                               .out = out.view3(spec.q_heads),
                               .lse = lse.view()};
  Stream stream;
  ASSERT_EQ(AttendPrefill(world.backend(), args, stream), OkStatus());

  for (size_t s = 0; s < chunks.size(); ++s) {
    EXPECT_TRUE(out.RowUntouched(chunks[s].first_row - 1));
    const int64_t tiles = (chunks[s].rows + 63) / 64;
    for (int t = 0; t < chunks[s].rows; ++t) {
      const int row = chunks[s].first_row + t;
      for (int head = 0; head < spec.q_heads; ++head) {
        const int64_t list = ranges.chunk_offsets[s] + head * tiles + t / 64;
        const auto expected =
            world.Reference(q, row, head, static_cast<int>(s), chunks[s].first_position + t,
                            [&](int key) { return !with_ranges || ranges.Contains(list, key); });
        world.ExpectHead(out, lse, row, head, expected);
        if (testing::Test::HasFatalFailure()) return;
      }
    }
  }
  EXPECT_TRUE(out.RowUntouched(rows - 1));
  out.ExpectGuards();
  lse.ExpectGuards();
}

class AttentionPrefill : public ::testing::TestWithParam<BackendCase> {
 protected:
  void SetUp() override { SkipsOrFails(MakeTestBackend(GetParam())); }
  AttentionSpec Base() const {
    AttentionSpec spec;
    spec.which = GetParam();
    return spec;
  }
};

TEST_P(AttentionPrefill, ChunkLengths) {
  for (int page_tokens : {16, 64}) {
    AttentionSpec spec = Base();
    spec.page_tokens = page_tokens;
    CheckPrefill(spec, {{0, 1}, {0, 15}, {0, 63}, {0, 64}, {0, 65}, {0, 130}}, false, 2);
    CheckPrefill(spec, {{100, 101}, {77, 140}, {64, 129}, {1, 131}, {200, 215}}, false, 3);
  }
}

TEST_P(AttentionPrefill, HeadsAndDims) {
  const std::pair<int, int> heads[] = {{1, 1}, {4, 2}, {8, 2}, {7, 1}, {6, 2}, {16, 1}, {15, 3}};
  for (const auto& [q_heads, kv_heads] : heads) {
    AttentionSpec spec = Base();
    spec.q_heads = q_heads;
    spec.kv_heads = kv_heads;
    CheckPrefill(spec, {{30, 101}, {0, 17}}, false, 2);
  }
  for (int head_dim : {16, 32, 48, 80, 96, 112, 128, 256}) {
    for (int page_tokens : {16, 64}) {
      AttentionSpec spec = Base();
      spec.head_dim = head_dim;
      spec.page_tokens = page_tokens;
      CheckPrefill(spec, {{30, 101}, {0, 17}}, false, 1);
    }
  }
}

TEST_P(AttentionPrefill, GroupAboveOneTile) {
  AttentionSpec spec = Base();
  spec.q_heads = 71;
  spec.kv_heads = 1;
  spec.head_dim = 32;
  CheckPrefill(spec, {{30, 71}}, false, 2);
}

TEST_P(AttentionPrefill, WindowsAndSinks) {
  const StaticShape shapes[] = {{1, 0}, {16, 0}, {64, 4}, {100, 70}, {33, 16}, {1000, 4}};
  for (const StaticShape& shape : shapes) {
    for (int page_tokens : {16, 64}) {
      AttentionSpec spec = Base();
      spec.shape = shape;
      spec.page_tokens = page_tokens;
      CheckPrefill(spec, {{150, 290}, {0, 70}}, false, 2);
    }
  }
}

TEST_P(AttentionPrefill, SoftcapAndSinkLogits) {
  AttentionSpec spec = Base();
  spec.softcap = 2.5f;
  CheckPrefill(spec, {{30, 101}}, false, 2);
  spec.sink_logits = true;
  CheckPrefill(spec, {{30, 101}}, false, 2);
  spec.softcap = 0.0f;
  CheckPrefill(spec, {{30, 101}}, false, 2);
  spec.scale = -0.25f;
  CheckPrefill(spec, {{30, 101}}, false, 2);
}

TEST_P(AttentionPrefill, KeyRanges) {
  for (int page_tokens : {16, 64}) {
    AttentionSpec spec = Base();
    spec.page_tokens = page_tokens;
    CheckPrefill(spec, {{130, 330}, {0, 65}}, true, 2);
    spec.shape = {90, 20};
    spec.sink_logits = true;
    CheckPrefill(spec, {{130, 330}, {0, 65}}, true, 3);
  }
}

INSTANTIATE_TEST_SUITE_P(Every, AttentionPrefill, ::testing::ValuesIn(BackendCases(true)),
                         CaseName);
INSTANTIATE_TEST_SUITE_P(Emulated, AttentionPrefill,
                         ::testing::ValuesIn(EmulatedCases(true, {DType::kBF16, DType::kF32})),
                         CaseName);

}  // namespace
}  // namespace lacuna::kernels
