// Same answer by different roads, with sparse attention: the real engine, executor and backends,
// temperature 0, deterministic mode. Tokens and the bits of their log probabilities are equal
// whether a prompt is chunked, found in the cache, computed again after preemption, or shares its
// steps with other profiles; statistics prove that the road was taken and that it was sparse.
#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "engine/assemble.h"
#include "engine/model/load_model.h"
#include "kvcache/sparse/resolve.h"
#include "tests/device/engine_backend.h"
#include "tests/device/split_backend.h"
#include "tests/kvcache/sparse_test_models.h"
#include "tests/model/sparse_steps_fixture.h"

namespace lacuna::engine {
namespace {

constexpr int64_t kPageTokens = 64;

struct Answer final {
  std::vector<TokenId> tokens;
  std::vector<float> logprobs;
  Usage usage;
  bool operator==(const Answer& other) const {
    return tokens == other.tokens && logprobs == other.logprobs;
  }
};

struct Ask final {
  PlanPtr plan;
  std::vector<TokenId> prompt;
  int32_t max_tokens = 20;
  double audit_fraction = 0, mass_floor = 0;
};

std::vector<TokenId> RandomPrompt(size_t tokens, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<TokenId> prompt(tokens);
  for (TokenId& token : prompt) token = static_cast<TokenId>(3 + random() % 4000);
  return prompt;
}

PlanPtr Tight(const std::string& name) {
  const kvcache::AttentionShape shape = kvcache::Recall12m();
  const auto resolved = kvcache::ResolvePlan(ChangedProfile(name, Dials::kTight), shape,
                                             kvcache::MakeArtefacts(shape));
  EXPECT_TRUE(resolved.errors.empty()) << resolved.errors.front();
  return resolved.plan;
}

// An engine that runs on the test's thread.
class Machine final {
 public:
  Machine(const AssemblyOptions& options, const std::string& backend_name) {
    auto backend = kernels::MakeEngineBackend(backend_name, {.deterministic = true, .threads = 2});
    EXPECT_TRUE(backend.ok()) << backend.status().ToString();
    if (!backend.ok()) return;
    const auto folder = Folder::Open("models/recall-12m");
    auto assembly = Assemble(
        std::move(*backend),
        [&](kernels::Backend& target) {
          return LoadModel(**folder, target, 4096, /*bf16_rope=*/false, options.residency.get());
        },
        options, clock_);
    EXPECT_TRUE(assembly.ok()) << assembly.status().ToString();
    if (assembly.ok()) assembly_ = std::move(*assembly);
  }

  static AssemblyOptions Options(std::vector<PlanPtr> plans) {
    AssemblyOptions options;
    options.engine.deterministic = true;
    options.engine.running_max = 16;
    options.engine.step_tokens_max = 4096;
    options.kv.page_tokens = kPageTokens;
    options.kv.prefix_cache = false;
    options.plans = std::move(plans);
    return options;
  }

  // All at once: they share steps.
  std::vector<Answer> AskAll(const std::vector<Ask>& asks) {
    std::vector<RequestStream> streams;
    for (const Ask& ask : asks) {
      Request request;
      request.prompt = ask.prompt;
      request.sampling.temperature = 0.0;
      request.sampling.max_tokens = ask.max_tokens;
      request.sampling.ignore_eos = true;
      request.sampling.logprobs = 0;
      request.sparse = {
          .plan = ask.plan, .audit_fraction = ask.audit_fraction, .mass_floor = ask.mass_floor};
      auto stream = engine().Submit(std::move(request));
      EXPECT_TRUE(stream.ok()) << stream.status().ToString();
      if (!stream.ok()) return {};
      streams.push_back(std::move(*stream));
    }
    std::vector<Answer> answers(asks.size());
    while (engine().StepOnce()) {
      for (size_t i = 0; i < streams.size(); ++i) Read(streams[i], answers[i]);
    }
    for (size_t i = 0; i < streams.size(); ++i) Read(streams[i], answers[i]);
    const Status invariants = engine().CheckInvariants();
    EXPECT_TRUE(invariants.ok()) << invariants.ToString();
    for (const PageCounts& group : engine().page_counts()) {
      EXPECT_EQ(group.free + group.used + group.cached, group.total);
      EXPECT_EQ(group.used, 0);
    }
    return answers;
  }

  Answer AskOne(const Ask& ask) {
    std::vector<Answer> answers = AskAll({ask});
    return answers.empty() ? Answer() : std::move(answers[0]);
  }

  // Of the first group, which is the only one here, metadata included.
  int64_t page_bytes() {
    const int64_t metadata = assembly_.metadata == nullptr ? 0 : assembly_.metadata->bytes();
    return (assembly_.storage->bytes() + metadata) / engine().page_counts()[0].total;
  }
  Engine& engine() { return *assembly_.engine; }
  const kernels::SplitCounts& device_counts() {
    return static_cast<const kernels::SplitBackend&>(*assembly_.backend).counts();
  }
  const EngineStats& stats() { return engine().stats(); }

