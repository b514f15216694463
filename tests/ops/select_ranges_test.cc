// SelectRanges against a double-precision reading of the methods' cards (range_world.cc), and what
// it promises: independence of cuts, batches and threads, causality, ties, forced keys.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "kernels/ops/range_limits.h"
#include "tests/ops/range_world.h"

namespace lacuna::kernels {
namespace {

struct NamedSpec final {
  std::string name;
  RangeSpec spec;
  float spread = 1.0f;
};

RangeSpec Pooled(PrefillPool pool, PrefillSelectKind select) {
  RangeSpec spec;
  spec.path.estimate = EstimateKind::kPooled;
  spec.path.pool = pool;
  spec.path.select = select;
  spec.dials.sink_tokens = 100;
  spec.dials.local_tokens = 130;
  spec.dials.low_channels = 24;
  spec.dials.high_channels = 16;
  return spec;
}

RangeSpec Probed(PrefillSelectKind select, ProbePlace place) {
  RangeSpec spec;
  spec.path.estimate = EstimateKind::kProbe;
  spec.path.select = select;
  spec.path.probe_place = place;
  spec.dials.probe_fraction = 0.12f;
  spec.dials.sink_tokens = 30;
  spec.dials.local_tokens = 100;
  return spec;
}

std::vector<PrefillHead> Patterns() {
  return {{.pattern = {PatternKind::kVerticalSlash, 60, 150}, .p = 1},
          {.pattern = {PatternKind::kAShape, 70, 333}, .p = 1},
          {.pattern = {PatternKind::kBlocks, 5, 0}, .p = 1},
          {.pattern = {PatternKind::kVerticalSlash, 1, 700}, .p = 1}};
}

RangeSpec Flex(float js_threshold, ScopeKind scope) {
  RangeSpec spec = Probed(PrefillSelectKind::kCover, ProbePlace::kLast);
  spec.path.estimate = EstimateKind::kProbePooled;
  spec.path.scope = scope;
  spec.dials.probe_rows = 128;
  spec.dials.min_tokens = 256;
  spec.dials.js_threshold = js_threshold;
  spec.p = 0.8f;
  return spec;
}

std::vector<NamedSpec> Cases() {
  std::vector<NamedSpec> cases;
  RangeSpec spec = Pooled(PrefillPool::kAntidiagonal, PrefillSelectKind::kTopP);
  cases.push_back({"antidiagonal top_p", spec, 8.0f});
  spec.path.stride_tokens = 8;
  spec.path.inclusive = false;
  spec.tokens = 1303;
  spec.page_tokens = 16;
  cases.push_back({"antidiagonal 8 exclusive", spec, 6.0f});
  spec.path.stride_tokens = 128;
  spec.path.scope = ScopeKind::kMap;
  cases.push_back({"antidiagonal 128 map", spec, 16.0f});
  spec.path.stride_tokens = 1;
  spec.path.block_tokens = 64;
  spec.tokens = 733;
  cases.push_back({"antidiagonal 1", spec, 6.0f});
  spec = Pooled(PrefillPool::kAntidiagonal, PrefillSelectKind::kTopK);
  spec.path.stride_tokens = 4;
  spec.dials.budget_tokens = 200;
  spec.dials.fraction = 0.2;
  spec.q_heads = spec.kv_heads;
  cases.push_back({"antidiagonal top_k, group 1", spec});
  spec = Pooled(PrefillPool::kMean, PrefillSelectKind::kTopK);
  spec.path.block_tokens = 64;
  spec.dials.fraction = 0.3;
  spec.dials.local_fraction = 0.2;
  spec.head_dim = 48;
  spec.scale = 0.4f;
  cases.push_back({"mean top_k", spec});
  spec = Pooled(PrefillPool::kMean, PrefillSelectKind::kTopP);
  spec.dials.min_tokens = 400;
  spec.dials.max_tokens = 600;
  spec.q_heads = 8;
  cases.push_back({"mean top_p, limits, group 4", spec, 30.0f});
  spec.path.scope = ScopeKind::kMap;
  spec.dials.min_tokens = spec.dials.max_tokens = 0;
  cases.push_back({"mean map", spec, 30.0f});
  spec = Pooled(PrefillPool::kBands, PrefillSelectKind::kTopP);
  spec.tokens = 2200;
  cases.push_back({"bands", spec, 2.0f});
  spec = Probed(PrefillSelectKind::kVerticalSlash, ProbePlace::kLast);
  spec.path.block_tokens = 64;
  spec.heads = Patterns();
  spec.tokens = 1700;
  cases.push_back({"patterns", spec, 2.0f});
  spec = Probed(PrefillSelectKind::kCover, ProbePlace::kTails);
  spec.dials.local_fraction = 0.08;
  spec.tokens = 2400;
  spec.page_tokens = 16;
  cases.push_back({"cover of tails", spec, 3.0f});
  spec.path.block_tokens = 64;
  spec.dials.min_tokens = 200;
  spec.dials.max_tokens = 500;
  spec.tokens = 77;
  cases.push_back({"cover of a short prompt", spec, 3.0f});
  cases.push_back({"flexprefill, no map", Flex(0, ScopeKind::kMap), 2.0f});
  cases.push_back({"flexprefill, all maps", Flex(1, ScopeKind::kMap), 2.0f});
  cases.push_back({"flexprefill, some maps", Flex(0.2f, ScopeKind::kRow), 2.0f});
  spec = RangeSpec{};
  spec.path.select = PrefillSelectKind::kNone;
  spec.dials.sink_tokens = 100;
  spec.dials.local_tokens = 250;
  spec.dials.last_rows = 70;
  cases.push_back({"sink and window, last rows", spec});
  spec.path.correct = PrefillCorrectKind::kDelta;
  spec.dials.local_fraction = 0.25;
  cases.push_back({"corrected", spec});
  spec.shapes = {{.window_tokens = 64, .sink_tokens = 4}, {}};
  spec.dials.dense_below_tokens = 1500;
  cases.push_back({"a head with a window", spec});
  spec.dials.dense_below_tokens = 1501;
  cases.push_back({"too short", spec});
  return cases;
}

class SelectRangesTest : public testing::TestWithParam<BackendCase> {
 protected:
  void SetUp() override { SkipsOrFails(MakeTestBackend(GetParam())); }

