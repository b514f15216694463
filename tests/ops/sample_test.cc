// Sample on every backend, against the same steps in double precision.
#include "kernels/ops/sample.h"

#include <bit>
#include <map>
#include <numeric>
#include <optional>
#include <utility>

#include "tests/ops/op_test.h"

namespace lacuna::kernels {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The random number of (seed, index): SplitMix64 finalizers, the same on every backend.
uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}
double Uniform(uint64_t seed, int64_t index) {
  const uint64_t bits = Mix(Mix(seed) ^ std::rotl(Mix(static_cast<uint64_t>(index)), 32));
  return static_cast<double>(bits >> 11) * 0x1.0p-53;
}

// Token ids, likeliest first; ties: the lower id.
std::vector<int> Ranked(const std::vector<double>& logits) {
  std::vector<int> order(logits.size());
  std::iota(order.begin(), order.end(), 0);
  std::ranges::stable_sort(order, [&](int a, int b) {
    return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
  });
  return order;
}

struct SampleCase final {
  SampleRow row;
  std::vector<LogitEdit> edits;
  std::optional<std::vector<uint32_t>> mask;
};

class SampleTest : public OpTest {
 protected:
  struct Outcome final {
    std::vector<SampleResult> results;
    std::vector<int32_t> tokens;
  };

  // Logits [rows, vocab] as given; masks where any case has one.
  Outcome Run(TestTensor logits, std::vector<SampleCase> cases) {
    const auto words = static_cast<size_t>(CeilDiv(logits.dim(), 32));
    std::vector<SampleRow> rows;
    std::vector<LogitEdit> edits;
    std::vector<uint32_t> masks;
    bool masked = false;
    for (SampleCase& each : cases) {
      each.row.edits_begin = static_cast<int32_t>(edits.size());
      edits.insert(edits.end(), each.edits.begin(), each.edits.end());
      each.row.edits_end = static_cast<int32_t>(edits.size());
      rows.push_back(each.row);
      masked = masked || each.mask.has_value();
      const auto mask = each.mask.value_or(std::vector<uint32_t>(words, ~0u));
      masks.insert(masks.end(), mask.begin(), mask.end());
    }
    TestArray<SampleRow> row_memory(backend(), rows);
    TestArray<LogitEdit> edit_memory(backend(), edits);
    TestArray<uint32_t> mask_memory(backend(), masks);
    TestMemory results(backend(), rows.size() * sizeof(SampleResult), 0xff);
    TestMemory tokens(backend(), rows.size() * sizeof(int32_t), 0xff);
    const SampleArgs args{.logits = logits.view(),
                          .rows = row_memory.device(),
                          .edits = edit_memory.device(),
                          .mask = masked ? mask_memory.device() : nullptr,
                          .results = reinterpret_cast<SampleResult*>(results.device()),
                          .tokens = reinterpret_cast<int32_t*>(tokens.device())};
    EXPECT_EQ(Sample(backend(), args, stream()), OkStatus());
    logits.ExpectGuards();
    Outcome outcome{std::vector<SampleResult>(rows.size()), std::vector<int32_t>(rows.size())};
    std::memcpy(outcome.results.data(), results.read(), results.size());
    std::memcpy(outcome.tokens.data(), tokens.read(), tokens.size());
    return outcome;
  }

  TestTensor MakeLogits(int64_t rows, int64_t vocab, float scale = 3.0f) {
    TestTensor logits(place(), DType::kF32, rows, vocab, vocab + 3);
    logits.Fill(random(), scale);
    return logits;
  }

  static std::vector<double> Row(const TestTensor& logits, int64_t row) {
    std::vector<double> values;
    for (int64_t i = 0; i < logits.dim(); ++i) values.push_back(logits.at(row, i));
    return values;
  }

