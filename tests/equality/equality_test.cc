// Same answer by different roads: temperature 0, deterministic mode, the real engine, executor and
// backend. Tokens and the bits of their log probabilities must be equal, and each test proves that
// the road was taken.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "engine/assemble.h"

namespace lacuna::engine {
namespace {

struct Answer final {
  std::vector<TokenId> tokens;
  std::vector<float> logprobs;
  int64_t cached_tokens = 0;
  int32_t preemptions = 0;
  bool operator==(const Answer& other) const {
    return tokens == other.tokens && logprobs == other.logprobs;
  }
};

struct Ask final {
  std::vector<TokenId> prompt;
  int32_t max_tokens = 24;
};

std::vector<Ask> RandomAsks(int count, int64_t vocab, uint32_t seed, int tokens_min = 5,
                            int tokens_max = 150) {
  std::mt19937 random(seed);
  std::vector<Ask> asks(static_cast<size_t>(count));
  for (Ask& ask : asks) {
    const size_t size =
        static_cast<size_t>(tokens_min) + random() % static_cast<uint32_t>(tokens_max);
    for (size_t i = 0; i < size; ++i) {
      ask.prompt.push_back(static_cast<TokenId>(3 + random() % static_cast<uint32_t>(vocab - 3)));
    }
  }
  return asks;
}

class EqualityTest : public testing::TestWithParam<const char*> {
 protected:
  // An engine that runs on the test's thread.
  void Make(const AssemblyOptions& options) {
    const auto folder = Folder::Open(std::string("tests/data/golden/") + GetParam());
    ASSERT_TRUE(folder.ok()) << folder.status().ToString();
    assembly_ = {};  // the last engine goes before its parts are replaced
    auto assembly = Assemble(**folder, options, clock_);
    ASSERT_TRUE(assembly.ok()) << assembly.status().ToString();
    assembly_ = std::move(*assembly);
  }

  static AssemblyOptions Options() {
    AssemblyOptions options;
    options.engine.deterministic = true;
    options.kv.page_tokens = 16;
    options.kv.prefix_cache = false;
    options.backend.threads = 2;
    return options;
  }

  // All at once: they share steps.
  std::vector<Answer> AskAll(const std::vector<Ask>& asks) {
    Engine& engine = *assembly_.engine;
    std::vector<RequestStream> streams;
    for (const Ask& ask : asks) {
      Request request;
      request.prompt = ask.prompt;
      request.sampling.temperature = 0.0;
      request.sampling.max_tokens = ask.max_tokens;
      request.sampling.ignore_eos = true;
      request.sampling.logprobs = 0;
      auto stream = engine.Submit(std::move(request));
      EXPECT_TRUE(stream.ok()) << stream.status().ToString();
      if (!stream.ok()) return {};
      streams.push_back(std::move(*stream));
    }
    std::vector<Answer> answers(asks.size());
    while (engine.StepOnce()) {
      for (size_t i = 0; i < streams.size(); ++i) Read(streams[i], answers[i]);
    }
    for (size_t i = 0; i < streams.size(); ++i) Read(streams[i], answers[i]);
    EXPECT_TRUE(engine.CheckInvariants().ok());
    for (const PageCounts& group : engine.page_counts()) {
      EXPECT_EQ(group.free + group.used + group.cached, group.total);
      EXPECT_EQ(group.used, 0);
    }
    return answers;
  }

  std::vector<Answer> AskEachAlone(const std::vector<Ask>& asks) {
    std::vector<Answer> answers;
    for (const Ask& ask : asks) {
      for (Answer& answer : AskAll({ask})) answers.push_back(std::move(answer));
    }
    return answers;
  }

  const EngineStats& stats() const { return assembly_.engine->stats(); }
  int64_t vocab() const { return assembly_.model->info().vocab_size; }

  SteadyClock clock_;
  Assembly assembly_;