  RangeWorld Make(const RangeSpec& spec, float spread = 1.0f, uint32_t seed = 1, int threads = 2) {
    auto backend = MakeTestBackend(GetParam(), threads);
    EXPECT_TRUE(backend.ok()) << backend.status().ToString();
    return RangeWorld(std::move(backend).value(), GetParam(), spec, spread, seed);
  }
};

INSTANTIATE_TEST_SUITE_P(Every, SelectRangesTest, testing::ValuesIn(BackendCases()), CaseName);
INSTANTIATE_TEST_SUITE_P(Emulated, SelectRangesTest, testing::ValuesIn(EmulatedCases()), CaseName);

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
TEST_P(SelectRangesTest, EqualsReference) {
  for (const NamedSpec& named : Cases()) {
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
    named.spec.tokens = 4096 - 37;
    const auto grain = static_cast<int>(PrefillGrainTokens(named.spec.path, named.spec.dials));
    ASSERT_EQ(1024 % grain, 0);
    RangeWorld world = Make(named.spec, named.spread);
    const RangeLists whole = world.Run();
    const RangeStats stats = world.stats()[0];
    EXPECT_EQ(world.Run({0, 1024, 2048, 3072, world.spec().tokens}), whole);
    EXPECT_EQ(world.stats()[0].blocks_selected, stats.blocks_selected);
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
    named.spec.tokens = 2048 + 77;
    RangeWorld world = Make(named.spec, named.spread, 5);
    const RangeLists before = world.Run();
    const bool cells = PrefillGrainTokens(named.spec.path, {}) == kPrefillCellTokens;
    const int from = cells ? 1024 : 1024 + 128;
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
  RangeSpec spec = Pooled(PrefillPool::kAntidiagonal, PrefillSelectKind::kTopK);
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

TEST_P(SelectRangesTest, EmptyChunks) {
  RangeWorld world = Make(Cases()[0].spec);
  EXPECT_TRUE(world.Run({512, 512}).empty());
  EXPECT_EQ(world.Run({0, 0, 1500, 1500}, true), world.Run());
}

// Every other group of 16 keys chosen: as many ranges as RangesMax says.
TEST_P(SelectRangesTest, WorstCaseFits) {
  RangeSpec spec = Probed(PrefillSelectKind::kVerticalSlash, ProbePlace::kLast);
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
  EXPECT_EQ(RangesMax(path, 1024 + 33), 34);
}

}  // namespace
}  // namespace lacuna::kernels