 private:
  static void Read(RequestStream& stream, Answer& answer) {
    while (const auto event = stream.Poll()) {
      if (const auto* token = std::get_if<TokenEvent>(&*event)) {
        answer.tokens.push_back(token->token);
        answer.logprobs.push_back(token->logprob.at(0).logprob);
      } else if (const auto* finished = std::get_if<FinishedEvent>(&*event)) {
        answer.usage = finished->usage;
      } else if (const auto* failed = std::get_if<FailedEvent>(&*event)) {
        ADD_FAILURE() << failed->status.ToString();
      }
    }
  }

  SteadyClock clock_;
  Assembly assembly_;
};

// That the plan did what it is for.
void ExpectSparse(const Answer& answer, const PlanPtr& plan) {
  const SparseUsage& sparse = answer.usage.sparse;
  if (plan->sparse_prefill) {
    EXPECT_GT(sparse.prefill_blocks_considered, sparse.prefill_blocks_selected);
    EXPECT_GT(sparse.prefill_blocks_selected, 0);
  }
  if (!plan->sparse_decode) return;
  EXPECT_GT(sparse.sparse_steps, 0);
  EXPECT_GT(sparse.pages_considered, 0);
  EXPECT_LE(sparse.pages_selected, sparse.pages_considered);
}

using Case = std::tuple<std::string, std::string>;  // profile, backend

class SparseEqualityTest : public testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    if (kernels::SkipsWithout(backend(), /*sparse=*/true)) return;
    plan_ = Tight(profile());
    ASSERT_NE(plan_, nullptr);
    ask_ = {.plan = plan_, .prompt = RandomPrompt(2200, 1)};
  }
  static const std::string& profile() { return std::get<0>(GetParam()); }
  static const std::string& backend() { return std::get<1>(GetParam()); }

  PlanPtr plan_;
  Ask ask_;
};

TEST_P(SparseEqualityTest, ChunkedIsWhole) {
  Machine whole(Machine::Options({plan_}), backend());
  const Answer expected = whole.AskOne(ask_);
  ASSERT_EQ(expected.tokens.size(), 20u);
  ExpectSparse(expected, plan_);
  for (const int64_t step_tokens : {1024, 1100}) {
    AssemblyOptions options = Machine::Options({plan_});
    options.engine.step_tokens_max = step_tokens;
    Machine chunked(options, backend());
    EXPECT_EQ(chunked.AskOne(ask_), expected) << step_tokens;
    EXPECT_GE(chunked.stats().steps, 21u);
  }
}

TEST_P(SparseEqualityTest, PrefixHitIsMiss) {
  Machine plain(Machine::Options({plan_}), backend());
  AssemblyOptions options = Machine::Options({plan_});
  options.kv.prefix_cache = true;
  Machine cached(options, backend());
  Ask longer = ask_, forked = ask_;
  longer.prompt.resize(2500, 77);
  forked.prompt[1500] += 1;
  for (const Ask& ask : {ask_, longer, forked, forked}) {
    const Answer expected = plain.AskOne(ask), got = cached.AskOne(ask);
    EXPECT_EQ(got, expected);
    EXPECT_EQ(expected.usage.cached_tokens, 0);
  }
  EXPECT_GE(cached.stats().prefix_hit_tokens, 2u * 1024u);
}

TEST_P(SparseEqualityTest, PreemptedIsNot) {
  std::vector<Ask> asks;
  for (uint32_t i = 0; i < 3; ++i) {
    asks.push_back({.plan = plan_, .prompt = RandomPrompt(1400 + 100 * i, i + 5)});
    asks.back().max_tokens = 150;
  }
  Machine roomy(Machine::Options({plan_}), backend());
  std::vector<Answer> quiet;
  for (const Ask& ask : asks) quiet.push_back(roomy.AskOne(ask));
  for (const bool prefix_cache : {false, true}) {
    AssemblyOptions options = Machine::Options({plan_});
    options.kv.prefix_cache = prefix_cache;
    // The first two are admitted, 22 and 24 pages, and grow to 25 and 26.
    options.kv.pool_bytes = 49 * roomy.page_bytes();
    Machine small(options, backend());
    const int64_t total = small.engine().page_counts()[0].total;
    EXPECT_EQ(total, 49);
    EXPECT_EQ(small.AskAll(asks), quiet) << prefix_cache;
    EXPECT_GT(small.stats().preemptions, 0u) << total;
  }
}

