// The simulator: the real engine, scheduler and KV cache under random arrivals, cancels, deadlines,
// slow readers and tiny pools, on a clock that the test owns. After every step the invariants hold;
// at the end every accepted request has exactly one terminal event, its tokens are those of the
// model without any engine (with a plan: those of the request alone in an engine with room for
// all), and no page is in use. A failing seed is printed.
//
// LACUNA_SIM_SEED runs one seed, LACUNA_SIM_STEPS changes the number of steps of all seeds.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <random>
#include <string>

#include "tests/engine/engine_fixture.h"
#include "tests/engine/fake_plans.h"

namespace lacuna::engine {
namespace {

class Random final {
 public:
  explicit Random(uint64_t seed) : bits_(seed) {}
  int64_t In(int64_t low, int64_t high) {  // both included
    return low + static_cast<int64_t>(bits_() % static_cast<uint64_t>(high - low + 1));
  }
  bool Chance(int percent) { return In(1, 100) <= percent; }

 private:
  std::mt19937_64 bits_;
};

struct World {
  FakeRunner::Shape shape;
  EngineConfig config;
  bool prefix_cache = true;
  int arrival_percent = 0, cancel_percent = 0, deadline_percent = 0, slow_percent = 0;
  int penalty_percent = 0, sparse_percent = 0;
  int64_t priorities = 1, scopes = 1, families = 1;
};

World MakeWorld(Random& random) {
  World world;
  world.shape.page_tokens = random.In(1, 8);
  world.shape.vocab_size = 24;
  const int64_t pages = random.In(4, 64);
  world.shape.groups = {FullGroup()};
  world.shape.group_pages = {pages};
  if (random.Chance(40)) {
    world.shape.groups.push_back(
        WindowGroup(static_cast<int32_t>(random.In(1, 20)), static_cast<int32_t>(random.In(0, 5))));
    world.shape.group_pages.push_back(random.In(4, 32));
  } else if (random.Chance(20)) {
    world.shape.groups.push_back(FullGroup());
    world.shape.group_pages.push_back(random.In(4, 64));
  }
  world.config.step_tokens_max = random.Chance(30) ? random.In(1, 4) : random.In(1, 64);
  world.config.running_max = random.In(1, 12);
  world.config.queue_len_max = random.In(2, 40);
  world.config.events_max = random.In(2, 40);
  world.shape.logit_rows_max = random.Chance(50) ? 0 : world.config.running_max + random.In(0, 6);
  world.shape.asynchronous = random.Chance(50);
  world.prefix_cache = random.Chance(80);
  world.arrival_percent = static_cast<int>(random.In(5, 60));
  world.cancel_percent = static_cast<int>(random.In(0, 6));
  world.deadline_percent = static_cast<int>(random.In(0, 30));
  world.slow_percent = static_cast<int>(random.In(0, 30));
  world.penalty_percent = random.Chance(30) ? 20 : 0;
  if (random.Chance(60)) {
    world.sparse_percent = static_cast<int>(random.In(20, 100));
    world.shape.plans = AllFakePlans(static_cast<int32_t>(random.In(1, 12)));
  }
  world.priorities = random.In(1, 4);
  world.scopes = random.In(1, 3);
  world.families = random.In(1, 4);
  return world;
}

struct Client {
  RequestStream stream;
  Request request;
  int64_t submitted_step = 0;
  bool slow = false, cancelled = false, gone = false;
  bool sparse() const { return request.sparse.plan != nullptr; }
  Heard heard{};
};

class Simulation final {
 public:
  explicit Simulation(uint64_t seed)
      : random_(seed),
        world_(MakeWorld(random_)),
        test_(MakeTestEngine(world_.shape, world_.config, clock_, {3}, world_.prefix_cache)) {}

