// SelectKeys against a plain reference: every score, rule and selector, odd lengths, pages of 16
// and 64, ties, choices kept over steps, heads with windows, and rows that must not see each other.
#include <functional>

#include "tests/ops/select_fixture.h"

namespace lacuna::kernels {
namespace {

using Tokens = SelectRun::Tokens;

const std::vector<int> kLengths = {1, 15, 16, 17, 63, 64, 65, 1000, 130};
const std::vector<int> kFewLengths = {1, 17, 64, 65, 330};  // instead, where minutes count

MetadataSpec Spec(MetadataKind kind, MetadataPrecision precision, int sub, int window = 0,
                  int channels = 0) {
  return {.kind = kind,
          .precision = precision,
          .sub_tokens = sub,
          .window_tokens = window > 0 ? window : sub,
          .channels = channels};
}
const MetadataSpec kMinMax = Spec(MetadataKind::kMinMax, MetadataPrecision::kInt8, 16);
const MetadataSpec kMinMaxBf16 = Spec(MetadataKind::kMinMax, MetadataPrecision::kBf16, 16);
const MetadataSpec kLowBit4 = Spec(MetadataKind::kLowBit, MetadataPrecision::kInt4, 1);

// A row of so many tokens whose dials follow from its length.
RowCase MakeRow(const DecodePath& path, int sequence, int tokens, bool dense = false) {
  RowCase row;
  row.sequence = sequence;
  row.tokens = tokens;
  DecodeCounts& counts = row.what.counts;
  const int unit = path.unit_tokens;
  counts.units = static_cast<int32_t>(CeilDiv(tokens, unit));
  counts.dense = dense;
  counts.sink_units = std::min(counts.units, sequence % 3);
  counts.local_units =
      std::min(counts.units - counts.sink_units,
               static_cast<int>(CeilDiv(sequence % 4 == 3 ? 0 : 20 + 9 * sequence, unit)));
  const int between = counts.candidates();
  counts.ranked_units_max = path.select == SelectKind::kTopK
                                ? std::min(between, static_cast<int>(CeilDiv(300, unit)) + sequence)
                                : between - between / 8;
  counts.ranked_units_min = path.select == SelectKind::kTopK ? counts.ranked_units_max
                                                             : std::min(2, counts.ranked_units_max);
  counts.refine_units = static_cast<int32_t>(CeilDiv(60, path.refine_unit_tokens));
  counts.refine_units_min = 1;
  row.what.p = sequence % 2 == 0 ? 0.7f : 0.95f;
  row.what.refine_p = sequence % 2 == 0 ? 0.9f : 0.6f;
  row.what.threshold = path.normalise ? 0.002f : 0.5f;
  row.what.choice = sequence;
  return row;
}

class SelectKeysTest : public testing::TestWithParam<BackendCase> {
 protected:
  void SetUp() override {
    auto backend = MakeTestBackend(GetParam());
    if (SkipsOrFails(backend)) return;
    backend_ = std::move(backend).value();
  }

  // All lengths of `lengths` in one call against the reference, and each row alone bit for bit.
  void ExpectPath(const DecodePath& path, const SelectShape& shape,
                  const std::vector<int>& wanted = kLengths, bool whole = false) {
    const bool few = GetParam().emulated() || TestsAreBrief();
    const std::vector<int>& lengths = few && wanted == kLengths ? kFewLengths : wanted;
    SelectWorld world(backend_, shape, GetParam().precision, lengths, 7, whole);
    world.AddMetadata(path.metadata);
    world.AddMetadata(path.refine_metadata);
    std::vector<RowCase> rows;
    for (size_t i = 0; i < lengths.size(); ++i) {
      rows.push_back(MakeRow(path, static_cast<int>(i), lengths[i], i == 3));
    }
    std::vector<float> thresholds;
    for (int h = 0; h < world.q_heads() && path.head_thresholds; ++h) {
      thresholds.push_back((path.normalise ? 0.001f : 0.3f) * static_cast<float>(h % 4 + 1));
    }
    SelectRun run(world, path, rows, thresholds);
    ChoiceStore choices;
    const SelectOutcome together = run.Run(0, run.rows(), choices);
    ASSERT_EQ(run.status(), OkStatus());
    for (int64_t i = 0; i < run.rows(); ++i) {
      std::vector<Tokens> kept;
      run.ExpectRow(i, together, i, run.Expected(i, &kept));
      if (HasFatalFailure()) return;
      if (TestsAreBrief()) continue;
      ChoiceStore own;
      const SelectOutcome alone = run.Run(i, i + 1, own);
      for (int64_t kv = 0; kv < shape.kv_heads; ++kv) {
        const auto at = static_cast<size_t>(i * shape.kv_heads + kv);
        ASSERT_EQ(alone.lists[static_cast<size_t>(kv)], together.lists[at]) << "row " << i;
        ASSERT_EQ(alone.stats[static_cast<size_t>(kv)].estimated_mass,
                  together.stats[at].estimated_mass);
      }
    }
  }

