// The choice of tokens as the engine asks for it: SamplingState makes the rows and edits, the CPU's
// Sample chooses.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>

#include "engine/sample/sampling_state.h"
#include "kernels/cpu/sample.h"

namespace lacuna::engine {
namespace {

using kernels::SampleResult;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// One sequence that samples its rows alone. An error stands for a bad status.
class Sampler final {
 public:
  Sampler(const SamplingParams& params, std::span<const TokenId> prompt,
          std::span<const TokenId> eos)
      : state_(params, prompt, eos, int64_t{1} << 20) {}

  Result<SampleResult> Sample(std::span<float> logits, int64_t index) {
    std::vector<kernels::LogitEdit> edits;
    const kernels::SampleRow row = state_.MakeRow(index, edits);
    const SampleResult result = kernels::cpu::SampleOneRow(logits, row, edits, nullptr, scratch_);
    if (result.status != SampleResult::kOk) return InternalError(std::to_string(result.status));
    return result;
  }
  void Accept(TokenId token) { state_.Accept(token); }

 private:
  SamplingState state_;
  kernels::cpu::SampleScratch scratch_;
};

SampleResult ForcedRow(std::vector<float> logits, TokenId token, int32_t top) {
  kernels::SampleRow row;
  row.forced_token = token;
  row.logprobs = top;
  kernels::cpu::SampleScratch scratch;
  return kernels::cpu::SampleOneRow(logits, row, {}, nullptr, scratch);
}

std::vector<float> RandomLogits(size_t vocab, uint32_t seed, float spread = 3.0f) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<float> logits(vocab);
  for (float& logit : logits) logit = normal(engine);
  return logits;
}

// The sampling distribution in double precision with a full sort: temperature, min_p, top_k, top_p.
std::vector<double> ReferenceProbabilities(const std::vector<float>& logits,
                                           const SamplingParams& params) {
  const size_t vocab = logits.size();
  std::vector<double> p(vocab);
  const double greatest = static_cast<double>(*std::max_element(logits.begin(), logits.end()));
  for (size_t i = 0; i < vocab; ++i) {
    p[i] = std::exp((static_cast<double>(logits[i]) - greatest) / params.temperature);
    if (p[i] < params.min_p) p[i] = 0.0;  // relative to the most likely one, whose value is 1
  }
  std::vector<size_t> order(vocab);
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return p[a] > p[b]; });
  if (params.top_k > 0) {
    for (size_t r = static_cast<size_t>(params.top_k); r < vocab; ++r) p[order[r]] = 0.0;
  }
  const double kept = std::accumulate(p.begin(), p.end(), 0.0);
  double mass = 0.0;
  for (const size_t token : order) {
    if (mass >= params.top_p * kept) p[token] = 0.0;
    mass += p[token];
  }
  const double total = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& value : p) value /= total;
  return p;
}

TokenId SampleOnce(const SamplingParams& params, std::vector<float> logits, int64_t index = 0) {
  Sampler sampler(params, {}, {});
  const Result<SampleResult> choice = sampler.Sample(logits, index);
  EXPECT_TRUE(choice.ok()) << choice.status().ToString();
  return choice.ok() ? choice->token : -1;
}

// Pearson's statistic against the reference; cells expected under 5 are pooled.
void ExpectDistribution(const SamplingParams& params, const std::vector<float>& logits) {
  const std::vector<double> expected = ReferenceProbabilities(logits, params);
  constexpr int kDraws = 40'000;
  std::vector<int> counts(logits.size());
  for (int i = 0; i < kDraws; ++i) ++counts[static_cast<size_t>(SampleOnce(params, logits, i))];
  double chi2 = 0.0, pooled_expected = 0.0, pooled_count = 0.0;
  int cells = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (expected[i] == 0.0) {
      EXPECT_EQ(counts[i], 0) << "token " << i << " was cut off";
      continue;
    }
    const double want = expected[i] * kDraws;
    if (want < 5.0) {
      pooled_expected += want;
      pooled_count += counts[i];
      continue;
    }
    chi2 += (counts[i] - want) * (counts[i] - want) / want;
    ++cells;
  }
  if (pooled_expected > 5.0) {
    chi2 += (pooled_count - pooled_expected) * (pooled_count - pooled_expected) / pooled_expected;
    ++cells;
  }
  const double freedom = std::max(cells - 1, 1);
  EXPECT_LT(chi2, freedom + 4.5 * std::sqrt(2.0 * freedom)) << "degrees of freedom " << freedom;
}

TEST(Sampler, DrawsFromTheReferenceDistribution) {
  const std::vector<float> logits = RandomLogits(97, 1);
  std::vector<SamplingParams> cases(7);
  cases[1].temperature = 0.6;
  cases[2].temperature = 1.7;
  cases[3].top_k = 7;
  cases[4].top_p = 0.8;
  cases[5].min_p = 0.03;
  cases[6].temperature = 1.3;
  cases[6].top_k = 20;
  cases[6].top_p = 0.9;
  cases[6].min_p = 0.01;
  for (size_t i = 0; i < cases.size(); ++i) {
    SCOPED_TRACE(i);
    cases[i].seed = 1000 + i;
    ExpectDistribution(cases[i], logits);
  }
}