  void Run(int64_t steps) {
    for (int64_t step = 0; step < steps && !::testing::Test::HasFailure(); ++step) {
      Arrive();
      CancelSome();
      Turn();
    }
    // The slow ones stay slow; everybody else gets what is left.
    const int64_t end = step_ + WorkLeft();
    while (!test_.engine->Idle() && !::testing::Test::HasFailure()) {
      Turn();
      ASSERT_LE(step_, end) << "starved: more steps than tokens";
    }
    for (Client& client : clients_) Check(client);
    CheckTotals();
  }

  int64_t steps() const { return step_; }
  const EngineStats& stats() const { return test_.engine->stats(); }
  const FakeRunner& runner() const { return *test_.runner; }
  int64_t latency_max() const { return latency_max_; }
  // Finished requests with a plan that were preempted, that hit, whose budget grew.
  int64_t sparse_preempted = 0, sparse_hit = 0, sparse_widened = 0, sparse_finished = 0;

 private:
  void Arrive() {
    for (int burst = random_.Chance(5) ? 6 : 1; burst > 0; --burst) {
      if (!random_.Chance(world_.arrival_percent)) continue;
      Request request = MakeRequest(MakePrompt(), static_cast<int32_t>(random_.In(1, 40)),
                                    static_cast<uint64_t>(random_.In(1, world_.scopes)));
      request.priority = static_cast<int32_t>(random_.In(0, world_.priorities - 1));
      request.sampling.ignore_eos = random_.Chance(60);
      // Too weak to change a choice, but it must be known before the next one.
      if (random_.Chance(world_.penalty_percent)) request.sampling.frequency_penalty = 1e-6;
      if (random_.Chance(world_.sparse_percent)) {
        AddPlan(request);
      } else if (random_.Chance(10)) {
        request.prompt_logprobs = static_cast<int32_t>(random_.In(0, 2));
        request.sampling.max_tokens -= random_.Chance(20) ? request.sampling.max_tokens : 0;
      }
      if (random_.Chance(world_.deadline_percent)) {
        request.deadline = clock_.Now() + std::chrono::milliseconds(random_.In(1, 80));
      }
      Submit(std::move(request));
    }
  }

  void AddPlan(Request& request) {
    const auto plans = static_cast<int64_t>(world_.shape.plans.size());
    request.sparse.plan = world_.shape.plans[static_cast<size_t>(random_.In(0, plans - 1))];
    if (random_.Chance(50)) return;
    request.sparse.audit_fraction = static_cast<double>(random_.In(1, 100)) / 100;
    request.sparse.mass_floor = static_cast<double>(random_.In(0, 60)) / 100;
  }

  // Prompts of one family share a random part of their beginning.
  std::vector<TokenId> MakePrompt() {
    const int64_t length_max = test_.engine->context_tokens_max();
    std::vector<TokenId> prompt;
    const auto length = static_cast<size_t>(random_.In(1, std::min<int64_t>(length_max + 1, 90)));
    const auto shared = static_cast<size_t>(random_.In(0, static_cast<int64_t>(length)));
    const int64_t family = random_.In(1, world_.families);
    for (size_t i = 0; i < length; ++i) {
      prompt.push_back(static_cast<TokenId>(
          i < shared ? (static_cast<int64_t>(i) * (family + 4) + family) % 24 : random_.In(0, 23)));
    }
    return prompt;
  }

  void Submit(Request request) {
    auto stream = test_.engine->Submit(request);
    if (!stream.ok()) {
      ++refused_;
      const auto tokens = static_cast<int64_t>(request.prompt.size());
      const bool too_long = tokens + 1 > test_.engine->context_tokens_max();
      if (!too_long && stream.status().code() == StatusCode::kInvalidArgument) {
        EXPECT_TRUE(LacksRoomForAGrain(request)) << stream.status().ToString();
        return;
      }
      EXPECT_EQ(stream.status().code(), too_long ? StatusCode::kTooLong : StatusCode::kExhausted);
      return;
    }
    clients_.push_back({.stream = std::move(*stream),
                        .request = std::move(request),
                        .submitted_step = step_,
                        .slow = random_.Chance(world_.slow_percent)});
  }

