// The Executor on real models: batches, chunks, pages in any order, pieces of logits, errors.
#include "engine/execute/executor.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <random>

#include "engine/model/load_model.h"
#include "kernels/make_backend.h"

namespace lacuna::engine {
namespace {

constexpr int64_t kPageTokens = 16;
constexpr int64_t kPages = 64;

std::vector<TokenId> RandomTokens(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<TokenId> tokens(count);
  for (TokenId& token : tokens) token = static_cast<TokenId>(random() % 320);
  return tokens;
}

// One sequence that owns `pages` (physical), page i at logical i, the same in every group.
struct Sequence final {
  std::vector<TokenId> tokens;
  std::vector<int32_t> pages, logical;
  std::vector<kvcache::PageSpan> spans;
};

class ExecutorTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override { Make({.step_tokens_max = 256, .running_max = 8, .logit_rows_max = 4}); }

  void Make(const ExecutorLimits& limits) {
    auto backend = kernels::MakeBackend(kernels::DeviceKind::kCpu,
                                        {.precision = DType::kBF16, .deterministic = true});
    ASSERT_TRUE(backend.ok());
    executor_.reset();
    backend_ = std::move(*backend);
    const auto folder = Folder::Open(std::string("tests/data/golden/") + GetParam());
    ASSERT_TRUE(folder.ok()) << folder.status().ToString();
    auto model = LoadModel(**folder, *backend_);
    ASSERT_TRUE(model.ok()) << model.status().ToString();
    model_ = std::move(*model);
    auto storage = kvcache::KvStorage::Create(backend_->device(), model_->groups(),
                                              std::vector<int64_t>(model_->groups().size(), kPages),
                                              kPageTokens, backend_->act_dtype());
    ASSERT_TRUE(storage.ok());
    storage_ = std::move(*storage);
    auto executor = MakeExecutor(*model_, *backend_, limits);
    ASSERT_TRUE(executor.ok()) << executor.status().ToString();
    executor_ = std::move(*executor);
    ASSERT_TRUE(executor_->Attach(*storage_).ok());
  }

  // Pages from `first` on, by `stride`: scattered over the pool.
  Sequence MakeSequence(size_t tokens, uint32_t seed, int32_t first, int32_t stride) {
    Sequence sequence{
        .tokens = RandomTokens(tokens, seed), .pages = {}, .logical = {}, .spans = {}};
    for (int32_t i = 0; i * kPageTokens < static_cast<int64_t>(tokens); ++i) {
      sequence.pages.push_back((first + i * stride) % static_cast<int32_t>(kPages));
      sequence.logical.push_back(i);
    }
    return sequence;
  }

  // Tokens [begin, end) of the sequence; window groups see only the pages of their window.
  StepSequence Step(Sequence& sequence, size_t begin, size_t end, int32_t logits_from,
                    bool decode = false) {
    sequence.spans.clear();
    for (const kvcache::KvGroup& group : model_->groups()) {
      const int64_t key =
          group.full()
              ? 0
              : std::max<int64_t>(static_cast<int64_t>(begin) - group.window_tokens + 1, 0);
      const size_t skip = static_cast<size_t>(key / kPageTokens);
      const size_t count = (end + kPageTokens - 1) / kPageTokens - skip;
      sequence.spans.push_back({std::span<const int32_t>(sequence.pages).subspan(skip, count),
                                std::span<const int32_t>(sequence.logical).subspan(skip, count)});
    }
    return {.tokens = std::span<const TokenId>(sequence.tokens).subspan(begin, end - begin),
            .first_position = static_cast<int32_t>(begin),
            .decode = decode,
            .pages = sequence.spans,
            .logits_from = logits_from};
  }

  std::vector<float> Run(std::vector<StepSequence> sequences) {
    const Result<TensorView> logits =
        executor_->RunForLogits({.sequences = std::move(sequences), .rows = {}, .edits = {}});
    EXPECT_TRUE(logits.ok()) << logits.status().ToString();
    if (!logits.ok() || logits->empty()) return {};
    const float* data = logits->as<const float>();
    return {data, data + logits->elements()};
  }

