// Each table of engine/calibrate on attention small enough to know the answer by hand.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <functional>
#include <set>

#include "engine/calibrate/calibrator.h"
#include "engine/calibrate/table.h"

namespace lacuna::engine {
namespace {

using kvcache::HeadPattern;
using kvcache::HeadSpan;
using kvcache::PatternKind;
using kvcache::SparseArtefacts;
using testing::ElementsAre;
using testing::HasSubstr;

AttentionShape Shape(int32_t layers, int32_t q_heads, int32_t kv_heads, int32_t head_dim = 2) {
  return {.layers = layers,
          .q_heads = q_heads,
          .kv_heads = kv_heads,
          .head_dim = head_dim,
          .page_tokens = 64,
          .layer_window_tokens = {}};
}

LayerSample Sample(const AttentionShape& shape, int32_t layer, int32_t tokens) {
  LayerSample sample{.layer = layer,
                     .tokens = tokens,
                     .q_heads = shape.q_heads,
                     .kv_heads = shape.kv_heads,
                     .head_dim = shape.head_dim,
                     .q = {},
                     .k = {}};
  sample.q.resize(static_cast<size_t>(shape.q_heads * tokens * shape.head_dim));
  sample.k.resize(static_cast<size_t>(shape.kv_heads * tokens * shape.head_dim));
  return sample;
}

// A map whose probabilities are given instead of computed.
HeadMap Map(const LayerSample& sample, int32_t head, const PromptMarks& marks,
            const std::function<float(int32_t row, int32_t key)>& prob) {
  HeadMap map{
      .sample = &sample, .head = head, .rows = SampledRows(sample.tokens, 16, marks), .probs = {}};
  for (const int32_t row : map.rows) {
    for (int32_t key = 0; key < sample.tokens; ++key) {
      map.probs.push_back(key > row ? 0.0f : prob(row, key));
    }
  }
  return map;
}

float Newest(int32_t row, int32_t key, int32_t count) {
  return row - key < count ? 1.0f / static_cast<float>(std::min(count, row + 1)) : 0.0f;
}

TEST(HeadMap, IsTheSoftmaxOfScaledAndCappedLogitsWithinTheWindow) {
  const AttentionShape shape = Shape(1, 4, 2, 3);
  LayerSample sample = Sample(shape, 0, 50);
  sample.scale = 0.7f;
  sample.softcap = 2.0f;
  std::vector<float> q(50 * 4 * 3), k(50 * 2 * 3);
  for (size_t i = 0; i < q.size(); ++i) q[i] = std::sin(static_cast<float>(i) * 1.7f) * 2;
  for (size_t i = 0; i < k.size(); ++i) k[i] = std::cos(static_cast<float>(i) * 0.9f) * 2;
  sample.Take(TensorView(q.data(), DType::kF32, {50, 4, 3}),
              TensorView(k.data(), DType::kF32, {50, 2, 3}));
  for (const int32_t window : {0, 7}) {
    sample.window_tokens = window;
    HeadMap map;
    FillMap(sample, 2, std::array{4, 33}, map);
    ASSERT_EQ(map.probs.size(), 100u);
    for (size_t i = 0; i < 2; ++i) {
      const int row = map.rows[i];
      std::vector<double> expected(50);
      double sum = 0;
      for (int j = 0; j <= row; ++j) {
        if (window > 0 && row - j >= window) continue;
        double dot = 0;
        for (int c = 0; c < 3; ++c) {  // query head 2 reads kv head 1
          dot += static_cast<double>(q[static_cast<size_t>((row * 4 + 2) * 3 + c)]) *
                 static_cast<double>(k[static_cast<size_t>((j * 2 + 1) * 3 + c)]);
        }
        sum += expected[static_cast<size_t>(j)] = std::exp(2.0 * std::tanh(dot * 0.7 / 2.0));
      }
      for (size_t j = 0; j < 50; ++j) {
        EXPECT_NEAR(map.Probs(i)[j], expected[j] / sum, 1e-5) << window << " " << row << " " << j;
      }
    }
  }
}

TEST(HeadMap, RowsAreAStrideTheTailAndAnswers) {
  PromptMarks marks;
  marks.answers = {{.row = 5, .spans = {}}, {.row = 199, .spans = {}}};
  const std::vector<int32_t> rows = SampledRows(200, 50, marks);
  EXPECT_EQ(rows[0], 5);
  EXPECT_EQ(rows[1], 49);
  EXPECT_EQ(rows[2], 99);
  EXPECT_EQ(rows[3], 136);
  EXPECT_EQ(rows.size(), 3u + 64u);
}

TEST(HeadScores, IsTheMassOnFarAnswersOfTheBestQueryHead) {
  const AttentionShape shape = Shape(1, 4, 2);
  const LayerSample sample = Sample(shape, 0, 600);
  PromptMarks marks;  // the second has its answer in sight of a streaming head: it says nothing
  marks.answers = {{.row = 520, .spans = {{100, 104}, {500, 504}}},
                   {.row = 540, .spans = {{500, 504}}}};
  const auto table = MakeHeadScores(shape, {});
  const std::array<float, 4> mass = {0.05f, 0.125f, 0.0f, 0.2f};
  for (int32_t head = 0; head < 4; ++head) {
    table->Add(Map(sample, head, marks,
                   [&](int32_t, int32_t key) {
                     const bool there = (key >= 100 && key < 104) || (key >= 500 && key < 504);
                     return there ? mass[static_cast<size_t>(head)] : 0.0f;
                   }),
               marks);
  }
  SparseArtefacts artefacts;
  ASSERT_TRUE(table->Finish(artefacts).ok());
  EXPECT_THAT(artefacts.head_scores, ElementsAre(0.5f, testing::FloatNear(0.8f, 1e-3f)));

  const auto without = MakeHeadScores(shape, {});
  EXPECT_THAT(without->Finish(artefacts).message(), HasSubstr("\"answers\""));
}

TEST(Channels, AreOrderedByTheMeanOfAbsoluteProducts) {
  const AttentionShape shape = Shape(2, 2, 1, 4);
  const auto table = MakeChannels(shape);
  const std::array<float, 4> keys = {-4, 1, 1, 2};
  for (int32_t layer = 0; layer < 2; ++layer) {
    LayerSample sample = Sample(shape, layer, 8);
    for (int32_t head = 0; head < 2; ++head) {
      for (int32_t row = 0; row < 8; ++row) {
        for (int32_t c = 0; c < 4; ++c) {
          // Signs change from row to row: a plain mean would vanish. Layer 1 turns the order
          // around.
          const float size = static_cast<float>(layer == 0 ? c + 1 : (c == 1 ? 100 : 1));
          sample.q[static_cast<size_t>((head * 8 + row) * 4 + c)] = row % 2 == 0 ? size : -size;
          sample.k[static_cast<size_t>(c * 8 + row)] = keys[static_cast<size_t>(c)];
        }
      }
    }
    for (int32_t head = 0; head < 2; ++head) {
      table->Add({.sample = &sample, .head = head, .rows = {}, .probs = {}}, {});
    }
  }
  SparseArtefacts artefacts;
  ASSERT_TRUE(table->Finish(artefacts).ok());
  EXPECT_THAT(artefacts.channels, ElementsAre(3, 0, 2, 1, 1, 0, 3, 2));
}

TEST(Thresholds, AreTheMeanOfTheKthLogitAndATenthOfItsDeviation) {
  const AttentionShape shape = Shape(3, 1, 1, 1);
  const auto table = MakeThresholds(shape, {.top_k = 10});
  for (int32_t layer = 0; layer < 3; ++layer) {
    LayerSample sample = Sample(shape, layer, 200);
    sample.scale = 0.5f;
    for (size_t i = 0; i < 200; ++i) {
      sample.q[i] = 2;
      sample.k[i] = static_cast<float>(i);  // logits: 0, 1, 2, ...
    }
    table->Add({.sample = &sample, .head = 0, .rows = {}, .probs = {}}, {});
  }
  SparseArtefacts artefacts;
  ASSERT_TRUE(table->Finish(artefacts).ok());
  // Rows 184 .. 199; the 40th largest in the first two layers, the 10th in the others.
  const double deviation = std::sqrt((16.0 * 16 - 1) / 12);
  EXPECT_NEAR(artefacts.thresholds[0], 191.5 - 39 + 0.1 * deviation, 1e-3);
  EXPECT_NEAR(artefacts.thresholds[1], 191.5 - 39 + 0.1 * deviation, 1e-3);
  EXPECT_NEAR(artefacts.thresholds[2], 191.5 - 9 + 0.1 * deviation, 1e-3);
}

// Layers of one head; layer l attends to key group[l] alone.
std::vector<int32_t> Planners(const std::vector<int32_t>& group, double planners) {
  const auto layers = static_cast<int32_t>(group.size());
  const AttentionShape shape = Shape(layers, 2, 1);
  const auto table = MakePlannerLayers(shape, {.planners = planners});
  for (int prompt = 0; prompt < 2; ++prompt) {
    for (int32_t layer = 0; layer < layers; ++layer) {
      const LayerSample sample = Sample(shape, layer, 100);
      for (int32_t head = 0; head < 2; ++head) {
        table->Add(Map(sample, head, {},
                       [&](int32_t, int32_t key) {
                         return key == group[static_cast<size_t>(layer)] ? 1.0f : 0.0f;
                       }),
                   {});
      }
    }
  }
  SparseArtefacts artefacts;
  EXPECT_TRUE(table->Finish(artefacts).ok());
  return artefacts.planner_layers;
}

TEST(PlannerLayers, StandWhereAttentionTurns) {
  EXPECT_THAT(Planners({1, 1, 1, 2, 2, 2}, 0), ElementsAre(0, 1, 3));
  EXPECT_THAT(Planners({1, 1, 1, 1, 2, 2}, 0), ElementsAre(0, 1, 4));
  // The last layer would plan for nobody, and the first two are planners anyhow.
  EXPECT_THAT(Planners({1, 2, 2, 2, 2, 3}, 0), ElementsAre(0, 1, 2));
  // Spread: of the turns at 4 and 5, too near to each other for two among 10 layers, one counts.
  EXPECT_THAT(Planners({1, 1, 1, 1, 2, 3, 3, 3, 4, 4, 4, 4}, 2), ElementsAre(0, 1, 4, 8));
  EXPECT_THAT(Planners({1}, 0), ElementsAre(0));
}

TEST(Spans, GiveTheDensityToHeadsThatLookFar) {
  const AttentionShape shape = Shape(1, 4, 2);
  const LayerSample sample = Sample(shape, 0, 1024);
  const auto table = MakeSpans(shape, {.density = 0.5});
  for (int32_t head = 0; head < 4; ++head) {
    table->Add(Map(sample, head, {},
                   [&](int32_t row, int32_t key) {
                     return head < 2 ? Newest(row, key, 32) : 1.0f / static_cast<float>(row + 1);
                   }),
               {});
  }
  SparseArtefacts artefacts;
  ASSERT_TRUE(table->Finish(artefacts).ok());
  // 128 of 1024 tokens for the near head leave 7/8 to the other: 0.5 in the mean.
  const HeadSpan near = {0, 0}, far = {0, 0.875f};
  EXPECT_THAT(artefacts.spans, ElementsAre(near, near, far, far));
}

TEST(PrefillP, IsSmallWhereFirstAndDiagonalBlockSufficeAndLargeForEvenAttention) {
  const AttentionShape shape = Shape(1, 2, 2, 2);
  LayerSample sample = Sample(shape, 0, 2048);
  for (size_t row = 0; row < 2048; ++row) {
    sample.q[row * 2] = 1;  // of head 0; head 1 attends evenly
    sample.k[row] = row < 128 ? 12.0f : 0.0f;
  }
  const auto table = MakePrefillP(shape, {});
  HeadMap map;
  for (int32_t head = 0; head < 2; ++head) {
    FillMap(sample, head, SampledRows(2048, 16, {}), map);
    table->Add(map, {});
  }
  SparseArtefacts artefacts;
  ASSERT_TRUE(table->Finish(artefacts).ok());
  EXPECT_LE(artefacts.prefill_p[0], 0.02f);
  EXPECT_NEAR(artefacts.prefill_p[1], 0.88f, 0.05f);  // in rows of 5 to 16 blocks

  const auto too_short = MakePrefillP(shape, {});
  LayerSample brief = Sample(shape, 0, 300);
  FillMap(brief, 0, SampledRows(300, 16, {}), map);
  too_short->Add(map, {});
  EXPECT_THAT(too_short->Finish(artefacts).message(), HasSubstr("need one of 640 tokens"));
}

TEST(Patterns, FindTheCheapestShapeThatRecallsTheMass) {
  constexpr int32_t kTokens = 2048, kBlock = 64;
  const AttentionShape shape = Shape(1, 3, 1, 32);
  LayerSample sample = Sample(shape, 0, kTokens);
  for (int32_t row = 0; row < kTokens; ++row) {  // head 2: block i of queries reads one key block
    const int32_t block = row / kBlock, wanted = block * 7 % (block + 1);
    sample.k[static_cast<size_t>(block * kTokens + row)] = 10;
    sample.q[static_cast<size_t>((2 * kTokens + row) * 32 + wanted)] = 10;
  }
  const auto table = MakePatterns(shape, {.tolerance = 0.02, .pattern_tokens = 32768});
  // Head 0 looks at the newest 40; head 1 at every sixth key of the first half, 171 columns.
  table->Add(Map(sample, 0, {}, [](int32_t row, int32_t key) { return Newest(row, key, 40); }), {});
  table->Add(
      Map(sample, 1, {},
          [](int32_t, int32_t key) { return key < 1024 && key % 6 == 0 ? 1.0f / 171 : 0.0f; }),
      {});
  HeadMap blocks;
  FillMap(sample, 2, SampledRows(kTokens, 16, {}), blocks);
  table->Add(blocks, {});
  SparseArtefacts artefacts;
  ASSERT_TRUE(table->Finish(artefacts).ok());
  const HeadPattern near = {PatternKind::kAShape, 512, 1536};
  const HeadPattern columns = {PatternKind::kVerticalSlash, 32768 * 7 / 64, 512};
  const HeadPattern block = {PatternKind::kBlocks, 32768 / 8 / 64, 0};
  EXPECT_THAT(artefacts.patterns, ElementsAre(near, columns, block));
}

TEST(Calibrator, WatchesOnlyBetweenBeginAndEndAndKeepsOtherTables) {
  const AttentionShape shape = Shape(1, 1, 1, 2);
  const std::array kinds = {kvcache::ArtefactKind::kChannels};
  Calibrator calibrator(shape, {.scale = 1}, {}, kinds);
  std::vector<float> telling = {0, 1, 0, 1}, other = {100, 0, 100, 0};
  std::vector<int32_t> positions = {0, 1};
  const auto show = [&](std::vector<float>& values) {
    const TensorView view(values.data(), DType::kF32, {2, 1, 2});
    calibrator.Observe(0, view, view, TensorView(positions.data(), DType::kI32, {2}));
  };
  int layers = 0;
  calibrator.Begin({}, [&](int32_t) { ++layers; });
  show(telling);
  calibrator.End();
  show(other);
  SparseArtefacts artefacts;
  artefacts.planner_layers = {0};
  ASSERT_TRUE(calibrator.Finish(artefacts).ok());
  EXPECT_THAT(artefacts.channels, ElementsAre(1, 0));
  EXPECT_THAT(artefacts.planner_layers, ElementsAre(0));
  EXPECT_EQ(layers, 1);
}

TEST(Calibrator, DialsHaveTheirDefaultsInRange) {
  const CalibrateOptions defaults;
  std::set<std::string_view> names;
  for (const CalibrateDial& dial : AllCalibrateDials()) {
    EXPECT_TRUE(names.insert(dial.name).second) << dial.name;
    EXPECT_GE(defaults.*dial.value, dial.min) << dial.name;
    EXPECT_LE(defaults.*dial.value, dial.max) << dial.name;
  }
}

}  // namespace
}  // namespace lacuna::engine