  bool LacksRoomForAGrain(const Request& request) const {
    if (request.sparse.plan == nullptr || !request.sparse.plan->sparse_prefill) return false;
    const int64_t grain = std::min(
        std::lcm(FakeRunner::Shape::GrainTokens(*request.sparse.plan), world_.shape.page_tokens),
        static_cast<int64_t>(request.prompt.size()));
    // A window needs its own pages and those of a grain.
    const bool window = !world_.shape.groups.back().full();
    const int64_t pages = window ? world_.shape.group_pages.back() : 1 << 20;
    return world_.config.step_tokens_max < grain ||
           pages <
               (world_.shape.groups.back().window_tokens + grain) / world_.shape.page_tokens + 4;
  }

  void CancelSome() {
    if (clients_.empty() || !random_.Chance(world_.cancel_percent)) return;
    const auto last = static_cast<int64_t>(clients_.size()) - 1;
    Client& client = clients_[static_cast<size_t>(
        random_.Chance(70) ? random_.In(std::max<int64_t>(0, last - 15), last)
                           : random_.In(0, last))];
    if (client.gone) return;
    client.cancelled = true;
    if (random_.Chance(70)) return client.stream.Cancel();
    client.gone = true;  // the connection is closed
    RequestStream(std::move(client.stream));
  }

  void Turn() {
    const int64_t tokens_before = test_.runner->tokens_run;
    const uint64_t ended_before = Ended();
    test_.engine->StepOnce();
    ++step_;
    clock_.Advance(std::chrono::milliseconds(1));
    const Status status = test_.engine->CheckInvariants();
    ASSERT_TRUE(status.ok()) << status.ToString();
    for (const PageCounts& counts : test_.engine->page_counts()) {
      ASSERT_EQ(counts.free + counts.used + counts.cached, counts.total);
    }
    ASSERT_LE(test_.runner->tokens_run - tokens_before, world_.config.step_tokens_max);
    ASSERT_LE(test_.runner->batch_max, world_.config.running_max);
    if (world_.shape.logit_rows_max > 0) {
      ASSERT_LE(test_.runner->rows_max, world_.shape.logit_rows_max);
    }
    ASSERT_TRUE(test_.engine->Idle() || test_.runner->tokens_run > tokens_before ||
                Ended() > ended_before)
        << "a step without progress";
    for (size_t i = first_open_; i < clients_.size(); ++i) Listen(clients_[i]);
    while (first_open_ < clients_.size() && Done(clients_[first_open_])) ++first_open_;
  }

  static bool Done(const Client& client) { return client.gone || client.heard.terminals > 0; }

  void Listen(Client& client) {
    if (Done(client)) return;
    if (client.slow && !random_.Chance(5)) {
      // Nothing, unless it is over: then the rest is read at once.
      if (!test_.engine->Idle()) return;
    }
    client.heard.Drain(client.stream);
    if (client.heard.terminals > 0 && !client.slow) {
      latency_max_ = std::max(latency_max_, step_ - client.submitted_step);
    }
  }

  uint64_t Ended() const {
    const EngineStats& stats = test_.engine->stats();
    return stats.finished_stop + stats.finished_length + stats.cancelled + stats.failed;
  }

  // Steps that suffice for all that is live: each computes a token at least, and no token is
  // computed more often than its sequence is preempted, which happens once per page at most.
  int64_t WorkLeft() const {
    int64_t tokens = 0;
    for (size_t i = first_open_; i < clients_.size(); ++i) {
      tokens += static_cast<int64_t>(clients_[i].request.prompt.size()) +
                clients_[i].request.sampling.max_tokens;
    }
    return 10 + 2 * tokens;
  }