TEST(Sampler, SeedsAreIndependent) {
  const std::vector<float> logits(16, 0.0f);
  std::vector<int> counts(16);
  for (uint64_t seed = 0; seed < 16'000; ++seed) {
    SamplingParams params;
    params.seed = seed;
    ++counts[static_cast<size_t>(SampleOnce(params, logits))];
  }
  double chi2 = 0.0;
  for (const int count : counts) chi2 += (count - 1000.0) * (count - 1000.0) / 1000.0;
  EXPECT_LT(chi2, 15.0 + 4.5 * std::sqrt(30.0));
}

TEST(Sampler, SupportIsExactOnLargeVocabularies) {
  for (uint32_t seed = 0; seed < 20; ++seed) {
    const std::vector<float> logits = RandomLogits(5000, seed, 1.0f + static_cast<float>(seed % 5));
    SamplingParams params;
    params.top_k = seed % 3 == 0 ? 0 : static_cast<int32_t>(10 + 100 * seed);
    params.top_p = seed % 2 == 0 ? 0.9 : 0.3;
    params.seed = seed;
    const std::vector<double> expected = ReferenceProbabilities(logits, params);
    for (int64_t i = 0; i < 200; ++i) {
      EXPECT_GT(expected[static_cast<size_t>(SampleOnce(params, logits, i))], 0.0);
    }
  }
}

TEST(Sampler, SameSeedAndIndexGiveTheSameToken) {
  const std::vector<float> logits = RandomLogits(300, 3);
  SamplingParams params;
  params.seed = 42;
  Sampler warm(params, {}, {});
  for (int64_t i = 0; i < 50; ++i) {
    std::vector<float> copy = logits;
    EXPECT_EQ(warm.Sample(copy, i)->token, SampleOnce(params, logits, i));
  }
}

TEST(Sampler, GreedyTakesTheLowestIdOfATie) {
  SamplingParams params;
  params.temperature = 0.0;
  EXPECT_EQ(SampleOnce(params, {0.0f, 2.0f, 2.0f, 1.0f}), 1);
  params.temperature = 1.0;
  params.top_k = 1;
  EXPECT_EQ(SampleOnce(params, {0.0f, 2.0f, 2.0f, 1.0f}), 1);
  params.top_k = 0;
  params.top_p = 1e-9;
  EXPECT_EQ(SampleOnce(params, {0.0f, 2.0f, 2.0f, 1.0f}), 1);
  params.top_p = 1.0;
  params.temperature = 1e-12;
  EXPECT_EQ(SampleOnce(params, {0.0f, 2.0f, 1.9f, 1.0f}), 1);
}

TEST(Sampler, PenaltiesAreThoseOfTheFormulas) {
  SamplingParams params;
  params.temperature = 0.0;
  params.repetition_penalty = 2.0;
  params.presence_penalty = 0.25;
  params.frequency_penalty = 0.5;
  params.logit_bias = {{4, 1.0f}, {99, 5.0f}};
  const std::vector<TokenId> prompt = {0, 1, 1};
  Sampler sampler(params, prompt, {});
  sampler.Accept(1);
  sampler.Accept(2);
  sampler.Accept(2);
  std::vector<float> logits = {-1.0f, 4.0f, 4.0f, 0.5f, 0.0f};
  const Result<SampleResult> choice = sampler.Sample(logits, 3);
  ASSERT_TRUE(choice.ok());
  EXPECT_FLOAT_EQ(logits[0], -2.0f);                       // negative: multiplied
  EXPECT_FLOAT_EQ(logits[1], 4.0f / 2.0f - 0.25f - 0.5f);  // in both: repetition counts once
  EXPECT_FLOAT_EQ(logits[2], 4.0f / 2.0f - 0.25f - 1.0f);  // twice in the output
  EXPECT_FLOAT_EQ(logits[3], 0.5f);
  EXPECT_FLOAT_EQ(logits[4], 1.0f);
  EXPECT_EQ(choice->token, 1);
}

TEST(Sampler, MinTokensBarsEosAndStopTokens) {
  SamplingParams params;
  params.temperature = 0.0;
  params.min_tokens = 2;
  params.stop_token_ids = {1};
  const std::vector<TokenId> eos = {0};
  const std::vector<float> logits = {3.0f, 2.0f, 1.0f};
  for (int64_t index = 0; index < 3; ++index) {
    Sampler sampler(params, {}, eos);
    std::vector<float> copy = logits;
    EXPECT_EQ(sampler.Sample(copy, index)->token, index < 2 ? 2 : 0);
  }
  params.ignore_eos = true;
  Sampler sampler(params, {}, eos);
  std::vector<float> copy = logits;
  EXPECT_EQ(sampler.Sample(copy, 0)->token, 0);
}

