// SelectRanges against a double-precision reading of the methods' cards (range_world.cc), and what
// it promises: independence of cuts, batches and threads, causality, ties, forced keys.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "kernels/ops/range_limits.h"
#include "tests/ops/range_cases.h"

namespace lacuna::kernels {
namespace {

class SelectRangesTest : public testing::TestWithParam<BackendCase> {
 protected:
  void SetUp() override { SkipsOrFails(MakeTestBackend(GetParam())); }  // skips, or fails, here

  std::vector<NamedSpec> Cases() const {
    return GetParam().emulated() ? FewRangeCases() : RangeCases();
  }
  RangeWorld Make(const RangeSpec& spec, float spread = 1.0f, uint32_t seed = 1, int threads = 2) {
    auto backend = MakeTestBackend(GetParam(), threads);
    EXPECT_TRUE(backend.ok()) << backend.status().ToString();
    return RangeWorld(std::move(backend).value(), GetParam(), spec, spread, seed);
  }
};

INSTANTIATE_TEST_SUITE_P(Every, SelectRangesTest, testing::ValuesIn(BackendCases()), CaseName);

// In the emulator a step costs a thousand times what it costs elsewhere.
std::vector<BackendCase> Emulated(const std::vector<std::string>& names) {
  std::vector<BackendCase> cases;
  for (const BackendCase& which : EmulatedCases()) {
    if (std::ranges::count(names, which.Name()) > 0) cases.push_back(which);
  }
  return cases;
}
INSTANTIATE_TEST_SUITE_P(Emulated, SelectRangesTest, testing::ValuesIn(Emulated({"emulated_bf16"})),
                         CaseName);

class RangeReferenceTest : public SelectRangesTest {};
INSTANTIATE_TEST_SUITE_P(Every, RangeReferenceTest, testing::ValuesIn(BackendCases()), CaseName);
INSTANTIATE_TEST_SUITE_P(Emulated, RangeReferenceTest,
                         testing::ValuesIn(Emulated({"emulated_bf16", "emulated_f16_aligned",
                                                     "emulated_f32"})),
                         CaseName);

std::vector<bool> Groups(const std::vector<KeyRange>& ranges, size_t count) {
  std::vector<bool> groups(count);
  for (const KeyRange& range : ranges) {
    for (int key = range.begin; key < range.end; key += 16) {
      groups[static_cast<size_t>(key / 16)] = true;
    }
  }
  return groups;
}

// Every kind, odd lengths, both page sizes; the count of what is read too.
TEST_P(RangeReferenceTest, EqualsReference) {
  for (const NamedSpec& named : RangeCases()) {
    SCOPED_TRACE(named.name);
    RangeWorld world = Make(named.spec, named.spread);
    const RangeLists lists = world.Run();
    int unsure = 0, sparse = 0;
    std::vector<RangeStats> stats(static_cast<size_t>(named.spec.q_heads));
    for (const auto& [key, ranges] : lists) {
      const auto [head, tile] = key;
      const RangeWorld::Expected expected = world.Reference(head, tile);
      const std::vector<bool> groups = Groups(ranges, expected.groups.size());
      RangeStats& stat = stats[static_cast<size_t>(head)];
      const int end = std::min((tile + 1) * 64, named.spec.tokens);
      stat.blocks_considered += CeilDiv(end, 64);
      for (int64_t block = 0; block < CeilDiv(end, 64); ++block) {
        const auto first = groups.begin() + 4 * block;
        stat.blocks_selected += std::find(first, std::min(first + 4, groups.end()), true) !=
                                std::min(first + 4, groups.end());
      }
      sparse += std::ranges::count(groups, false) > 0;
      unsure += !expected.sure;
      if (expected.sure) {
        ASSERT_EQ(groups, expected.groups) << "head " << head << " tile " << tile;
      }
    }
    EXPECT_LE(unsure, static_cast<int>(lists.size()) / 8);
    if (named.name != "too short" && named.spec.tokens > 100) {
      EXPECT_GT(sparse, 0);
    }
    if (!named.spec.shapes.empty()) continue;
    for (size_t head = 0; head < stats.size(); ++head) {
      EXPECT_EQ(world.stats()[head].blocks_considered, stats[head].blocks_considered);
      EXPECT_EQ(world.stats()[head].blocks_selected, stats[head].blocks_selected);
    }
  }
}

TEST_P(SelectRangesTest, CutsAtTheGrainAgree) {
  for (NamedSpec named : Cases()) {
    if (named.spec.tokens < 300) continue;
    SCOPED_TRACE(named.name);
    named.spec.tokens = GetParam().emulated() ? 3072 + 37 : 4096 - 37;
    const auto grain = static_cast<int>(PrefillGrainTokens(named.spec.path, named.spec.dials));
    if (grain > 2048) continue;
    ASSERT_EQ(2048 % grain, 0);
    RangeWorld world = Make(named.spec, named.spread);
    const RangeLists whole = world.Run();
    const RangeStats stats = world.stats()[0];
    EXPECT_EQ(world.Run({0, 2048, world.spec().tokens}), whole);
    EXPECT_EQ(world.stats()[0].blocks_selected, stats.blocks_selected);
    if (grain > 1024) continue;
    EXPECT_EQ(world.Run({0, 1024, 2048, world.spec().tokens}), whole);
    EXPECT_EQ(world.Run({0, 2 * grain, 2048 + grain, world.spec().tokens}), whole);
  }
}

TEST_P(SelectRangesTest, ChunksAndThreadsDoNotMatter) {
  for (NamedSpec named : Cases()) {
    SCOPED_TRACE(named.name);
    if (named.spec.tokens < 300) continue;
    const int cut = static_cast<int>(PrefillGrainTokens(named.spec.path, named.spec.dials));
    if (cut >= named.spec.tokens) continue;
    RangeWorld one = Make(named.spec, named.spread, 7, 1);
    RangeWorld many = Make(named.spec, named.spread, 7, 3);
    const RangeLists whole = one.Run();
    EXPECT_EQ(many.Run(), whole);
    EXPECT_EQ(many.Run({0, cut, named.spec.tokens}, true), whole);
  }
}

// What a tile reads knows no key after the end of its block, or of its cell.
TEST_P(SelectRangesTest, FutureKeysDoNotMatter) {
  for (NamedSpec named : Cases()) {
    if (named.spec.tokens < 1200) continue;
    SCOPED_TRACE(named.name);
    const auto grain = static_cast<int>(PrefillGrainTokens(named.spec.path, {}));
    if (grain > 2048) continue;
    named.spec.tokens = std::max(grain, 1024) + 1024 + 77;
    RangeWorld world = Make(named.spec, named.spread, 5);
    const RangeLists before = world.Run();
    const int from = grain >= 1024 ? grain : 1024 + 128;
    world.ChangeKeysFrom(from);
    RangeLists after = world.Run();
    bool changed = false;
    for (const auto& [key, ranges] : before) {
      if ((key.second + 1) * 64 <= from) {
        EXPECT_EQ(after[key], ranges) << "tile " << key.second;
      }
      changed = changed || after[key] != ranges;
    }
    EXPECT_EQ(changed, named.spec.path.estimate != EstimateKind::kNone);
  }
}

// With all scores equal the older block, the older column and the nearer distance come first.
TEST_P(SelectRangesTest, TiesGoToTheOlder) {
  RangeSpec spec = PooledSpec(PrefillPool::kAntidiagonal, PrefillSelectKind::kTopK);
  spec.tokens = 2048;
  spec.dials.sink_tokens = 0;
  spec.dials.local_tokens = 1;
  spec.dials.budget_tokens = 4 * 128;
  for (const PrefillPool pool : {PrefillPool::kAntidiagonal, PrefillPool::kMean}) {
    spec.path.pool = pool;
    RangeLists lists = Make(spec, 0.0f).Run();
    EXPECT_EQ((lists[{0, 31}]), (std::vector<KeyRange>{{0, 384}, {1920, 2048}}));
    EXPECT_EQ((lists[{3, 6}]), (std::vector<KeyRange>{{0, 448}}));
  }
  spec.path.pool = PrefillPool::kMean;
  spec.path.select = PrefillSelectKind::kTopP;  // rows of equal shares; half of 16 blocks is 8
  spec.p = 0.5f;
  EXPECT_EQ((Make(spec, 0.0f).Run()[{0, 31}]), (std::vector<KeyRange>{{0, 896}, {1920, 2048}}));
}

// The same in rows of as many blocks as a warp holds, and of more.
TEST_P(SelectRangesTest, LongTiesGoToTheOlder) {
  constexpr int kLong = 65536, kBlock = 64;
  RangeSpec spec = PooledSpec(PrefillPool::kMean, PrefillSelectKind::kTopK);
  spec.q_heads = spec.kv_heads = 1;
  spec.head_dim = 8;
  spec.path.block_tokens = kBlock;
  spec.dials.sink_tokens = 0;
  spec.dials.local_tokens = 1;
  spec.dials.budget_tokens = 4 * kBlock;
  spec.p = 0.5f;
  for (const int end : {kLong, kLong + kBlock}) {
    spec.tokens = end;
    spec.path.select = PrefillSelectKind::kTopK;
    EXPECT_EQ((Make(spec, 0.0f).Run({end - kBlock, end})[{0, end / 64 - 1}]),
              (std::vector<KeyRange>{{0, 3 * kBlock}, {end - kBlock, end}}));
    spec.path.select = PrefillSelectKind::kTopP;  // half of the blocks; its own is one of them
    const int others = (end / kBlock + 1) / 2 - 1;
    EXPECT_EQ((Make(spec, 0.0f).Run({end - kBlock, end})[{0, end / 64 - 1}]),
              (std::vector<KeyRange>{{0, others * kBlock}, {end - kBlock, end}}));
  }
}

// The same of more columns than a choice holds at once.
TEST_P(SelectRangesTest, ManyTiesGoToTheOlder) {
  constexpr int kEnd = 13312, kCell = 1024;
  RangeSpec spec = ProbedSpec(PrefillSelectKind::kVerticalSlash, ProbePlace::kLast);
  spec.q_heads = spec.kv_heads = 1;
  spec.tokens = kEnd;
  spec.dials.sink_tokens = 0;
  spec.dials.local_tokens = 1;
  spec.heads.assign(1, {.pattern = {PatternKind::kVerticalSlash, 32, 0}, .p = 1});
  RangeLists lists = Make(spec, 0.0f).Run({kEnd - kCell, kEnd});
  for (int end = kEnd - kCell + 64; end <= kEnd; end += 64) {
    EXPECT_EQ((lists[{0, end / 64 - 1}]), (std::vector<KeyRange>{{0, 32}, {end - 64, end}}));
  }
}

TEST_P(SelectRangesTest, WideBudgetsReadEverything) {
  for (NamedSpec named : Cases()) {
    SCOPED_TRACE(named.name);
    named.spec.p = 1.0f;
    named.spec.heads.clear();
    PrefillDials& dials = named.spec.dials;
    dials.max_tokens = 0;
    dials.budget_tokens = named.spec.tokens;
    if (named.spec.path.select == PrefillSelectKind::kNone) dials.local_tokens = 1 << 24;
    std::vector<std::vector<PrefillHead>> heads{{}};
    if (named.spec.path.select == PrefillSelectKind::kVerticalSlash) {
      heads.clear();
      for (const HeadPattern& pattern : {HeadPattern{PatternKind::kVerticalSlash, 1 << 24, 0},
                                         {PatternKind::kVerticalSlash, 0, 1 << 24},
                                         {PatternKind::kAShape, 1 << 24, 0},
                                         {PatternKind::kAShape, 0, 1 << 24},
                                         {PatternKind::kBlocks, 1 << 24, 0}}) {
        heads.emplace_back(4, PrefillHead{pattern, 1.0f});
      }
    }
    for (const std::vector<PrefillHead>& some : heads) {
      RangeSpec spec = named.spec;
      spec.heads = some;
      RangeWorld world = Make(spec, named.spread);
      for (const auto& [key, ranges] : world.Run()) {
        const int end = std::min((key.second + 1) * 64, spec.tokens);
        EXPECT_EQ(ranges, (std::vector<KeyRange>{{0, static_cast<int>(RoundUp(end, 16))}}));
      }
      if (!spec.shapes.empty()) continue;
      EXPECT_EQ(world.stats()[0].blocks_selected, world.stats()[0].blocks_considered);
    }
  }
}

// Values that overflow choose something, and nothing out of bounds.
TEST_P(SelectRangesTest, SurvivesInfinities) {
  for (const NamedSpec& named : Cases()) {
    SCOPED_TRACE(named.name);
    RangeWorld world = Make(named.spec, named.spread);
    for (int token = 0; token < named.spec.tokens; token += 97) {
      world.k(token, 0, 3) = std::numeric_limits<float>::infinity();
      world.q(token, 0, 3) = -std::numeric_limits<float>::infinity();
    }
    const RangeLists lists = world.Run();
    for (const auto& [key, ranges] : lists) EXPECT_FALSE(ranges.empty());
  }
}

// Chunks off the grid get a cut of their own; only their form is promised.
TEST_P(SelectRangesTest, AnyCutIsWellFormed) {
  for (const NamedSpec& named : Cases()) {
    SCOPED_TRACE(named.name);
    if (named.spec.tokens < 300) continue;
    RangeWorld world = Make(named.spec, named.spread);
    for (const int first : {16, 100, 209}) {
      const RangeLists lists = world.Run({first, named.spec.tokens});
      EXPECT_EQ(lists.size(),
                static_cast<size_t>(named.spec.q_heads * CeilDiv(named.spec.tokens - first, 64)));
      for (const auto& [key, ranges] : lists) EXPECT_FALSE(ranges.empty());
    }
  }
}

// Runs of any length in contexts of any length: the last keys of 64 K tokens and what follows them.
TEST_P(SelectRangesTest, LongContexts) {
  constexpr int kLong = 65536;
  RangeSpec spec;
  spec.head_dim = 8;
  spec.path.select = PrefillSelectKind::kNone;
  spec.dials.sink_tokens = 100;
  spec.dials.local_tokens = 250;
  spec.tokens = kLong + 64;
  RangeLists lists = Make(spec).Run({kLong - 64, kLong, kLong + 64});
  EXPECT_EQ((lists[{1, kLong / 64 - 1}]),
            (std::vector<KeyRange>{{0, 112}, {kLong - 64 - 256, kLong}}));
  EXPECT_EQ((lists[{1, kLong / 64}]), (std::vector<KeyRange>{{0, 112}, {kLong - 256, kLong + 64}}));
  spec.dials.local_tokens = 1 << 20;
  lists = Make(spec).Run({kLong - 64, kLong, kLong + 64});
  EXPECT_EQ((lists[{1, kLong / 64 - 1}]), (std::vector<KeyRange>{{0, kLong}}));
  EXPECT_EQ((lists[{1, kLong / 64}]), (std::vector<KeyRange>{{0, kLong + 64}}));
}

TEST_P(SelectRangesTest, EmptyChunks) {
  RangeWorld world = Make(RangeCases()[0].spec);
  EXPECT_TRUE(world.Run({512, 512}).empty());
  EXPECT_EQ(world.Run({0, 0, 1500, 1500}, true), world.Run());
}

// Every other group of 16 keys chosen: as many ranges as RangesMax says.
TEST_P(SelectRangesTest, WorstCaseFits) {
  RangeSpec spec = ProbedSpec(PrefillSelectKind::kVerticalSlash, ProbePlace::kLast);
  spec.tokens = 1024;
  spec.dials.sink_tokens = 0;
  spec.dials.local_tokens = 0;
  spec.heads.assign(4, {.pattern = {PatternKind::kVerticalSlash, 32, 0}, .p = 1});
  RangeWorld world = Make(spec);
  for (int token = 0; token < spec.tokens; ++token) {
    for (int i = 0; i < spec.head_dim; ++i) {
      for (int head = 0; head < 4; ++head) world.q(token, head, i) = 1.0f;
      for (int head = 0; head < 2; ++head) {
        world.k(token, head, i) = token % 32 == 16 ? 1.0f : -1.0f;
      }
    }
  }
  RangeLists lists = world.Run();
  ASSERT_EQ(static_cast<int64_t>((lists[{0, 15}].size())), RangesMax(spec.path, 1024));
  EXPECT_EQ((lists[{0, 15}][5]), (KeyRange{5 * 32 + 16, 5 * 32 + 32}));
}

TEST(RangeLimits, GrainsAndRooms) {
  PrefillPath path;
  path.select = PrefillSelectKind::kNone;
  PrefillDials dials;
  EXPECT_EQ(PrefillGrainTokens(path, dials), 128);
  EXPECT_EQ(RangesMax(path, 1 << 20), 2);
  path.block_tokens = 64;
  EXPECT_EQ(PrefillGrainTokens(path, dials), 64);
  path.correct = PrefillCorrectKind::kDelta;
  dials.correct_stride_rows = 96;
  EXPECT_EQ(PrefillGrainTokens(path, dials), 192);
  path.correct = PrefillCorrectKind::kNone;
  path.block_tokens = 128;
  path.estimate = EstimateKind::kPooled;
  path.select = PrefillSelectKind::kTopP;
  path.pool = PrefillPool::kAntidiagonal;
  EXPECT_EQ(PrefillGrainTokens(path, dials), 128);
  EXPECT_EQ(RangesMax(path, 1281), 6);  // blocks 0, 2, ... 10
  path.scope = ScopeKind::kMap;
  EXPECT_EQ(PrefillGrainTokens(path, dials), 1024);
  path.scope = ScopeKind::kRow;
  path.pool = PrefillPool::kBands;
  EXPECT_EQ(PrefillGrainTokens(path, dials), 1024);
  path.estimate = EstimateKind::kProbe;
  path.select = PrefillSelectKind::kVerticalSlash;
  EXPECT_EQ(PrefillGrainTokens(path, dials), 1024);
  path.cell_tokens = 4096;
  EXPECT_EQ(PrefillGrainTokens(path, dials), 4096);
  EXPECT_EQ(RangesMax(path, 1024 + 33), 34);
  path.probe_place = ProbePlace::kTails;
  dials.probe_fraction = 0.05f;
  EXPECT_EQ(ProbeRuns(path, dials), 3);  // of 64 rows
  EXPECT_TRUE(ProbeFits(path, dials));
  dials.probe_fraction = 0.26f;
  EXPECT_FALSE(ProbeFits(path, dials));
}

}  // namespace
}  // namespace lacuna::kernels