  void Check(Client& client) {
    if (client.gone) return;
    Heard& heard = client.heard;
    heard.Drain(client.stream);
    EXPECT_EQ(heard.terminals, 1) << "request " << client.stream.id().value;
    EXPECT_EQ(heard.after_terminal, 0);
    EXPECT_FALSE(client.stream.Poll());
    const std::vector<TokenId> reference =
        Expected(client, static_cast<int64_t>(heard.tokens.size()));
    EXPECT_EQ(heard.tokens, reference) << "request " << client.stream.id().value << Shown(client);
    if (client.sparse() && heard.finished) CountRoads(client);
    if (heard.failed) {
      const StatusCode code = heard.failed->status.code();
      EXPECT_TRUE((code == StatusCode::kDeadline && client.request.deadline) ||
                  (code == StatusCode::kExhausted && client.slow))
          << heard.failed->status.ToString();
    } else if (heard.finished) {
      CheckFinish(client);
    }
  }

  // The next `count` tokens.
  std::vector<TokenId> Expected(const Client& client, int64_t count) const {
    if (!client.sparse()) return Reference(world_.shape, client.request.prompt, count);
    if (count == 0) return {};
    FakeRunner::Shape shape = world_.shape;
    shape.asynchronous = false;
    shape.logit_rows_max = 0;
    shape.group_pages.assign(shape.groups.size(), 200);
    const ManualClock clock;
    TestEngine alone = MakeTestEngine(shape, {.step_tokens_max = 256}, clock, {}, false);
    Request request = client.request;
    request.deadline.reset();
    request.sampling.ignore_eos = true;
    request.sampling.max_tokens = static_cast<int32_t>(count);
    auto stream = alone.engine->Submit(std::move(request));
    EXPECT_TRUE(stream.ok()) << stream.status().ToString();
    if (!stream.ok()) return {};
    Heard heard;
    while (alone.engine->StepOnce()) heard.Drain(*stream);
    heard.Drain(*stream);
    EXPECT_TRUE(alone.runner->faults.empty()) << alone.runner->faults.front();
    return heard.tokens;
  }

  static std::string Shown(const Client& client) {
    if (!client.sparse()) return "";
    std::string text = ", profile " + client.request.sparse.plan->name;
    if (!client.heard.finished) return text;
    const Usage& usage = client.heard.finished->usage;
    return text + ", " + std::to_string(usage.preemptions) + " preemptions, " +
           std::to_string(usage.prompt_tokens) + " prompt tokens of them cached " +
           std::to_string(usage.cached_tokens) + ", widened " +
           std::to_string(usage.sparse.budget_widened);
  }

  void CountRoads(const Client& client) {
    const Usage& usage = client.heard.finished->usage;
    ++sparse_finished;
    sparse_preempted += usage.preemptions > 0;
    sparse_hit += usage.cached_tokens > 0;
    sparse_widened += usage.sparse.budget_widened > 0;
    EXPECT_LE(usage.sparse.pages_selected, usage.sparse.pages_considered);
    if (client.heard.finished->reason != FinishReason::kLength) return;
    // Each token but the last was computed; those computed again count once.
    EXPECT_EQ(usage.sparse.dense_steps + usage.sparse.sparse_steps, usage.completion_tokens - 1);
  }

  void CheckFinish(const Client& client) {
    const Heard& heard = client.heard;
    const auto sent = static_cast<int64_t>(heard.tokens.size());
    const auto prompt = static_cast<int64_t>(client.request.prompt.size());
    const int64_t length = std::min<int64_t>(client.request.sampling.max_tokens,
                                             test_.engine->context_tokens_max() - prompt);
    EXPECT_EQ(heard.finished->usage.completion_tokens, sent);
    EXPECT_LT(heard.finished->usage.cached_tokens, prompt);
    switch (heard.finished->reason) {
      case FinishReason::kLength:
        EXPECT_EQ(sent, length);
        break;
      case FinishReason::kStop: {
        EXPECT_FALSE(client.request.sampling.ignore_eos);
        EXPECT_EQ(Expected(client, sent + 1).back(), 3);
        break;
      }
      case FinishReason::kCancelled:
        EXPECT_TRUE(client.cancelled);
        return;
    }
    if (client.request.prompt_logprobs < 0) return;
    ASSERT_EQ(static_cast<int64_t>(heard.prompt_logprobs.size()), prompt - 1);
    for (size_t i = 0; i < heard.prompt_logprobs.size(); ++i) {
      const TokenId likely =
          FakeRunner::Next(world_.shape, std::span(client.request.prompt).first(i + 1));
      EXPECT_EQ(heard.prompt_logprobs[i].token, client.request.prompt[i + 1]);
      EXPECT_EQ(heard.prompt_logprobs[i].logprob > -1.0f, likely == client.request.prompt[i + 1]);
    }
  }