  // The logits that the choice is made from.
  static std::vector<double> Edited(std::vector<double> logits, const SampleCase& test) {
    for (const LogitEdit& edit : test.edits) {
      double& logit = logits[static_cast<size_t>(edit.token)];
      logit += double{edit.bias};
      if ((edit.flags & LogitEdit::kBarred) != 0) logit = -double{kInfinity};
      if ((edit.flags & LogitEdit::kRepeated) != 0) {
        logit =
            logit > 0 ? logit / double{test.row.repetition} : logit * double{test.row.repetition};
      }
      if (edit.output_count > 0) {
        logit -= double{test.row.presence} + double{test.row.frequency} * edit.output_count;
      }
    }
    for (size_t i = 0; test.mask.has_value() && i < logits.size(); ++i) {
      if (((*test.mask)[i / 32] >> (i % 32) & 1u) == 0) logits[i] = -double{kInfinity};
    }
    return logits;
  }

  // The token drawn stands where the random number points to, among the kept ones by id.
  static void ExpectDraw(const std::vector<double>& logits, const SampleRow& row, int token) {
    const std::vector<int> order = Ranked(logits);
    const double greatest = logits[static_cast<size_t>(order[0])];
    const auto weight = [&](int id) {
      return std::exp((logits[static_cast<size_t>(id)] - greatest) / double{row.temperature});
    };
    std::vector<int> kept;
    for (const int id : order) {
      const double w = weight(id);
      if (w < double{row.min_p} * (1 - 1e-5) || w == 0.0) break;
      if (w < double{row.min_p} * (1 + 1e-5)) return;  // on the border: either is right
      if (row.top_k > 0 && kept.size() == static_cast<size_t>(row.top_k)) break;
      kept.push_back(id);
    }
    if (row.top_p < 1.0f) {
      double total = 0.0;
      for (const int id : kept) total += weight(id);
      double mass = 0.0;
      size_t count = 0;
      while (count < kept.size() && mass < double{row.top_p} * total * (1 - 1e-5)) {
        mass += weight(kept[count++]);
      }
      if (mass < double{row.top_p} * total * (1 + 1e-5)) return;
      kept.resize(count);
    }
    ASSERT_NE(std::ranges::find(kept, token), kept.end()) << token << " was not kept";
    std::ranges::sort(kept);
    double total = 0.0;
    for (const int id : kept) total += weight(id);
    const double target = Uniform(row.seed, row.index);
    double before = 0.0;
    for (const int id : kept) {
      if (id == token) break;
      before += weight(id) / total;
    }
    EXPECT_LE(before, target + 1e-5) << token;
    EXPECT_GE(before + weight(token) / total, target - 1e-5) << token;
  }

  static void ExpectLogprobs(const std::vector<double>& raw, const SampleRow& row,
                             const SampleResult& result) {
    const double greatest = *std::ranges::max_element(raw);
    double sum = 0.0;
    for (const double logit : raw) sum += std::exp(logit - greatest);
    const auto logprob = [&](int id) {
      return std::max(raw[static_cast<size_t>(id)] - greatest - std::log(sum), -9999.0);
    };
    EXPECT_NEAR(result.logprob, logprob(result.token), 1e-4);
    const std::vector<int> order = Ranked(raw);
    const size_t count = std::min(raw.size(), static_cast<size_t>(row.logprobs));
    ASSERT_EQ(static_cast<size_t>(result.top_count), count);
    for (size_t i = 0; i < count; ++i) {
      EXPECT_EQ(result.top_tokens[i], order[i]) << "rank " << i;
      EXPECT_NEAR(result.top_logprobs[i], logprob(order[i]), 1e-4) << "rank " << i;
    }
  }

