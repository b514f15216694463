// Same answer by different roads: temperature 0, deterministic mode, the real engine, executor and
// backend. Tokens and the bits of their log probabilities must be equal, and each test proves that
// the road was taken. Backends: the CPU, the CPU behind a device of its own (tests/device), and a
// GPU where there is one (LACUNA_REQUIRE_CUDA=1: where there must be one).
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "engine/assemble.h"
#include "engine/model/load_model.h"
#include "tests/device/engine_backend.h"
#include "tests/device/split_backend.h"

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

using Case = std::tuple<std::string, std::string>;  // model, backend: cpu | split | cuda

class EqualityTest : public testing::TestWithParam<Case> {
 protected:
  static const std::string& backend_name() { return std::get<1>(GetParam()); }
  // A device with memory of its own: steps overlap, decode steps are graphs.
  static bool separate() { return backend_name() != "cpu"; }

  void SetUp() override {
    if (kernels::SkipsWithout(backend_name(), /*sparse=*/false)) return;
  }

  // An engine that runs on the test's thread.
  void Make(const AssemblyOptions& options, int threads = 2,
            const std::string& backend = backend_name()) {
    const std::string& model = std::get<0>(GetParam());
    const auto folder =
        Folder::Open(model == "recall-12m" ? "models/recall-12m" : "tests/data/golden/" + model);
    ASSERT_TRUE(folder.ok()) << folder.status().ToString();
    assembly_ = {};  // the last engine goes before its parts are replaced
    const kernels::BackendOptions backend_options{.deterministic = options.engine.deterministic,
                                                  .threads = threads};
    auto made = kernels::MakeEngineBackend(backend, backend_options);
    ASSERT_TRUE(made.ok()) << made.status().ToString();
    auto assembly = Assemble(
        std::move(*made), [&](kernels::Backend& target) { return LoadModel(**folder, target); },
        options, clock_);
    ASSERT_TRUE(assembly.ok()) << assembly.status().ToString();
    assembly_ = std::move(*assembly);
  }

  static AssemblyOptions Options() {
    AssemblyOptions options;
    options.engine.deterministic = true;
    options.engine.running_max = 16;
    options.kv.page_tokens = 16;
    options.kv.prefix_cache = false;
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
  ASSERT_NO_FATAL_FAILURE(Make(Options()));
  const std::vector<Ask> asks = RandomAsks(16, vocab(), 1);
  const std::vector<Answer> alone = AskEachAlone(asks);
  ASSERT_EQ(stats().batch_sequences_max.load(), 1);
  EXPECT_EQ(AskAll(asks), alone);
  EXPECT_GE(stats().batch_sequences_max.load(), 8);
  for (const Answer& answer : alone) EXPECT_EQ(answer.tokens.size(), 24u);
}

TEST_P(EqualityTest, ChunkedIsWhole) {
  ASSERT_NO_FATAL_FAILURE(Make(Options()));
  const std::vector<Ask> asks = RandomAsks(4, vocab(), 2, 100);
  const std::vector<Answer> whole = AskEachAlone(asks);
  for (const int64_t step_tokens : {1, 15, 16, 17, 37}) {
    AssemblyOptions options = Options();
    options.engine.step_tokens_max = step_tokens;
    options.engine.running_max = 1;
    ASSERT_NO_FATAL_FAILURE(Make(options));
    EXPECT_EQ(AskEachAlone(asks), whole) << step_tokens;
    EXPECT_GT(stats().steps.load(),
              asks.size() * (24 + 100 / static_cast<size_t>(step_tokens)) - 8);
  }
}

TEST_P(EqualityTest, PrefixHitIsMiss) {
  ASSERT_NO_FATAL_FAILURE(Make(Options()));
  std::vector<Ask> asks = RandomAsks(1, vocab(), 3, 200, 1);
  for (int i = 0; i < 11; ++i) {  // a chain: each prompt continues the one before
    asks.push_back(asks.back());
    for (int k = 0; k < 9; ++k) asks.back().prompt.push_back(3 + (i * 31 + k * 7) % 300);
  }
  const std::vector<Answer> misses = AskEachAlone(asks);
  AssemblyOptions options = Options();
  options.kv.prefix_cache = true;
  ASSERT_NO_FATAL_FAILURE(Make(options));
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
  ASSERT_NO_FATAL_FAILURE(Make(Options()));
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
    ASSERT_NO_FATAL_FAILURE(Make(options));
    EXPECT_EQ(AskAll(asks), quiet);
    // A sequence of windows alone never grows past what it was admitted with.
    EXPECT_EQ(stats().preemptions.load() > 0, grows);
  }
}

TEST_P(EqualityTest, ThreadsDoNotMatter) {
  if (backend_name() == "cuda") GTEST_SKIP() << "the GPU's threads are its own affair";
  ASSERT_NO_FATAL_FAILURE(Make(Options()));
  const std::vector<Ask> asks = RandomAsks(5, vocab(), 5);
  const std::vector<Answer> two = AskAll(asks);
  for (const int threads : {1, 3}) {
    ASSERT_NO_FATAL_FAILURE(Make(Options(), threads));
    EXPECT_EQ(AskAll(asks), two);
    EXPECT_EQ(assembly_.backend->threads(), threads);
  }
}