  void CheckTotals() {
    const EngineStats& stats = test_.engine->stats();
    EXPECT_EQ(stats.submitted, clients_.size());
    EXPECT_EQ(stats.rejected, refused_);
    EXPECT_EQ(Ended(), clients_.size());
    EXPECT_EQ(stats.waiting, 0);
    EXPECT_EQ(stats.waiting_tokens, 0);
    EXPECT_EQ(stats.running, 0);
    for (const PageCounts& counts : test_.engine->page_counts()) {
      EXPECT_EQ(counts.used, 0);
      EXPECT_EQ(counts.free + counts.cached, counts.total);
    }
    EXPECT_TRUE(test_.runner->faults.empty()) << test_.runner->faults.front();
  }

  Random random_;
  World world_;
  ManualClock clock_;
  TestEngine test_;
  std::vector<Client> clients_;
  size_t first_open_ = 0;
  int64_t step_ = 0, latency_max_ = 0;
  uint64_t refused_ = 0;
};

int64_t FromEnvironment(const char* name, int64_t otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : std::atoll(value);
}

TEST(SimTest, RandomWorldsKeepEveryPromise) {
  const int64_t steps_wanted = FromEnvironment("LACUNA_SIM_STEPS", 200'000);
  const int64_t only_seed = FromEnvironment("LACUNA_SIM_SEED", -1);
  int64_t steps = 0, seeds = 0, latency_max = 0, mixed = 0, ahead = 0, pending = 0;
  int64_t sparse[4] = {}, kept = 0, audited = 0, sparse_chunks = 0;
  uint64_t preemptions = 0, hits = 0, evicted = 0, cancelled = 0, failed = 0, finished = 0;
  for (uint64_t seed = 1; steps < steps_wanted; ++seed) {
    if (only_seed >= 0) seed = static_cast<uint64_t>(only_seed);
    SCOPED_TRACE("LACUNA_SIM_SEED=" + std::to_string(seed));
    Simulation simulation(seed);
    simulation.Run(500);
    if (HasFailure()) FAIL() << "seed " << seed << ", step " << simulation.steps();
    const EngineStats& stats = simulation.stats();
    steps += simulation.steps();
    ++seeds;
    latency_max = std::max(latency_max, simulation.latency_max());
    mixed += simulation.runner().mixed_steps;
    ahead += simulation.runner().launched_ahead;
    pending += simulation.runner().pending_tokens_run;
    const int64_t roads[4] = {simulation.sparse_finished, simulation.sparse_preempted,
                              simulation.sparse_hit, simulation.sparse_widened};
    for (size_t i = 0; i < 4; ++i) sparse[i] += roads[i];
    kept += simulation.runner().kept_rows;
    audited += simulation.runner().audited_rows;
    sparse_chunks += simulation.runner().sparse_chunks;
    preemptions += stats.preemptions;
    hits += stats.prefix_hit_tokens;
    evicted += stats.evicted_pages;
    cancelled += stats.cancelled;
    failed += stats.failed;
    finished += stats.finished_stop + stats.finished_length;
    if (only_seed >= 0) return;
  }
  std::printf(
      "%lld steps of %lld seeds: %llu finished, %llu cancelled, %llu failed, %llu preemptions, "
      "%llu hit tokens, %llu evicted pages, %lld mixed steps, %lld launched ahead with %lld tokens "
      "unknown, longest wait %lld steps\n",
      static_cast<long long>(steps), static_cast<long long>(seeds),
      static_cast<unsigned long long>(finished), static_cast<unsigned long long>(cancelled),
      static_cast<unsigned long long>(failed), static_cast<unsigned long long>(preemptions),
      static_cast<unsigned long long>(hits), static_cast<unsigned long long>(evicted),
      static_cast<long long>(mixed), static_cast<long long>(ahead), static_cast<long long>(pending),
      static_cast<long long>(latency_max));
  std::printf(
      "with plans: %lld finished, of them %lld preempted, %lld with hits, %lld widened; %lld rows "
      "under a kept choice, %lld audited, %lld sparse chunks\n",
      static_cast<long long>(sparse[0]), static_cast<long long>(sparse[1]),
      static_cast<long long>(sparse[2]), static_cast<long long>(sparse[3]),
      static_cast<long long>(kept), static_cast<long long>(audited),
      static_cast<long long>(sparse_chunks));
  for (const int64_t count : sparse) EXPECT_GT(count, 100);
  EXPECT_GT(kept, 1000);
  EXPECT_GT(audited, 1000);
  EXPECT_GT(sparse_chunks, 1000);
  // The roads that the promises are about were taken.
  EXPECT_GT(preemptions, 100u);
  EXPECT_GT(hits, 1000u);
  EXPECT_GT(evicted, 1000u);
  EXPECT_GT(cancelled, 100u);
  EXPECT_GT(failed, 100u);
  EXPECT_GT(mixed, 1000);
  EXPECT_GT(ahead, steps_wanted / 20);
  EXPECT_GT(pending, steps_wanted / 20);
}

// 64 streams run and 1000 wait; the goal is 1 ms, the limit here leaves room for a loaded machine.
TEST(SimTest, PlanningStaysFastBehindAFullQueue) {
  FakeRunner::Shape shape;
  shape.groups = {FullGroup()};
  shape.group_pages = {6000};
  shape.page_tokens = 16;
  ManualClock clock;
  EngineConfig config;
  config.queue_len_max = 1064;
  TestEngine test = MakeTestEngine(shape, config, clock);
  Random random(1);
  std::vector<RequestStream> streams;
  const auto submit = [&] {
    std::vector<TokenId> prompt(static_cast<size_t>(random.In(100, 1500)));
    for (TokenId& token : prompt) token = static_cast<TokenId>(random.In(0, 31));
    Request request = MakeRequest(std::move(prompt), 200);
    request.priority = static_cast<int32_t>(random.In(0, 3));
    auto stream = test.engine->Submit(std::move(request));
    if (stream.ok()) streams.push_back(std::move(*stream));
  };
  for (int i = 0; i < 1064; ++i) submit();
  for (int step = 0; step < 600; ++step) {
    for (RequestStream& stream : streams) {
      while (stream.Poll()) {
      }
    }
    while (test.engine->stats().waiting < 1000) submit();
    test.engine->StepOnce();
  }
  const LatencyHistogram& plans = test.engine->stats().plan_seconds;
  uint64_t below = 0;
  int p99 = 0;
  for (int bucket = 0; bucket < LatencyHistogram::kBuckets; ++bucket) {
    below += plans.count(bucket);
    if (below >= 594) {
      p99 = bucket;
      break;
    }
  }
  std::printf("planning: mean %.1f us, p99 <= %.0f us, %lld running, %lld waiting\n",
              plans.sum_seconds() / 600 * 1e6, LatencyHistogram::UpperSeconds(p99) * 1e6,
              static_cast<long long>(test.engine->stats().running.load()),
              static_cast<long long>(test.engine->stats().waiting.load()));
  EXPECT_EQ(test.engine->stats().batch_sequences_max, 64);
  EXPECT_GE(test.engine->stats().waiting, 900);
#if !defined(LACUNA_SANITIZED)  // those builds are slow by design
  EXPECT_LE(LatencyHistogram::UpperSeconds(p99), 10e-3);
#endif
}

}  // namespace
}  // namespace lacuna::engine