  void Check(const TestTensor& logits, const std::vector<SampleCase>& cases) {
    Check(logits, cases, Run(logits, cases));
  }
  void Check(const TestTensor& logits, const std::vector<SampleCase>& cases,
             const Outcome& outcome) {
    for (size_t i = 0; i < cases.size(); ++i) {
      SCOPED_TRACE("row " + std::to_string(i) + " of " + std::to_string(cases.size()) + ", vocab " +
                   std::to_string(logits.dim()));
      const std::vector<double> raw = Row(logits, static_cast<int64_t>(i));
      const std::vector<double> edited = Edited(raw, cases[i]);
      const SampleResult& result = outcome.results[i];
      ASSERT_EQ(result.status, SampleResult::kOk);
      ASSERT_EQ(outcome.tokens[i], result.token);
      ASSERT_GE(result.token, 0);
      ASSERT_LT(result.token, logits.dim());
      if (cases[i].row.temperature == 0.0f) {
        EXPECT_EQ(result.token, Ranked(edited)[0]);
      } else {
        ExpectDraw(edited, cases[i].row, result.token);
      }
      if (cases[i].row.logprobs >= 0) ExpectLogprobs(raw, cases[i].row, result);
      if (HasFatalFailure()) return;
    }
  }
};

std::vector<SampleCase> Variants() {
  std::vector<SampleCase> cases;
  const auto add = [&](float temperature, int top_k, float top_p, float min_p, int logprobs) {
    SampleCase test;
    test.row = {.seed = 1234567 * cases.size() + 5,
                .index = static_cast<int64_t>(7 * cases.size()),
                .temperature = temperature,
                .top_p = top_p,
                .min_p = min_p,
                .top_k = top_k,
                .logprobs = logprobs};
    cases.push_back(test);
  };
  add(0.0f, 0, 1.0f, 0.0f, -1);
  add(0.0f, 5, 0.5f, 0.1f, 20);
  add(1.0f, 0, 1.0f, 0.0f, 0);
  add(0.7f, 0, 1.0f, 0.0f, 3);
  add(1.0f, 1, 1.0f, 0.0f, -1);
  add(1.0f, 40, 1.0f, 0.0f, -1);
  add(1.5f, 0, 0.9f, 0.0f, 5);
  add(1.0f, 0, 0.01f, 0.0f, -1);
  add(1.0f, 0, 1.0f, 0.05f, -1);
  add(0.8f, 50, 0.95f, 0.02f, 20);
  add(1e-7f, 0, 1.0f, 0.0f, -1);
  add(2.0f, 1000000, 0.999f, 1e-6f, 1);
  return cases;
}

TEST_P(SampleTest, MatchesDouble) {
  const std::vector<SampleCase> cases = Variants();
  for (const int64_t vocab : {1, 2, 31, 32, 33, 1000, 4097, 32003}) {
    Check(MakeLogits(static_cast<int64_t>(cases.size()), vocab), cases);
  }
  Check(MakeLogits(static_cast<int64_t>(cases.size()), 151936, 2.0f), cases);
}

TEST_P(SampleTest, DrawsOfManySeedsAndIndices) {
  for (const float scale : {0.1f, 5.0f, 60.0f}) {
    std::vector<SampleCase> cases;
    for (int i = 0; i < 60; ++i) {
      SampleCase test = Variants()[static_cast<size_t>(2 + i % 10)];
      test.row.seed = static_cast<uint64_t>(i / 6) << 60 | static_cast<uint64_t>(i);
      test.row.index = i * 1000003;
      cases.push_back(test);
    }
    Check(MakeLogits(60, 501, scale), cases);
  }
}

TEST_P(SampleTest, EditsAndMasks) {
  constexpr int64_t kVocab = 1003;
  std::vector<SampleCase> cases = Variants();
  const TestTensor logits = MakeLogits(static_cast<int64_t>(cases.size()), kVocab);
  for (size_t i = 0; i < cases.size(); ++i) {
    cases[i].row.repetition = 1.3f;
    cases[i].row.presence = 0.5f;
    cases[i].row.frequency = 0.25f;
    const std::vector<int> order = Ranked(Row(logits, static_cast<int64_t>(i)));
    for (int rank = 0; rank < 30; ++rank) {  // the likeliest tokens, where it matters
      LogitEdit edit;
      edit.token = order[static_cast<size_t>(rank)];
      edit.bias = rank % 3 == 0 ? -1.5f : 0.0f;
      edit.flags = (rank % 4 == 1 ? LogitEdit::kBarred : 0) | (rank % 2 ? LogitEdit::kRepeated : 0);
      edit.output_count = rank % 5;
      cases[i].edits.push_back(edit);
    }
    cases[i].edits.push_back({.token = kVocab - 1, .bias = 9.0f});
    if (i % 2 == 1) continue;
    std::vector<uint32_t> mask(CeilDiv(kVocab, 32));
    for (uint32_t& word : mask) word = static_cast<uint32_t>(random()());
    mask.back() |= 1u << ((kVocab - 1) % 32);
    cases[i].mask = mask;
  }
  Check(logits, cases);
}