TEST_P(SparseEqualityTest, BatchedIsAlone) {
  const PlanPtr other = Tight(profile() == "quest" ? "tokenselect" : "quest");
  std::vector<Ask> asks;
  for (uint32_t i = 0; i < 9; ++i) {
    asks.push_back({.plan = i % 3 == 0   ? nullptr
                            : i % 3 == 1 ? other
                                         : plan_,
                    .prompt = RandomPrompt(300 + 200 * i, i)});
    asks.back().audit_fraction = i % 2 == 0 ? 0.3 : 0;
    asks.back().mass_floor = 0.9;
  }
  Machine machine(Machine::Options({plan_, other}), backend());
  std::vector<Answer> alone;
  for (const Ask& ask : asks) alone.push_back(machine.AskOne(ask));
  ASSERT_EQ(machine.stats().batch_sequences_max, 1);
  EXPECT_EQ(machine.AskAll(asks), alone);
  EXPECT_GE(machine.stats().batch_sequences_max, 6);
}

std::string CaseName(const testing::TestParamInfo<Case>& param) {
  std::string name = std::get<0>(param.param) + "_" + std::get<1>(param.param);
  std::ranges::replace(name, '-', '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(Cpu, SparseEqualityTest,
                         testing::Combine(testing::Values("quest", "lserve", "tidaldecode",
                                                          "tokenselect", "xattention", "minference",
                                                          "lacuna-balanced", "delta-minference",
                                                          "moa", "streamingllm"),
                                          testing::Values("cpu")),
                         CaseName);
INSTANTIATE_TEST_SUITE_P(Split, SparseEqualityTest,
                         testing::Combine(testing::Values("lserve", "delta-minference"),
                                          testing::Values("split")),
                         CaseName);
INSTANTIATE_TEST_SUITE_P(Gpu, SparseEqualityTest,
                         testing::Combine(testing::ValuesIn(ProfileNames()),
                                          testing::Values("cuda")),
                         CaseName);

class SparseMachineTest : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (kernels::SkipsWithout(GetParam(), /*sparse=*/true)) return;
  }
};

// Streaming heads that keep sink and window alone give what they give when all pages are kept, but
// for the order in which a row of the output projection is added up: heads stand in another order.
TEST_P(SparseMachineTest, WindowsOfStreamingHeadsGiveTheSameFromFewerPages) {
  const PlanPtr plan = Tight("lserve");
  Machine full(Machine::Options({plan}), GetParam());
  AssemblyOptions options = Machine::Options({plan});
  options.residency = plan;
  options.kv.prefix_cache = true;
  Machine windows(options, GetParam());
  std::vector<Ask> asks;
  std::vector<Answer> alone;
  for (uint32_t i = 0; i < 4; ++i) {
    asks.push_back({.plan = plan, .prompt = RandomPrompt(700 + 400 * i, i)});
    asks.back().max_tokens = 70;
    alone.push_back(windows.AskOne(asks.back()));
    const Answer kept = full.AskOne(asks.back());
    ASSERT_EQ(kept.tokens.size(), 70u);
    EXPECT_EQ(alone.back().tokens[0], kept.tokens[0]);
    EXPECT_NEAR(alone.back().logprobs[0], kept.logprobs[0], 0.15);
  }
  EXPECT_EQ(windows.AskAll(asks), alone);
  EXPECT_EQ(windows.stats().prefix_hit_tokens, 0u);
  EXPECT_EQ(windows.engine().page_counts().size(), 2u);
  Request dense;
  dense.prompt = asks[0].prompt;
  EXPECT_EQ(windows.engine().Submit(std::move(dense)).status().code(),
            StatusCode::kInvalidArgument);
}

// One engine, 64 streams, ten profiles and dense.
TEST_P(SparseMachineTest, SixtyFourStreamsOfTenProfilesAreEachAsAlone) {
  std::vector<PlanPtr> plans;
  for (const char* name :
       {"quest", "lserve", "tidaldecode", "tokenselect", "xattention", "minference",
        "lacuna-balanced", "double-sparsity", "twilight-quest", "streamingllm"}) {
    plans.push_back(Tight(name));
  }
  AssemblyOptions options = Machine::Options(plans);
  options.engine.running_max = 64;
  options.engine.step_tokens_max = 2048;
  options.kv.prefix_cache = true;
  Machine machine(options, GetParam());
  std::vector<Ask> asks;
  for (uint32_t i = 0; i < 64; ++i) {
    const size_t kind = i % (plans.size() + 1);
    asks.push_back({.plan = kind == plans.size() ? nullptr : plans[kind],
                    .prompt = RandomPrompt(200 + (i * 37) % 900, i % 16)});  // prefixes in common
    asks.back().max_tokens = 12 + static_cast<int32_t>(i % 7);
    asks.back().audit_fraction = 0.2;
    asks.back().mass_floor = 0.5;
  }
  const std::vector<Answer> together = machine.AskAll(asks);
  ASSERT_EQ(together.size(), asks.size());
  EXPECT_GE(machine.stats().batch_sequences_max, 40);
  EXPECT_GT(machine.stats().sparse.audited_steps, 50u);
  options.kv.prefix_cache = false;
  Machine quiet(options, GetParam());
  for (size_t i = 0; i < asks.size(); ++i) {
    const std::string name = asks[i].plan == nullptr ? "dense" : asks[i].plan->name;
    const Answer alone = quiet.AskOne(asks[i]);
    EXPECT_EQ(together[i], alone) << i << " " << name;
    if (asks[i].plan == nullptr) continue;
    const SparseUsage &a = together[i].usage.sparse, &b = alone.usage.sparse;
    EXPECT_EQ(a.sparse_steps, b.sparse_steps) << name;
    EXPECT_EQ(a.pages_selected, b.pages_selected) << name;
    EXPECT_EQ(a.audited_steps, b.audited_steps) << name;
    EXPECT_EQ(a.budget_widened, b.budget_widened) << name;
  }
  EXPECT_EQ(quiet.stats().batch_sequences_max, 1);
}