  std::vector<float> RunAlone(Sequence& sequence, size_t end, int32_t logits_from) {
    return Run({Step(sequence, 0, end, logits_from)});
  }

  std::unique_ptr<kernels::Backend> backend_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<kvcache::KvStorage> storage_;
  std::unique_ptr<Executor> executor_;
};

void ExpectSameBits(std::span<const float> a, std::span<const float> b) {
  ASSERT_EQ(a.size(), b.size());
  EXPECT_EQ(std::memcmp(a.data(), b.data(), a.size_bytes()), 0);
}

TEST_P(ExecutorTest, ChunkedIsWhole) {
  Sequence whole = MakeSequence(83, 1, 0, 1);
  const std::vector<float> expected = RunAlone(whole, 83, 82);
  ASSERT_EQ(expected.size(), 320u);
  Sequence parts = MakeSequence(83, 1, 40, 3);
  EXPECT_TRUE(Run({Step(parts, 0, 17, -1)}).empty());
  EXPECT_TRUE(Run({Step(parts, 17, 64, -1)}).empty());
  EXPECT_TRUE(Run({Step(parts, 64, 70, -1)}).empty());
  ExpectSameBits(Run({Step(parts, 70, 83, 12)}), expected);
}

TEST_P(ExecutorTest, DecodeIsPrefill) {
  Sequence whole = MakeSequence(40, 2, 0, 1);
  const std::vector<float> expected = RunAlone(whole, 40, 30);
  Sequence parts = MakeSequence(40, 2, 20, 1);
  Run({Step(parts, 0, 30, -1)});
  for (size_t i = 30; i < 40; ++i) {
    SCOPED_TRACE(i);
    ExpectSameBits(Run({Step(parts, i, i + 1, 0, /*decode=*/true)}),
                   std::span(expected).subspan((i - 30) * 320, 320));
  }
}

TEST_P(ExecutorTest, BatchedIsAloneInTheOrderOfTheSequences) {
  Sequence a = MakeSequence(50, 3, 0, 1), b = MakeSequence(33, 4, 10, 1);
  Sequence c = MakeSequence(20, 5, 20, 1);
  const std::vector<float> of_a = RunAlone(a, 50, 48);
  const std::vector<float> of_b = RunAlone(b, 33, 32);
  const std::vector<float> of_c = RunAlone(c, 20, 19);
  Run({Step(b, 0, 32, -1), Step(c, 0, 7, -1)});
  // A chunk, a decode and a chunk: the executor runs the decode first, and answers in this order.
  const std::vector<float> got =
      Run({Step(a, 0, 50, 48), Step(b, 32, 33, 0, /*decode=*/true), Step(c, 7, 20, 12)});
  ASSERT_EQ(got.size(), 4u * 320u);
  ExpectSameBits(std::span(got).first(640), of_a);
  ExpectSameBits(std::span(got).subspan(640, 320), of_b);
  ExpectSameBits(std::span(got).subspan(960), of_c);
}

TEST_P(ExecutorTest, LogitsInPiecesAreTheSame) {
  Sequence a = MakeSequence(50, 6, 0, 1);
  const std::vector<float> in_pieces = RunAlone(a, 50, 0);
  ASSERT_EQ(in_pieces.size(), 50u * 320u);
  Make({.step_tokens_max = 64, .running_max = 1, .logit_rows_max = 64});
  ExpectSameBits(RunAlone(a, 50, 0), in_pieces);
}

TEST_P(ExecutorTest, MistakesOfTheLoopAreErrors) {
  Sequence a = MakeSequence(300, 7, 0, 1);
  const auto code = [&](const StepSequence& sequence) {
    StepBatch batch{.sequences = {sequence}, .rows = {}, .edits = {}};
    if (sequence.logits_from >= 0) batch.rows.resize(sequence.tokens.size());
    if (sequence.logits_from > 0) batch.rows.resize(batch.rows.size() - 1);
    return executor_->Launch(batch).status().code();
  };
  EXPECT_EQ(code(Step(a, 0, 300, -1)), StatusCode::kInternal);  // too many rows
  EXPECT_EQ(code(Step(a, 0, 10, 10)), StatusCode::kInternal);
  EXPECT_EQ(code(Step(a, 0, 0, -1)), StatusCode::kInternal);
  StepSequence short_of_pages = Step(a, 0, 16, -1);
  short_of_pages.tokens = std::span<const TokenId>(a.tokens).first(17);
  EXPECT_EQ(code(short_of_pages), StatusCode::kInternal);
  StepSequence no_groups = Step(a, 0, 16, -1);
  no_groups.pages = {};
  EXPECT_EQ(code(no_groups), StatusCode::kInternal);
  StepSequence too_far = Step(a, 0, 16, -1);
  too_far.first_position = 510;
  EXPECT_EQ(code(too_far), StatusCode::kInternal);
  a.tokens[3] = 320;
  EXPECT_EQ(code(Step(a, 0, 10, -1)), StatusCode::kInternal);
  StepSequence sampled = Step(a, 0, 1, 0, /*decode=*/true);
  EXPECT_EQ(executor_->Launch({.sequences = {sampled}, .rows = {}, .edits = {}}).status().code(),
            StatusCode::kInternal);  // a row that nobody says how to sample
  sampled.sampled_row = 0;
  EXPECT_EQ(code(sampled), StatusCode::kInternal);  // the CPU's host knows every token
  EXPECT_FALSE(executor_->Wait().ok());
  EXPECT_TRUE(executor_->Launch({}).ok());
  EXPECT_FALSE(executor_->Launch({}).ok());  // before the first was waited for
  EXPECT_TRUE(executor_->Wait().ok());
}

TEST_P(ExecutorTest, ImpossibleLimitsAreErrorsAtCreation) {
  for (const ExecutorLimits& limits :
       {ExecutorLimits{0, 1, 1}, ExecutorLimits{16, 0, 1}, ExecutorLimits{16, 1, 0},
        ExecutorLimits{16, 17, 1}, ExecutorLimits{int64_t{1} << 40, 1, 1}}) {
    EXPECT_EQ(MakeExecutor(*model_, *backend_, limits).status().code(),
              StatusCode::kInvalidArgument);
  }
}

TEST_P(ExecutorTest, SampledTokensAreThoseOfTheLogits) {
  Sequence a = MakeSequence(50, 8, 0, 1), b = MakeSequence(20, 9, 10, 1);
  const std::vector<float> of_a = RunAlone(a, 50, 45), of_b = RunAlone(b, 20, 19);
  StepBatch batch{.sequences = {Step(a, 0, 50, 45), Step(b, 0, 20, 19)}, .rows = {}, .edits = {}};
  batch.rows.resize(6);
  batch.rows[2].forced_token = 7;
  batch.edits = {{.token = 3, .bias = 1000.0f}};
  batch.rows[5].edits_end = 1;
  ASSERT_TRUE(executor_->Launch(batch).ok());
  const auto results = executor_->Wait();
  ASSERT_TRUE(results.ok()) << results.status().ToString();
  ASSERT_EQ(results->size(), 6u);
  for (size_t row = 0; row < 5; ++row) {
    const auto logits = std::span(of_a).subspan(row * 320, 320);
    const auto best = std::ranges::max_element(logits) - logits.begin();
    EXPECT_EQ((*results)[row].token, row == 2 ? 7 : best) << row;
    EXPECT_EQ((*results)[row].status, kernels::SampleResult::kOk);
  }
  EXPECT_EQ((*results)[5].token, 3);
  EXPECT_EQ(of_b.size(), 320u);
}

INSTANTIATE_TEST_SUITE_P(Families, ExecutorTest,
                         testing::Values("llama", "olmo2", "gemma2", "gemma3_text"));

}  // namespace
}  // namespace lacuna::engine