TEST_P(SampleTest, TiesGoToTheLowerId) {
  TestTensor logits(place(), DType::kF32, 3, 5000);
  for (int64_t row = 0; row < 3; ++row) {
    for (int64_t i = 0; i < 5000; ++i)
      logits.set(row, i, row == 0 ? 0.0f : i % 7 == 3 ? 2.0f : 1.0f);
  }
  std::vector<SampleCase> cases(3);
  cases[0].row.logprobs = 20;
  cases[1].row.logprobs = 20;
  cases[2].row = {.seed = 3, .temperature = 1.0f, .top_k = 9};
  Check(logits, cases);
}

// Cutoffs among so many tokens of the same or nearly the same logit that no short list holds them.
TEST_P(SampleTest, CutsAmongManyLikelyTokens) {
  for (const float scale : {0.0f, 0.02f, 1.0f}) {
    std::vector<SampleCase> cases;
    for (const int top_k : {0, 3000, 39999}) {
      for (const float top_p : {0.05f, 0.5f, 0.95f, 0.9999f}) {
        SampleCase test;
        test.row = {.seed = 77 * cases.size(),
                    .index = static_cast<int64_t>(cases.size()),
                    .temperature = 1.5f,
                    .top_p = top_p,
                    .top_k = top_k,
                    .logprobs = top_k > 0 ? 20 : -1};
        cases.push_back(test);
      }
    }
    TestTensor logits = MakeLogits(static_cast<int64_t>(cases.size()), 40000, scale);
    Check(logits, cases);
  }
}

// A top_p looks at the likeliest tokens of each chunk of 512 first, by a guess of how many; rows
// for which that is enough, and rows for which it is not: flat ones, chunks of likely tokens only,
// or of few tokens or one value.
TEST_P(SampleTest, TopPOfUnevenRows) {
  constexpr int64_t kVocab = 20100;
  constexpr float kTopPs[] = {0.9f, 0.3f, 0.98f, 0.9999f};
  std::vector<SampleCase> cases;
  for (int row = 0; row < (TestsAreBrief() ? 6 : 24); ++row) {
    SampleCase test;
    test.row = {.seed = static_cast<uint64_t>(row) * 991 + 3,
                .index = row,
                .temperature = 0.8f,
                .top_p = kTopPs[row / 6]};
    cases.push_back(test);
  }
  TestTensor logits = MakeLogits(static_cast<int64_t>(cases.size()), kVocab);
  for (int64_t row = 0; row < logits.rows(); ++row) {
    for (int64_t i = 0; i < kVocab; ++i) {
      const float value = logits.at(row, i);
      const int64_t chunk = i / 512;
      switch (row % 6) {
        case 1:
          logits.set(row, i, 0.05f * value);
          break;
        case 2:
          logits.set(row, i, chunk == 7 ? 9.0f + 0.1f * value : value);
          break;
        case 3:
          logits.set(row, i, i % 512 < 9 || chunk == 3 ? value : -kInfinity);
          break;
        case 4:
          logits.set(row, i, chunk % 2 == 0 ? 1.0f : value);
          break;
        case 5:
          logits.set(row, i, i % 32 == chunk % 32 ? value : value - 30.0f);
          break;
        default:
          break;
      }
    }
  }
  const Outcome outcome = Run(logits, cases);
  Check(logits, cases, outcome);
  const bool reads_twice = !place().on_host();
  EXPECT_EQ(outcome.results[0].rereads, 0);
  EXPECT_EQ(outcome.results[1].rereads, reads_twice ? 1 : 0);
}