TEST(Sampler, LogprobsAreOfTheRawDistribution) {
  SamplingParams params;
  params.temperature = 0.0;
  params.logprobs = 2;
  params.logit_bias = {{3, 100.0f}};
  Sampler sampler(params, {}, {});
  const std::vector<float> raw = {1.0f, 2.0f, 2.0f, -1.0f};
  std::vector<float> logits = raw;
  const Result<SampleResult> choice = sampler.Sample(logits, 0);
  ASSERT_TRUE(choice.ok());
  EXPECT_EQ(choice->token, 3);
  double sum = 0.0;
  for (const float logit : raw) sum += std::exp(static_cast<double>(logit));
  EXPECT_NEAR(choice->logprob, -1.0 - std::log(sum), 1e-6);
  ASSERT_EQ(choice->top_count, 2);
  EXPECT_EQ(choice->top_tokens[0], 1);  // a tie: the lower id first
  EXPECT_EQ(choice->top_tokens[1], 2);
  EXPECT_NEAR(choice->top_logprobs[0], 2.0 - std::log(sum), 1e-6);
}

TEST(Sampler, ForcedRowsTellTheirLogprob) {
  const std::vector<float> barred = {0.0f, -kInfinity};
  EXPECT_EQ(ForcedRow(barred, 1, 5).token, 1);
  EXPECT_EQ(ForcedRow(barred, 1, 5).logprob, -9999.0f);
  EXPECT_EQ(ForcedRow(barred, 1, 5).top_count, 2);
  EXPECT_EQ(ForcedRow(barred, 7, 0).logprob, -9999.0f);
  EXPECT_EQ(ForcedRow({0.0f, std::nanf(""), 1.0f}, 0, 3).status, SampleResult::kNotANumber);
  EXPECT_EQ(ForcedRow({-kInfinity, -kInfinity}, 0, 3).status, SampleResult::kImpossible);
  const SampleResult all = ForcedRow(RandomLogits(100, 8), 3, 1000);
  EXPECT_EQ(all.top_count, SampleResult::kLogprobsMax);
  EXPECT_TRUE(std::is_sorted(all.top_logprobs, all.top_logprobs + all.top_count, std::greater<>()));
}

TEST(Sampler, AMaskBarsWhatItDoesNotHold) {
  std::vector<float> logits = RandomLogits(70, 9);
  std::vector<uint32_t> mask(3, 0);
  mask[2] = 1u << 1;  // token 65 alone
  kernels::cpu::SampleScratch scratch;
  for (const float temperature : {0.0f, 1.0f}) {
    kernels::SampleRow row;
    row.temperature = temperature;
    std::vector<float> copy = logits;
    EXPECT_EQ(kernels::cpu::SampleOneRow(copy, row, {}, mask.data(), scratch).token, 65);
  }
  kernels::SampleRow row;
  mask[2] = 0;
  EXPECT_EQ(kernels::cpu::SampleOneRow(logits, row, {}, mask.data(), scratch).status,
            SampleResult::kImpossible);
}

TEST(Sampler, OnlyPenaltiesDependOnTheOutput) {
  SamplingParams params;
  params.logit_bias = {{1, 2.0f}, {1, 3.0f}, {-1, 1.0f}, {40, 1.0f}};
  params.min_tokens = 2;
  params.stop_token_ids = {1, 2};
  const std::vector<TokenId> prompt = {5, 6};
  SamplingState plain(params, prompt, {}, 40);
  EXPECT_FALSE(plain.depends_on_output());
  plain.Accept(7);
  std::vector<kernels::LogitEdit> edits;
  const kernels::SampleRow early = plain.MakeRow(1, edits);
  ASSERT_EQ(early.edits_end - early.edits_begin, 2);  // one per token, none outside
  EXPECT_EQ(edits[0].token, 1);
  EXPECT_EQ(edits[0].bias, 5.0f);
  EXPECT_EQ(edits[0].flags, kernels::LogitEdit::kBarred);
  const kernels::SampleRow late = plain.MakeRow(2, edits);
  EXPECT_EQ(late.edits_begin, 2);
  ASSERT_EQ(late.edits_end, 3);
  EXPECT_EQ(edits[2].flags, 0);
  params.repetition_penalty = 1.5;
  SamplingState repeating(params, prompt, {}, 40);
  EXPECT_TRUE(repeating.depends_on_output());
  repeating.Accept(7);
  const kernels::SampleRow row = repeating.MakeRow(2, edits);
  EXPECT_EQ(row.edits_end - row.edits_begin, 4);  // 1, 5, 6, 7
}

TEST(Sampler, ABrokenDistributionFails) {
  for (const double temperature : {0.0, 1.0}) {
    SamplingParams params;
    params.temperature = temperature;
    for (const float bad : {std::nanf(""), kInfinity}) {
      Sampler sampler(params, {}, {});
      std::vector<float> logits = {0.0f, bad, 1.0f};
      EXPECT_EQ(sampler.Sample(logits, 0).status().code(), StatusCode::kInternal);
    }
    Sampler sampler(params, {}, {});
    std::vector<float> logits(3, -kInfinity);
    EXPECT_EQ(sampler.Sample(logits, 0).status().code(), StatusCode::kInternal);
    std::vector<float> one_left = {-kInfinity, -3e38f, -kInfinity};
    EXPECT_EQ(sampler.Sample(one_left, 0)->token, 1);
  }
}

}  // namespace
}  // namespace lacuna::engine
