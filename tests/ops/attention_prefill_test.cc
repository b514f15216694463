// AttendPrefill against double precision, for every instruction set of this machine.
#include <gtest/gtest.h>

#include <cmath>

#include "tests/ops/attention_fixture.h"

namespace lacuna::kernels::cpu {
namespace {

// Key ranges of one call, with the lookup that the reference needs.
struct RangeBuilder final {
  std::vector<int32_t> begin, end;
  std::vector<int64_t> offsets{0}, chunk_offsets;
  KeyRanges View() const {
    return {begin.data(), end.data(), offsets.data(), offsets.data() + 1, chunk_offsets.data()};
  }
  bool Contains(int64_t list, int key) const {
    for (int64_t i = offsets[static_cast<size_t>(list)]; i < offsets[static_cast<size_t>(list) + 1];
         ++i) {
      const auto at = static_cast<size_t>(i);
      if (key >= begin[at] && key < end[at]) return true;
    }
    return false;
  }
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
  AttentionWorld world(spec, lengths, 7);
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
  GuardedTensor q(spec.dtype, rows, spec.q_heads, spec.head_dim);
  GuardedTensor out(spec.dtype, rows, spec.q_heads, spec.head_dim);
  GuardedTensor lse(DType::kF32, rows, spec.q_heads, 1);
  world.FillRandom(&q, 4.0f);
  const RangeBuilder ranges = RandomRanges(chunks, spec.q_heads, &world);
  const KeyRanges key_ranges = ranges.View();

  ThreadPool pool(threads, false);
  AttentionScratch scratch(threads);
  const AttendPrefillArgs args{
      q.view(),       world.pool(), chunks,      lists.View(), with_ranges ? &key_ranges : nullptr,
      world.params(), out.view(),   lse.matrix()};
  ASSERT_TRUE(AttendPrefillCpu(args, spec.isa, false, pool, scratch).ok());

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
        for (int d = 0; d < spec.head_dim; ++d) {
          const double error =
              std::abs(out.At(row, head, d) - expected.out[static_cast<size_t>(d)]);
          ASSERT_LE(error, world.out_tolerance()) << "row " << row << " head " << head << " " << d;
        }
        if (std::isinf(expected.lse)) {
          ASSERT_EQ(lse.At(row, head, 0), expected.lse);
        } else {
          ASSERT_NEAR(lse.At(row, head, 0), expected.lse, world.lse_tolerance());
        }
      }
    }
  }
  EXPECT_TRUE(out.RowUntouched(rows - 1));
  EXPECT_TRUE(out.GuardsIntact());
  EXPECT_TRUE(lse.GuardsIntact());
}

class AttentionPrefill : public ::testing::TestWithParam<std::tuple<Isa, DType>> {
 protected:
  AttentionSpec Base() const {
    AttentionSpec spec;
    spec.isa = std::get<0>(GetParam());
    spec.dtype = std::get<1>(GetParam());
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
    for (int page_tokens : {16, 32, 64}) {
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

INSTANTIATE_TEST_SUITE_P(EveryIsa, AttentionPrefill,
                         ::testing::Combine(::testing::ValuesIn(IsasHere()),
                                            ::testing::Values(DType::kF32, DType::kBF16)),
                         [](const auto& param) {
                           return std::string(IsaName(std::get<0>(param.param))) + "_" +
                                  std::string(DTypeName(std::get<1>(param.param)));
                         });

}  // namespace
}  // namespace lacuna::kernels::cpu