// Fewer likely tokens, far in front of all others, than a top_k asks for; and some near the lowest
// float.
TEST_P(SampleTest, TopKReachesBehindAGap) {
  constexpr int64_t kVocab = 40000;
  std::vector<SampleCase> cases;
  for (const int top_k : {20, 50, 70, 120}) {
    for (const float top_p : {0.9f, 1.0f}) {
      SampleCase test;
      test.row = {.seed = 31 * cases.size() + 1,
                  .index = static_cast<int64_t>(cases.size()),
                  .temperature = 0.8f,
                  .top_p = top_p,
                  .top_k = top_k,
                  .logprobs = 20};
      cases.push_back(test);
    }
  }
  TestTensor logits = MakeLogits(static_cast<int64_t>(cases.size()), kVocab);
  for (int64_t row = 0; row < static_cast<int64_t>(cases.size()); ++row) {
    for (int64_t i = 0; i < 30; ++i) logits.set(row, i * 1301 + row, 40.0f + static_cast<float>(i));
    for (int64_t i = 39000; i < kVocab; ++i) logits.set(row, i, -3.4e38f);
  }
  Check(logits, cases);
}

TEST_P(SampleTest, ForcedTokensTellTheirLogprob) {
  const TestTensor logits = MakeLogits(2, 700);
  std::vector<SampleCase> cases(2);
  cases[0].row.forced_token = 123;
  cases[0].row.logprobs = 4;
  cases[1].row.forced_token = 699;
  cases[1].row.logprobs = 0;
  const Outcome outcome = Run(logits, cases);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(outcome.tokens[i], cases[i].row.forced_token);
    ExpectLogprobs(Row(logits, static_cast<int64_t>(i)), cases[i].row, outcome.results[i]);
  }
}

TEST_P(SampleTest, BrokenRowsSayWhyAndLeaveTheOthersAlone) {
  for (const int64_t vocab : {40, 40000}) {
    TestTensor logits = MakeLogits(6, vocab);
    logits.set(1, vocab / 2, std::numeric_limits<float>::quiet_NaN());
    logits.set(2, vocab - 1, kInfinity);
    for (int64_t i = 0; i < vocab; ++i) logits.set(3, i, -kInfinity);
    logits.set(4, 3, -kInfinity);
    std::vector<SampleCase> cases(6);
    for (size_t i = 0; i < 6; ++i) {
      cases[i].row = {.seed = i, .temperature = i % 2 ? 1.0f : 0.0f, .top_p = 0.9f, .logprobs = 2};
    }
    cases[5].mask = std::vector<uint32_t>(static_cast<size_t>(CeilDiv(vocab, 32)), 0u);
    const Outcome outcome = Run(logits, cases);
    const int32_t statuses[] = {SampleResult::kOk,         SampleResult::kNotANumber,
                                SampleResult::kNotANumber, SampleResult::kImpossible,
                                SampleResult::kOk,         SampleResult::kImpossible};
    for (size_t i = 0; i < 6; ++i) {
      EXPECT_EQ(outcome.results[i].status, statuses[i]) << "row " << i;
      if (statuses[i] != SampleResult::kOk) {
        EXPECT_EQ(outcome.tokens[i], 0) << "row " << i;
        continue;
      }
      EXPECT_EQ(outcome.tokens[i], Ranked(Row(logits, static_cast<int64_t>(i)))[0]);
      ExpectLogprobs(Row(logits, static_cast<int64_t>(i)), cases[i].row, outcome.results[i]);
    }
  }
}