  std::shared_ptr<Backend> backend_;
};

TEST_P(SelectKeysTest, Bounds) {
  for (const MetadataSpec& spec : {kMinMax, kMinMaxBf16}) {
    for (const int page : {16, 64}) {
      DecodePath path{.metadata = spec,
                      .refine_metadata = {},
                      .unit_tokens = 64,
                      .score = ScoreKind::kBound,
                      .pool = PoolKind::kMax,
                      .select = SelectKind::kTopK};
      ASSERT_NO_FATAL_FAILURE(ExpectPath(path, {2, 4, 64, page}));
      path.unit_tokens = 16;
      path.pool = PoolKind::kNone;
      ASSERT_NO_FATAL_FAILURE(ExpectPath(path, {2, 1, 32, page}));
      path.select = SelectKind::kThreshold;
      path.correct = DecodeCorrectKind::kDenominator;
      ASSERT_NO_FATAL_FAILURE(ExpectPath(path, {1, 3, 128, page}));
    }
  }
}

TEST_P(SelectKeysTest, EveryPrecisionAndEntry) {
  for (const auto precision : {MetadataPrecision::kBf16, MetadataPrecision::kInt8,
                               MetadataPrecision::kInt4, MetadataPrecision::kInt2}) {
    for (const int page : {16, 64}) {
      for (const int sub : {1, 16, 64}) {
        DecodePath path{.metadata = Spec(MetadataKind::kMinMax, precision, sub),
                        .refine_metadata = {},
                        .unit_tokens = 64,
                        .score = ScoreKind::kBound,
                        .pool = sub < 64 ? PoolKind::kMax : PoolKind::kNone,
                        .reduce = ReduceKind::kSum,
                        .select = SelectKind::kTopK};
        ASSERT_NO_FATAL_FAILURE(ExpectPath(path, {2, 3, 48, page}, {65, 700, 16, 1}));
        path.metadata = Spec(MetadataKind::kMean, precision, sub);
        path.score = ScoreKind::kDot;
        path.reduce = ReduceKind::kMax;
        ASSERT_NO_FATAL_FAILURE(ExpectPath(path, {1, 5, 64, page}, {65, 700, 17, 1}));
      }
      DecodePath path{.metadata = Spec(MetadataKind::kLabels, precision, 1, 1, 6),
                      .refine_metadata = {},
                      .unit_tokens = 1,
                      .score = ScoreKind::kDot,
                      .select = SelectKind::kTopK};
      ASSERT_NO_FATAL_FAILURE(ExpectPath(path, {2, 4, 48, page}, {64, 700, 17, 1}));
      DecodePath pages = path;  // the best key of a page, of all heads
      pages.unit_tokens = 64;
      pages.pool = PoolKind::kMax;
      ASSERT_NO_FATAL_FAILURE(ExpectPath(pages, {2, 7, 48, page}, {64, 700, 17, 1}));
      path.metadata = Spec(MetadataKind::kLowBit, precision, 1);
      path.normalise = true;
      path.select = SelectKind::kTopP;
      ASSERT_NO_FATAL_FAILURE(ExpectPath(path, {2, 3, 32, page}, {64, 700, 17, 1}));
    }
  }
}

// The shapes of profiles, of which a GPU's kernels know the numbers; units of several tiles.
TEST_P(SelectKeysTest, ShapesOfProfiles) {
  const auto labels = [](int channels) {
    return Spec(MetadataKind::kLabels, MetadataPrecision::kInt4, 1, 1, channels);
  };
  struct Case final {
    MetadataSpec spec;
    SelectShape shape;
    PoolKind pool = PoolKind::kMax;
    ReduceKind reduce = ReduceKind::kMax;
  };
  const std::vector<Case> cases = {
      {labels(32), {2, 4, 128, 64}},
      {labels(32), {1, 7, 64, 64}, PoolKind::kSum, ReduceKind::kMean},
      {labels(16), {2, 3, 64, 64}},
      {labels(16), {1, 8, 64, 64}, PoolKind::kMean, ReduceKind::kSum},
      {kLowBit4, {1, 4, 128, 64}},
      {kLowBit4, {2, 2, 64, 64}},
      {kLowBit4, {1, 5, 64, 64}, PoolKind::kSum, ReduceKind::kMax},
      {kLowBit4, {2, 4, 32, 64}, PoolKind::kMax, ReduceKind::kSum},
      {Spec(MetadataKind::kMinMax, MetadataPrecision::kInt8, 64), {1, 4, 128, 64}},
      {Spec(MetadataKind::kMean, MetadataPrecision::kInt8, 16), {2, 6, 128, 16}, PoolKind::kMean}};
  for (const Case& one : cases) {
    DecodePath path{
        .metadata = one.spec,
        .refine_metadata = {},
        .unit_tokens = 64,
        .score = one.spec.kind == MetadataKind::kMinMax ? ScoreKind::kBound : ScoreKind::kDot,
        .pool = one.pool,
        .reduce = one.reduce,
        .select = SelectKind::kTopK};
    ASSERT_NO_FATAL_FAILURE(ExpectPath(path, one.shape, {1, 65, 1500, 300, 64}));
    path.select = SelectKind::kThreshold;
    path.head_thresholds = true;
    ASSERT_NO_FATAL_FAILURE(ExpectPath(path, one.shape, {700, 129}));
  }
}

TEST_P(SelectKeysTest, KeysLogitsAndProbabilities) {
  for (const int page : {16, 64}) {
    for (const ScoreKind score : {ScoreKind::kKeys, ScoreKind::kLogits, ScoreKind::kProbs}) {
      for (const int unit : {1, 16, 64}) {
        DecodePath path{.metadata = {},
                        .refine_metadata = {},
                        .unit_tokens = unit,
                        .score = score,
                        .pool = unit == 1 ? PoolKind::kNone : PoolKind::kSum,
                        .owner = OwnerKind::kLayer,
                        .reduce = ReduceKind::kMax,
                        .select = SelectKind::kTopK};
        ASSERT_NO_FATAL_FAILURE(ExpectPath(path, {2, 3, 64, page}));
        path.owner = OwnerKind::kKvHead;
        path.reduce = ReduceKind::kMean;
        path.pool = unit == 1 ? PoolKind::kNone : PoolKind::kMean;
        ASSERT_NO_FATAL_FAILURE(ExpectPath(path, {3, 1, 32, page}));
      }
    }
  }
}

// Groups beyond one pass of heads, and chunks beyond the first.
TEST_P(SelectKeysTest, ManyHeadsAndLongRows) {
  DecodePath path{.metadata = {},
                  .refine_metadata = {},
                  .unit_tokens = 1,
                  .score = ScoreKind::kKeys,
                  .normalise = true,
                  .owner = OwnerKind::kLayer,
                  .reduce = ReduceKind::kSum,
                  .select = SelectKind::kTopK};
  ASSERT_NO_FATAL_FAILURE(ExpectPath(path, {1, 7, 32, 64}, {4096, 4097, 9001, 63}));
  path.metadata = kMinMax;
  path.normalise = false;
  path.unit_tokens = 64;
  path.score = ScoreKind::kBound;
  path.pool = PoolKind::kMax;
  path.owner = OwnerKind::kKvHead;
  path.reduce = ReduceKind::kMax;
  ASSERT_NO_FATAL_FAILURE(ExpectPath(path, {2, 6, 64, 64}, {4096, 4097, 9001, 20000}));
  ASSERT_NO_FATAL_FAILURE(ExpectPath(path, {2, 2, 64, 16}, {4096, 4097, 5001}));
}

// More units than a thread block of a GPU has memory for; turns of more than it sorts at once.
TEST_P(SelectKeysTest, RowsBeyondABlocksMemory) {
  for (const bool whole : {false, true}) {
    DecodePath path{.metadata = {},
                    .refine_metadata = {},
                    .unit_tokens = 1,
                    .score = ScoreKind::kKeys,
                    .normalise = true,
                    .select = SelectKind::kTopP};
    ASSERT_NO_FATAL_FAILURE(ExpectPath(path, {1, 1, 16, 64}, {45000}, whole));
    path.select = SelectKind::kTopK;
    path.refine = RefineKind::kTopP;
    path.refine_unit_tokens = 1;
    SelectWorld world(backend_, {1, 2, 16, 64}, GetParam().precision, {45000}, 7, whole);
    RowCase row = MakeRow(path, 0, 45000);
    row.what.counts.ranked_units_max = row.what.counts.ranked_units_min = 42000;
    std::vector<Tokens> kept;
    for (const ReduceKind reduce : {ReduceKind::kMax, ReduceKind::kRoundRobin}) {
      path.reduce = reduce;
      SelectRun run(world, path, {row});
      ChoiceStore choices;
      run.ExpectRow(0, run.Run(0, 1, choices), 0, run.Expected(0, &kept));
      if (HasFatalFailure()) return;
      path.refine = RefineKind::kNone;
      row.what.counts.ranked_units_max = row.what.counts.ranked_units_min = 9000;
    }
  }
}

// Top-k of a kv head alone, of as many units as a thread block of a GPU holds in registers: cuts
// in the thin end and in the crowd of scores, with equal ones and without.
TEST_P(SelectKeysTest, TopOfManyUnits) {
  for (const bool whole : {false, true}) {
    for (const bool normalise : {false, true}) {
      const DecodePath path{.metadata = {},
                            .refine_metadata = {},
                            .unit_tokens = 1,
                            .score = ScoreKind::kKeys,
                            .normalise = normalise,
                            .select = SelectKind::kTopK};
      for (const int tokens : {1990, 8100, 16000}) {
        SelectWorld world(backend_, {1, 2, 16, tokens > 8192 ? 64 : 16}, GetParam().precision,
                          {tokens}, 7, whole);
        for (const int count : {0, 100, tokens / 2, tokens}) {
          RowCase row = MakeRow(path, 0, tokens);
          DecodeCounts& counts = row.what.counts;
          counts.sink_units = 3;
          counts.ranked_units_max = std::min(count, counts.candidates());
          counts.ranked_units_min = counts.ranked_units_max;
          SelectRun run(world, path, {row});
          ChoiceStore choices;
          std::vector<Tokens> kept;
          run.ExpectRow(0, run.Run(0, 1, choices), 0, run.Expected(0, &kept));
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_P(SelectKeysTest, ReduceAndSelectRules) {
  for (const SelectKind select : {SelectKind::kTopK, SelectKind::kTopP, SelectKind::kThreshold}) {
    for (const ReduceKind reduce :
         {ReduceKind::kMax, ReduceKind::kMean, ReduceKind::kSum, ReduceKind::kUnion}) {
      for (const bool inclusive : {true, false}) {
        for (const bool own : {false, true}) {
          if (own && select != SelectKind::kThreshold) continue;
          DecodePath path{.metadata = {},
                          .refine_metadata = {},
                          .unit_tokens = 16,
                          .score = ScoreKind::kKeys,
                          .normalise = select == SelectKind::kTopP || inclusive,
                          .pool = PoolKind::kSum,
                          .reduce = reduce,
                          .select = select,
                          .inclusive = inclusive,
                          .head_thresholds = own};
          if (select == SelectKind::kThreshold) path.correct = DecodeCorrectKind::kDenominator;
          ASSERT_NO_FATAL_FAILURE(ExpectPath(path, {2, 3, 32, inclusive ? 64 : 16}));
        }
      }
    }
  }
}

TEST_P(SelectKeysTest, RoundRobinAndGroupMean) {
  for (const int unit : {1, 16}) {
    DecodePath path{.metadata = {},
                    .refine_metadata = {},
                    .unit_tokens = unit,
                    .score = ScoreKind::kLogits,
                    .pool = unit == 1 ? PoolKind::kNone : PoolKind::kMax,
                    .owner = OwnerKind::kLayer,
                    .reduce = ReduceKind::kRoundRobin,
                    .select = SelectKind::kTopK};
    ASSERT_NO_FATAL_FAILURE(ExpectPath(path, {2, 3, 32, 64}));
  }
  DecodePath path{.metadata = Spec(MetadataKind::kMean, MetadataPrecision::kBf16, 16, 32),
                  .refine_metadata = {},
                  .unit_tokens = 16,
                  .score = ScoreKind::kDot,
                  .query = QueryForm::kGroupMean,
                  .reduce = ReduceKind::kMean,
                  .select = SelectKind::kTopK};
  ASSERT_NO_FATAL_FAILURE(ExpectPath(path, {2, 4, 32, 16}));
  ASSERT_NO_FATAL_FAILURE(ExpectPath(path, {2, 2, 64, 64}));
}

TEST_P(SelectKeysTest, SecondChoice) {
  for (const int page : {16, 64}) {
    for (const int unit : {1, 16, 64}) {
      if (TestsAreBrief() && (page == 16) != (unit == 1)) continue;
      for (const ReduceKind reduce :
           {ReduceKind::kUnion, ReduceKind::kMax, ReduceKind::kMean, ReduceKind::kSum}) {
        DecodePath path{.metadata = kMinMaxBf16,
                        .refine_metadata = kLowBit4,
                        .unit_tokens = 64,
                        .refine_unit_tokens = unit,
                        .score = ScoreKind::kBound,
                        .pool = PoolKind::kMax,
                        .select = SelectKind::kTopK,
                        .refine = RefineKind::kTopP,
                        .refine_reduce = reduce};
        ASSERT_NO_FATAL_FAILURE(ExpectPath(path, {2, 3, 32, page}));
        path.refine_metadata = {};
        path.refine_inclusive = false;
        ASSERT_NO_FATAL_FAILURE(ExpectPath(path, {1, 4, 32, page}));
        path.refine = RefineKind::kTopK;
        if (reduce != ReduceKind::kUnion) path.owner = OwnerKind::kLayer;
        ASSERT_NO_FATAL_FAILURE(ExpectPath(path, {2, 2, 48, page}));
      }
    }
  }
}

TEST_P(SelectKeysTest, NothingAndEverything) {
  DecodePath path{
      .metadata = {}, .refine_metadata = {}, .unit_tokens = 16, .select = SelectKind::kNone};
  ASSERT_NO_FATAL_FAILURE(ExpectPath(path, {2, 3, 32, 64}));
  path.select = SelectKind::kAll;
  ASSERT_NO_FATAL_FAILURE(ExpectPath(path, {2, 3, 32, 16}));
}

// Whole numbers tie often: the older unit wins, on every instruction set.
TEST_P(SelectKeysTest, TiesGoToTheOlder) {
  for (const int unit : {1, 16, 64}) {
    DecodePath path{.metadata = kMinMaxBf16,
                    .refine_metadata = {},
                    .unit_tokens = unit,
                    .score = ScoreKind::kBound,
                    .pool = unit > 16 ? PoolKind::kMax : PoolKind::kNone,
                    .select = SelectKind::kTopK};
    if (unit == 1) {
      path.metadata = {};
      path.score = ScoreKind::kKeys;
    }
    ASSERT_NO_FATAL_FAILURE(ExpectPath(path, {2, 2, 16, 64}, kLengths, true));
    path.select = SelectKind::kThreshold;
    ASSERT_NO_FATAL_FAILURE(ExpectPath(path, {2, 2, 16, 16}, kLengths, true));
    path.select = SelectKind::kTopK;
    path.reduce = ReduceKind::kUnion;
    ASSERT_NO_FATAL_FAILURE(ExpectPath(path, {1, 3, 16, 16}, kLengths, true));
  }
}

TEST_P(SelectKeysTest, AllScoresEqual) {
  for (const ReduceKind reduce : {ReduceKind::kMax, ReduceKind::kUnion}) {
    for (const SelectKind select : {SelectKind::kTopK, SelectKind::kTopP}) {
      DecodePath path{.metadata = {},
                      .refine_metadata = {},
                      .unit_tokens = 1,
                      .score = ScoreKind::kKeys,
                      .normalise = true,
                      .reduce = reduce,
                      .select = select};
      SelectWorld world(backend_, {2, 2, 32, 64}, GetParam().precision, {1000, 100}, 3);
      RowCase row = MakeRow(path, 0, 1000);
      row.what.counts = {.dense = false,
                         .units = 1000,
                         .sink_units = 2,
                         .local_units = 5,
                         .ranked_units_min = 100,
                         .ranked_units_max = 100};
      SelectRun run(world, path, {row});
      for (int64_t c = 0; c < run.q().dim(); ++c) run.q().set(0, c, 0.0f);
      ChoiceStore choices;
      const SelectOutcome outcome = run.Run(0, 1, choices);
      Tokens want(1000);
      for (size_t t = 0; t < want.size(); ++t) want[t] = t < 102 || t >= 995;
      run.ExpectRow(0, outcome, 0, {want, want});
    }
  }
}

// A choice made at one step is read at the next ones, while forced units move on.
TEST_P(SelectKeysTest, KeptChoices) {
  for (const OwnerKind owner : {OwnerKind::kKvHead, OwnerKind::kLayer}) {
    for (const int page : {16, 64}) {
      DecodePath path{.metadata = kMinMax,
                      .refine_metadata = {},
                      .unit_tokens = 16,
                      .score = ScoreKind::kBound,
                      .owner = owner,
                      .select = SelectKind::kTopK,
                      .refresh = RefreshKind::kEveryN};
      SelectWorld world(backend_, {2, 3, 32, page}, GetParam().precision, {900, 300}, 11);
      world.AddMetadata(path.metadata);
      ChoiceStore choices;
      std::vector<Tokens> kept[2];
      for (int step = 0; step < 90; step += step < 3 ? 1 : 40) {
        std::vector<RowCase> rows;
        for (int s = 0; s < 2; ++s) {
          rows.push_back(MakeRow(path, s, (s == 0 ? 700 : 150) + step));
          rows.back().what.choice = 1 - s;
          rows.back().what.choose = step % 83 == s;  // the first at 0 and 83, the second at 1
          rows.back().what.counts.ranked_units_max = 3;
          rows.back().what.counts.ranked_units_min = 3;
          if (step == 0) rows.back().what.choose = true;
        }
        SelectRun run(world, path, rows);
        const SelectOutcome outcome = run.Run(0, 2, choices);
        ASSERT_EQ(run.status(), OkStatus());
        for (int s = 0; s < 2; ++s) {
          run.ExpectRow(s, outcome, s, run.Expected(s, &kept[s]));
          if (HasFatalFailure()) return;
          ASSERT_EQ(outcome.stats[static_cast<size_t>(2 * s)].choices,
                    rows[static_cast<size_t>(s)].what.choose ? 1 : 0);
        }
      }
    }
  }
}

TEST_P(SelectKeysTest, TurnedQueriesChooseAnew) {
  DecodePath path{.metadata = {},
                  .refine_metadata = {},
                  .unit_tokens = 1,
                  .score = ScoreKind::kKeys,
                  .normalise = true,
                  .owner = OwnerKind::kLayer,
                  .reduce = ReduceKind::kSum,
                  .select = SelectKind::kTopK,
                  .refresh = RefreshKind::kCosine};
  SelectWorld world(backend_, {2, 2, 32, 64}, GetParam().precision, {400}, 5);
  RowCase row = MakeRow(path, 0, 350);
  row.what.counts.ranked_units_max = row.what.counts.ranked_units_min = 20;
  row.what.refresh_cosine = 0.9f;
  ChoiceStore choices;
  SelectRun first(world, path, {row});
  std::vector<Tokens> kept;
  first.ExpectRow(0, first.Run(0, 1, choices), 0, first.Expected(0, &kept));
  for (const bool turned : {false, true}) {
    row.tokens = 360 + turned;
    row.what.counts.units = row.tokens;
    row.what.choose = false;
    SelectRun run(world, path, {row});
    for (int64_t c = 0; c < run.q().dim(); ++c) {
      const float q = first.q().at(0, c);
      run.q().set(0, c, turned && c % 2 == 0 ? -q : q * 1.5f);
    }
    const SelectOutcome outcome = run.Run(0, 1, choices);
    EXPECT_EQ(outcome.stats[0].choices, turned ? 1 : 0);
    RowCase expected_row = row;
    expected_row.what.choose = turned;
    SelectRun expected(world, path, {expected_row});
    for (int64_t c = 0; c < run.q().dim(); ++c) expected.q().set(0, c, run.q().at(0, c));
    run.ExpectRow(0, outcome, 0, expected.Expected(0, &kept));
  }
}

TEST_P(SelectKeysTest, HeadsWithWindows) {
  for (const OwnerKind owner : {OwnerKind::kKvHead, OwnerKind::kLayer}) {
    for (const bool dense : {false, true}) {
      DecodePath path{.metadata = kMinMax,
                      .refine_metadata = {},
                      .unit_tokens = 64,
                      .score = ScoreKind::kBound,
                      .pool = PoolKind::kMax,
                      .owner = owner,
                      .select = SelectKind::kTopK};
      SelectWorld world(backend_, {3, 2, 32, 16}, GetParam().precision, {1000, 200, 10}, 21);
      world.AddMetadata(path.metadata);
      std::vector<RowCase> rows;
      for (int s = 0; s < 3; ++s) {
        rows.push_back(MakeRow(path, s, s == 0 ? 999 : s == 1 ? 193 : 10, dense));
        rows.back().shapes = {{.window_tokens = 40, .sink_tokens = 20}, {}, {}};
        if (s == 1) rows.back().shapes[2] = {.window_tokens = 1, .sink_tokens = 0};
        if (s == 2) rows.back().shapes = std::vector<StaticShape>(3, {.window_tokens = 4});
      }
      SelectRun run(world, path, rows);
      ChoiceStore choices;
      const SelectOutcome outcome = run.Run(0, 3, choices);
      ASSERT_EQ(run.status(), OkStatus());
      for (int64_t i = 0; i < 3; ++i) {
        std::vector<Tokens> kept;
        run.ExpectRow(i, outcome, i, run.Expected(i, &kept));
        if (HasFatalFailure()) return;
      }
    }
  }
}

// Where counts lie on the device nobody can refuse: such a row reads everything.
TEST_P(SelectKeysTest, ContradictionsAreRefused) {
  DecodePath path{.metadata = {},
                  .refine_metadata = {},
                  .unit_tokens = 1,
                  .score = ScoreKind::kKeys,
                  .select = SelectKind::kTopK};
  SelectWorld world(backend_, {}, GetParam().precision, {100}, 5);
  const RowCase good = MakeRow(path, 0, 100);
  const auto expect = [&](bool sound, const std::function<void(RowCase&)>& spoil) {
    RowCase row = good;
    spoil(row);
    SelectRun one(world, path, {row});
    ChoiceStore choices;
    const SelectOutcome outcome = one.Run(0, 1, choices);
    if (backend_->device().kind() == DeviceKind::kCpu) {
      EXPECT_EQ(one.status().code(), sound ? StatusCode::kOk : StatusCode::kInvalidArgument);
    } else {
      EXPECT_EQ(one.status(), OkStatus());
      EXPECT_EQ(outcome.stats[0].layers, sound ? 1 : 0);
      EXPECT_TRUE(sound || outcome.lists[0].size() == 2);  // all pages
    }
  };
  expect(true, [](RowCase&) {});
  expect(false, [](RowCase& row) { row.what.counts.units = 99; });
  expect(false, [](RowCase& row) { row.what.counts.sink_units = 101; });
}

std::vector<BackendCase> Cases() {
  std::vector<BackendCase> cases = BackendCases(true);
  for (const BackendCase& which : EmulatedCases(true)) cases.push_back(which);
  return cases;
}
INSTANTIATE_TEST_SUITE_P(Every, SelectKeysTest, testing::ValuesIn(Cases()), CaseName);

}  // namespace
}  // namespace lacuna::kernels