TEST_P(EqualityTest, GraphIsEager) {
  if (!separate()) GTEST_SKIP() << "the CPU records no graphs";
  ASSERT_NO_FATAL_FAILURE(Make(Options()));
  const std::vector<Ask> asks = RandomAsks(11, vocab(), 6);
  const std::vector<Answer> graph = AskAll(asks);
  const uint64_t graph_steps = stats().graph_steps;
  EXPECT_GE(graph_steps, 20u);
  EXPECT_EQ(graph_steps + stats().eager_steps, stats().steps);
  AssemblyOptions options = Options();
  options.engine.cuda_graphs = false;
  ASSERT_NO_FATAL_FAILURE(Make(options));
  EXPECT_EQ(AskAll(asks), graph);
  EXPECT_EQ(stats().graph_steps, 0u);
  EXPECT_GE(stats().eager_steps, graph_steps);
}

// Whatever the size of the batch, and so of the graph and its padding.
TEST_P(EqualityTest, EveryBatchSizeGivesTheSame) {
  AssemblyOptions options = Options();
  options.engine.running_max = 9;  // graphs of 1, 2, 4, 8 and 9 rows
  ASSERT_NO_FATAL_FAILURE(Make(options));
  const std::vector<Ask> asks = RandomAsks(9, vocab(), 7, 5, 40);
  const std::vector<Answer> alone = AskEachAlone(asks);
  for (size_t count = 2; count <= asks.size(); ++count) {
    const std::vector<Ask> some(asks.begin(), asks.begin() + static_cast<ptrdiff_t>(count));
    const std::vector<Answer> expected(alone.begin(),
                                       alone.begin() + static_cast<ptrdiff_t>(count));
    EXPECT_EQ(AskAll(some), expected) << count;
  }
}

// The same kernels behind a device that runs late and has memory of its own.
TEST_P(EqualityTest, ASeparateDeviceGivesTheTokensOfTheCpu) {
  if (backend_name() != "split") GTEST_SKIP() << "another device has other kernels";
  ASSERT_NO_FATAL_FAILURE(Make(Options()));
  const std::vector<Ask> asks = RandomAsks(8, vocab(), 8);
  const std::vector<Answer> split = AskAll(asks);
  const auto& device = static_cast<const kernels::SplitBackend&>(*assembly_.backend);
  const kernels::SplitCounts before = device.counts();
  const uint64_t steps_before = stats().steps;
  EXPECT_EQ(AskAll(asks), split);
  const kernels::SplitCounts& after = device.counts();
  const auto steps = static_cast<int64_t>(stats().steps - steps_before);
  // One copy in, one out, one wait, no memory: per step.
  EXPECT_EQ(after.copies_in - before.copies_in, steps);
  EXPECT_LE(after.copies_out - before.copies_out, steps);
  EXPECT_EQ(after.waits - before.waits, steps);
  EXPECT_EQ(after.allocations, before.allocations);
  EXPECT_GT(after.graph_launches - before.graph_launches, steps / 2);
  EXPECT_EQ(after.graphs, before.graphs);
  ASSERT_NO_FATAL_FAILURE(Make(Options(), 2, "cpu"));
  EXPECT_EQ(AskAll(asks), split);
}

TEST(AssembleTest, SaysInOneLineWhatDoesNotFit) {
  const SteadyClock clock;
  const auto folder = Folder::Open("tests/data/golden/llama");
  ASSERT_TRUE(folder.ok());
  const auto load = [&](kernels::Backend& backend) { return LoadModel(**folder, backend); };
  const auto error = [&](int64_t pool_bytes, double share) {
    AssemblyOptions options;
    options.engine.running_max = 2;
    options.engine.step_tokens_max = 64;
    options.kv.pool_bytes = pool_bytes;
    options.kv.memory_share = share;
    return Assemble(kernels::MakeSplitBackend({.threads = 1}), load, options, clock).status();
  };
  EXPECT_TRUE(error(0, 0.5).ok());
  EXPECT_EQ(error(100, 0.5).code(), StatusCode::kExhausted);
  EXPECT_EQ(error(100, 0.5).message(),
            "KV cache: one page of each KV group takes 49152 bytes, 100 are left for them; raise "
            "kv.pool_bytes");
  EXPECT_NE(error(0, 1e-9).message().find("raise kv.memory_share"), std::string::npos);
}

INSTANTIATE_TEST_SUITE_P(Models, EqualityTest,
                         testing::Combine(testing::Values("llama", "qwen3", "mistral", "gemma2",
                                                          "gemma3_text", "recall-12m"),
                                          testing::Values("cpu", "split", "cuda")),
                         [](const testing::TestParamInfo<Case>& param) {
                           std::string name =
                               std::get<0>(param.param) + "_" + std::get<1>(param.param);
                           std::ranges::replace(name, '-', '_');
                           return name;
                         });

}  // namespace
}  // namespace lacuna::engine