 private:
  static void Read(RequestStream& stream, Answer& answer) {
    while (const auto event = stream.Poll()) {
      if (const auto* token = std::get_if<TokenEvent>(&*event)) {
        answer.tokens.push_back(token->token);
        answer.logprobs.push_back(token->logprob.at(0).logprob);
      } else if (const auto* finished = std::get_if<FinishedEvent>(&*event)) {
        answer.cached_tokens = finished->usage.cached_tokens;
        answer.preemptions = finished->usage.preemptions;
      } else if (const auto* failed = std::get_if<FailedEvent>(&*event)) {
        ADD_FAILURE() << failed->status.ToString();
      }
    }
  }
};

TEST_P(EqualityTest, BatchedIsAlone) {
  Make(Options());
  const std::vector<Ask> asks = RandomAsks(16, vocab(), 1);
  const std::vector<Answer> alone = AskEachAlone(asks);
  ASSERT_EQ(stats().batch_sequences_max.load(), 1);
  EXPECT_EQ(AskAll(asks), alone);
  EXPECT_GE(stats().batch_sequences_max.load(), 8);
  for (const Answer& answer : alone) EXPECT_EQ(answer.tokens.size(), 24u);
}

TEST_P(EqualityTest, ChunkedIsWhole) {
  Make(Options());
  const std::vector<Ask> asks = RandomAsks(4, vocab(), 2, 100);
  const std::vector<Answer> whole = AskEachAlone(asks);
  for (const int64_t step_tokens : {1, 15, 16, 17, 37}) {
    AssemblyOptions options = Options();
    options.engine.step_tokens_max = step_tokens;
    options.engine.running_max = 1;
    Make(options);
    EXPECT_EQ(AskEachAlone(asks), whole) << step_tokens;
    EXPECT_GT(stats().steps.load(),
              asks.size() * (24 + 100 / static_cast<size_t>(step_tokens)) - 8);
  }
}

TEST_P(EqualityTest, PrefixHitIsMiss) {
  Make(Options());
  std::vector<Ask> asks = RandomAsks(1, vocab(), 3, 200, 1);
  for (int i = 0; i < 11; ++i) {  // a chain: each prompt continues the one before
    asks.push_back(asks.back());
    for (int k = 0; k < 9; ++k) asks.back().prompt.push_back(3 + (i * 31 + k * 7) % 300);
  }
  const std::vector<Answer> misses = AskEachAlone(asks);
  AssemblyOptions options = Options();
  options.kv.prefix_cache = true;
  Make(options);
  for (int repeat = 0; repeat < 3; ++repeat) {
    const std::vector<Answer> hits = AskEachAlone(asks);
    EXPECT_EQ(hits, misses) << repeat;
    const bool full = assembly_.model->groups().size() == 1 && assembly_.model->groups()[0].full();
    for (size_t i = repeat == 0 ? 1 : 0; i < hits.size(); ++i) {
      // A model with window groups reuses no prefix: its middle pages are gone.
      EXPECT_EQ(hits[i].cached_tokens > 0, full) << i;
      EXPECT_EQ(hits[i].cached_tokens % 16, 0);
    }
  }
}

TEST_P(EqualityTest, PreemptedIsNot) {
  Make(Options());
  std::vector<Ask> asks = RandomAsks(6, vocab(), 4, 60, 40);
  for (Ask& ask : asks) ask.max_tokens = 90;
  const std::vector<Answer> quiet = AskEachAlone(asks);
  for (const bool prefix_cache : {false, true}) {
    AssemblyOptions options = Options();
    options.kv.prefix_cache = prefix_cache;
    const auto& groups = assembly_.model->groups();
    const bool grows = std::ranges::any_of(groups, &kvcache::KvGroup::full);
    int64_t bytes = 0;  // room for about two and a half of the six
    for (const kvcache::KvGroup& group : groups) {
      bytes += 26 * kvcache::KvStorage::PageBytes(group, 16, DType::kBF16);
    }
    options.kv.pool_bytes = bytes;
    options.engine.step_tokens_max = 64;
    options.engine.running_max = 8;
    Make(options);
    EXPECT_EQ(AskAll(asks), quiet);
    // A sequence of windows alone never grows past what it was admitted with.
    EXPECT_EQ(stats().preemptions.load() > 0, grows);
  }
}

TEST_P(EqualityTest, ThreadsDoNotMatter) {
  Make(Options());
  const std::vector<Ask> asks = RandomAsks(5, vocab(), 5);
  const std::vector<Answer> two = AskAll(asks);
  AssemblyOptions options = Options();
  options.backend.threads = 1;
  Make(options);
  EXPECT_EQ(AskAll(asks), two);
  options.backend.threads = 3;
  Make(options);
  EXPECT_EQ(AskAll(asks), two);
  EXPECT_EQ(assembly_.backend->threads(), 3);
}

INSTANTIATE_TEST_SUITE_P(Models, EqualityTest,
                         testing::Values("llama", "qwen3", "mistral", "gemma2", "gemma3_text"));

}  // namespace
}  // namespace lacuna::engine