// Rows without log probabilities have a way of their own where they have no cuts, and where they
// have a top_p alone.
TEST_P(SampleTest, LogprobsDoNotChangeTheToken) {
  for (const int64_t vocab : {700, 40003, 270001}) {
    for (const bool masked : {false, true}) {
      if (masked && vocab > 40003) continue;
      std::vector<SampleCase> cases(vocab > 40003 ? 4 : 24);
      for (size_t i = 0; i < cases.size(); ++i) {  // pairs
        cases[i].row = {.seed = 991 * (i / 2) + 3,
                        .index = static_cast<int64_t>(i / 2),
                        .temperature = 0.2f * static_cast<float>(i / 2 % 8),
                        .top_p = i / 2 % 3 == 1 ? 0.8f : 1.0f,
                        .logprobs = i % 2 == 0 ? -1 : 0};
        if (i % 8 >= 6) cases[i].edits.push_back({.token = 5, .bias = 3.0f});
        if (!masked) continue;
        cases[i].mask = std::vector<uint32_t>(static_cast<size_t>(CeilDiv(vocab, 32)), 0x5a5a5a5au);
      }
      const auto rows = static_cast<int64_t>(cases.size());
      TestTensor logits = MakeLogits(rows, vocab);
      for (int64_t row = 0; row < rows; row += 2) {
        for (int64_t i = 0; i < vocab; ++i) logits.set(row + 1, i, logits.at(row, i));
      }
      Check(logits, cases);
      const Outcome outcome = Run(logits, cases);
      for (size_t i = 0; i < cases.size(); i += 2) {
        EXPECT_EQ(outcome.tokens[i], outcome.tokens[i + 1]) << "rows " << i << " of " << vocab;
      }
    }
  }
}

TEST_P(SampleTest, BrokenRowsWithoutLogprobs) {
  for (const auto& [temperature, top_p] : {std::pair{0.0f, 1.0f}, {1.0f, 1.0f}, {1.0f, 0.9f}}) {
    const int64_t vocab = TestsAreBrief() ? 5000 : 40000;
    TestTensor logits = MakeLogits(5, vocab);
    logits.set(1, vocab / 2, std::numeric_limits<float>::quiet_NaN());
    logits.set(2, vocab - 1, kInfinity);
    for (int64_t i = 0; i < vocab; ++i) logits.set(3, i, -kInfinity);
    for (int64_t i = 0; i < vocab; ++i) logits.set(4, i, i == vocab - 10 ? -2.0f : -kInfinity);
    std::vector<SampleCase> cases(5);
    for (size_t i = 0; i < 5; ++i) {
      cases[i].row = {.seed = i, .temperature = temperature, .top_p = top_p};
    }
    const Outcome outcome = Run(logits, cases);
    const int32_t statuses[] = {SampleResult::kOk, SampleResult::kNotANumber,
                                SampleResult::kNotANumber, SampleResult::kImpossible,
                                SampleResult::kOk};
    for (size_t i = 0; i < 5; ++i) EXPECT_EQ(outcome.results[i].status, statuses[i]) << "row " << i;
    for (size_t i = 1; i < 4; ++i) EXPECT_EQ(outcome.tokens[i], 0) << "row " << i;
    EXPECT_EQ(outcome.tokens[4], vocab - 10);
  }
}

// A preempted or batched sequence draws the same tokens.
TEST_P(SampleTest, RowsDoNotDependOnTheBatch) {
  const std::vector<SampleCase> cases = Variants();
  const auto rows = static_cast<int64_t>(cases.size());
  const TestTensor logits = MakeLogits(rows, 32003);
  const Outcome whole = Run(logits, cases);
  for (int64_t row = 0; row < rows; ++row) {
    const auto at = static_cast<size_t>(row);
    TestTensor one(place(), DType::kF32, 1, 32003);
    for (int64_t i = 0; i < 32003; ++i) one.set(0, i, logits.at(row, i));
    const Outcome alone = Run(one, {cases[at]});
    EXPECT_EQ(alone.tokens[0], whole.tokens[at]) << "row " << row;
    EXPECT_EQ(alone.results[0].logprob, whole.results[at].logprob) << "row " << row;
  }
}

LACUNA_INSTANTIATE_OP_TEST(SampleTest);
INSTANTIATE_TEST_SUITE_P(Emulated, SampleTest,
                         testing::ValuesIn(EmulatedCases(false, {DType::kF32})), CaseName);

}  // namespace
}  // namespace lacuna::kernels