// Streams of three paths and dense ones: recorded steps of every make-up, padded or not, give what
// op by op gives, and once all kinds are recorded nothing is.
TEST_P(SparseMachineTest, RecordedStepsGiveWhatEagerOnesGive) {
  if (GetParam() == "cpu") GTEST_SKIP() << "the CPU records no graphs";
  const std::vector<PlanPtr> plans = {Tight("quest"), Tight("lserve"), Tight("tidaldecode")};
  std::vector<Ask> asks;
  for (uint32_t i = 0; i < 12; ++i) {
    asks.push_back(
        {.plan = i % 4 == 3 ? nullptr : plans[i % 4], .prompt = RandomPrompt(500 + 40 * i, i)});
    asks.back().max_tokens = 12 + static_cast<int32_t>(3 * i);  // classes shrink one by one
  }
  AssemblyOptions options = Machine::Options(plans);
  Machine recorded(options, GetParam());
  const std::vector<Answer> answers = recorded.AskAll(asks);
  const auto& stats = recorded.stats();
  EXPECT_GT(stats.graph_steps, 10u);
  EXPECT_GT(stats.eager_decode_steps, 0u);
  EXPECT_LE(stats.eager_decode_steps, 16u);  // each kind once
  const uint64_t eager = stats.eager_decode_steps, graphs = stats.graph_steps;
  EXPECT_EQ(recorded.AskAll(asks), answers);
  EXPECT_EQ(stats.eager_decode_steps, eager);
  EXPECT_GT(stats.graph_steps, 2 * graphs);
  options.engine.cuda_graphs = false;
  Machine plain(options, GetParam());
  EXPECT_EQ(plain.AskAll(asks), answers);
  EXPECT_EQ(plain.stats().graph_steps, 0u);
  EXPECT_EQ(plain.stats().eager_decode_steps, 0u);
}

// Plans of one profile whose dials change tables: more than there are places for.
TEST_P(SparseMachineTest, StepsAllocateNothingWhateverPlansRequestsBring) {
  if (GetParam() != "split") GTEST_SKIP() << "only the split device counts";
  const kvcache::AttentionShape shape = kvcache::Recall12m();
  kvcache::SparseProfile profile = ChangedProfile("lacuna-balanced", Dials::kTight);
  const auto plan_of = [&](double p) {
    profile.prefill_select.p = p;
    auto resolved = kvcache::ResolvePlan(profile, shape, kvcache::MakeArtefacts(shape));
    EXPECT_TRUE(resolved.errors.empty()) << resolved.errors.front();
    return resolved.plan;
  };
  AssemblyOptions options = Machine::Options({plan_of(0.6)});
  options.engine.running_max = 4;
  Machine machine(options, "split");
  const auto ask = [&](int i) {
    Ask one{.plan = plan_of(0.3 + 0.01 * i), .prompt = RandomPrompt(1100, 3)};
    one.max_tokens = 4;
    return one;
  };
  const Answer first = machine.AskOne(ask(0));
  const kernels::SplitCounts before = machine.device_counts();
  for (int i = 1; i < 20; i += 2) {
    const std::vector<Answer> two = machine.AskAll({ask(i), ask(i + 1)});
    EXPECT_GT(two[0].usage.sparse.prefill_blocks_selected, 0);
  }
  EXPECT_EQ(machine.device_counts().allocations, before.allocations);
  EXPECT_EQ(machine.AskOne(ask(0)), first);  // its tables had to be copied again
}

INSTANTIATE_TEST_SUITE_P(Backends, SparseMachineTest, testing::Values("cpu", "split", "cuda"),
                         [](const auto& test) { return test.param; });

}  // namespace
}  // namespace lacuna::engine
