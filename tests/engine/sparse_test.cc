// Requests with plans through the engine, on the FakeRunner: what is refused, how prompts are cut
// and shared, when choices are made, what audits do, what is counted.
#include <gtest/gtest.h>

#include <algorithm>

#include "engine/sparse_intake.h"
#include "engine/sparse_progress.h"
#include "tests/engine/engine_fixture.h"

namespace lacuna::engine {
namespace {

using kernels::RefreshKind;

std::vector<TokenId> Prompt(int64_t tokens, int first = 1) {
  std::vector<TokenId> prompt;
  for (int64_t i = 0; i < tokens; ++i) {
    prompt.push_back(static_cast<TokenId>((first + i * 7) % 32));
  }
  return prompt;
}

FakeRunner::Shape SparseShape() {
  FakeRunner::Shape shape = SmallShape();
  shape.group_pages = {64};
  shape.plans = AllFakePlans(8);
  return shape;
}

PlanRef Named(const FakeRunner::Shape& shape, const std::string& name) {
  return *std::ranges::find(shape.plans, name, [](const PlanRef& plan) { return plan->name; });
}

Request Ask(PlanRef plan, int64_t prompt_tokens, int32_t max_tokens) {
  Request request = MakeRequest(Prompt(prompt_tokens), max_tokens);
  request.sampling.ignore_eos = true;
  request.sparse.plan = std::move(plan);
  return request;
}

Heard RunOne(TestEngine& test, Request request) {
  Heard heard;
  auto stream = test.engine->Submit(std::move(request));
  if (!stream.ok()) {
    ADD_FAILURE() << stream.status().ToString();
    return heard;
  }
  while (test.engine->StepOnce()) {
    const Status status = test.engine->CheckInvariants();
    EXPECT_TRUE(status.ok()) << status.ToString();
  }
  heard.Drain(*stream);
  EXPECT_EQ(heard.terminals, 1);
  EXPECT_TRUE(test.runner->faults.empty()) << test.runner->faults.front();
  return heard;
}

TEST(SparseIntakeTest, RefusesInOneLineWhatCannotRun) {
  struct Case {
    const char* name;
    PlanRef plan;
    int64_t step_tokens_max;
    PlanRef residency;
    bool sparse_ops;
    const char* error;  // "": taken
  };
  const FakeRunner::Shape shape = SparseShape();
  kvcache::SparsePlan other_shape = *Named(shape, "decode");
  other_shape.shape.page_tokens = 16;
  kvcache::SparsePlan dialed = *Named(shape, "both");
  dialed.decode_dials.budget_tokens = 7;
  dialed.prefill_heads[0].p = 0.5f;  // a number of the request, though it stands with the heads
  kvcache::SparsePlan unknown = *Named(shape, "both");
  unknown.decode.unit_tokens = 16;
  const PlanRef streaming = Named(shape, "streaming");
  const Case cases[] = {
      {"dense", nullptr, 8, nullptr, true, ""},
      {"known", Named(shape, "decode"), 8, nullptr, true, ""},
      {"other dials", Sealed(dialed), 8, nullptr, true, ""},
      {"another path", Sealed(unknown), 8, nullptr, true,
       "sparse: profile both is none of those that this server was started for"},
      {"another shape", Sealed(other_shape), 8, nullptr, true,
       "sparse: profile decode is none of those that this server was started for"},
      {"no sparse ops", Named(shape, "decode"), 8, nullptr, false,
       "sparse: this device has dense attention alone; got profile decode"},
      {"no grain in a step", Named(shape, "prefill"), 7, nullptr, true,
       "sparse: prefill of profile prefill computes 8 tokens at once, engine.step_tokens_max is 7"},
      {"its residency", streaming, 8, streaming, true, ""},
      {"dense under a residency", nullptr, 8, streaming, true,
       "sparse: got dense attention, need a profile with the head roles of streaming: this server "
       "stores no more of its streaming heads"},
      {"other roles", Named(shape, "decode"), 8, streaming, true,
       "sparse: got profile decode, need a profile with the head roles of streaming: this server "
       "stores no more of its streaming heads"},
  };
  for (const Case& c : cases) {
    const ManualClock clock;
    TestEngine test = MakeTestEngine(shape, {.step_tokens_max = c.step_tokens_max}, clock, {}, true,
                                     1 << 20, c.residency, c.sparse_ops);
    const Status status = test.engine->Submit(Ask(c.plan, 20, 1)).status();
    EXPECT_EQ(status.message(), c.error) << c.name;
    EXPECT_EQ(status.code(), *c.error == 0 ? StatusCode::kOk : StatusCode::kInvalidArgument);
    EXPECT_TRUE(test.engine->CheckInvariants().ok());
  }
}

TEST(SparseIntakeTest, AGrainNeedsRoomInWindowsAndForPromptLogprobs) {
  FakeRunner::Shape shape = SparseShape();
  shape.groups.push_back(WindowGroup(6, 3));
  shape.group_pages = {64, 4};  // enough for single tokens, not for eight
  const ManualClock clock;
  TestEngine narrow = MakeTestEngine(shape, {.running_max = 4}, clock);
  EXPECT_EQ(narrow.engine->Submit(Ask(Named(shape, "prefill"), 20, 1)).status().message(),
            "sparse: prefill of profile prefill computes 8 tokens at once, the pages of a window "
            "hold fewer; raise kv.pool_bytes");
  EXPECT_TRUE(narrow.engine->Submit(Ask(nullptr, 20, 1)).ok());
  shape.group_pages = {64, 6};
  shape.logit_rows_max = 4;
  TestEngine wide = MakeTestEngine(shape, {.running_max = 4}, clock);
  EXPECT_EQ(RunOne(wide, Ask(Named(shape, "prefill"), 50, 3)).tokens.size(), 3u);
  Request logprobs = Ask(Named(shape, "prefill"), 20, 1);
  logprobs.prompt_logprobs = 0;
  EXPECT_EQ(wide.engine->Submit(logprobs).status().code(), StatusCode::kInvalidArgument);
}

TEST(SparseIntakeTest, PromptsOfEqualFingerprintHaveEqualKv) {
  const FakeRunner::Shape shape = SparseShape();
  const auto of = [&](const char* name, int64_t tokens) {
    return PromptFingerprint(*Named(shape, name), tokens);
  };
  EXPECT_EQ(of("decode", 40), 0u);   // sparse decode alone: dense prompts
  EXPECT_EQ(of("prefill", 11), 0u);  // too short to be sparse
  EXPECT_NE(of("prefill", 12), 0u);
  EXPECT_EQ(of("prefill", 12), of("prefill", 99));
  EXPECT_NE(of("all", 11), 0u);  // its heads stream all the same
  EXPECT_NE(of("all", 11), of("all", 12));
  EXPECT_NE(of("spans", 40), of("spans", 41));  // they grow with the prompt
  EXPECT_EQ(EndTokens(*Named(shape, "both")), 3);
  kvcache::SparsePlan delta = *Named(shape, "both");
  delta.prefill.correct = kernels::PrefillCorrectKind::kDelta;
  EXPECT_EQ(EndTokens(delta), 128 + 64);
}

TEST(SparseEngineTest, EveryPlanGivesTheSameWholeChunkedHitAndPreempted) {
  for (const PlanRef& plan : AllFakePlans(8)) {
    FakeRunner::Shape shape = SparseShape();
    const ManualClock clock;
    TestEngine whole = MakeTestEngine(shape, {}, clock, {}, false);
    const std::vector<TokenId> expected = RunOne(whole, Ask(plan, 45, 30)).tokens;
    ASSERT_EQ(expected.size(), 30u);
    TestEngine chunked = MakeTestEngine(shape, {.step_tokens_max = 19}, clock);
    for (const int64_t cached : {0, plan->sparse_prefill ? 40 : 44}) {
      const Heard heard = RunOne(chunked, Ask(plan, 45, 30));
      EXPECT_EQ(heard.tokens, expected) << plan->name;
      EXPECT_EQ(heard.finished->usage.cached_tokens, cached) << plan->name;
    }
    shape.group_pages = {26};  // two of 75 tokens do not fit
    TestEngine small = MakeTestEngine(shape, {}, clock, {}, false);
    auto first = small.engine->Submit(MakeRequest(Prompt(20, 9), 40));
    const Heard preempted = RunOne(small, Ask(plan, 45, 30));
    EXPECT_EQ(preempted.tokens, expected) << plan->name;
    EXPECT_GE(preempted.finished->usage.preemptions, 1) << plan->name;
    const SparseUsage& sparse = preempted.finished->usage.sparse;
    EXPECT_EQ(sparse.dense_steps + sparse.sparse_steps, 29) << plan->name;
  }
}

TEST(SparseEngineTest, OnlyPlansWithEqualPromptsShareThem) {
  const FakeRunner::Shape shape = SparseShape();
  const ManualClock clock;
  TestEngine test = MakeTestEngine(shape, {}, clock);
  const auto cached = [&](const char* name) {
    const PlanRef plan = *name == 0 ? nullptr : Named(shape, name);
    return RunOne(test, Ask(plan, 45, 5)).finished->usage.cached_tokens;
  };
  EXPECT_EQ(cached("decode"), 0);
  EXPECT_EQ(cached(""), 44);
  EXPECT_EQ(cached("prefill"), 0);
  EXPECT_EQ(cached("prefill"), 40);
  EXPECT_EQ(cached("both"), 0);  // of another fingerprint: its last rows are dense
  EXPECT_EQ(cached("both"), 40);
  EXPECT_EQ(cached("decode"), 44);
}

TEST(SparseEngineTest, OutputIsNotPublished) {
  const FakeRunner::Shape shape = SparseShape();
  const ManualClock clock;
  TestEngine test = MakeTestEngine(shape, {}, clock);
  for (const char* name : {"decode", "prefill", "streaming"}) {
    std::vector<TokenId> talk = Prompt(17, 3);
    Request request = Ask(Named(shape, name), 0, 24);
    request.prompt = talk;
    const Heard heard = RunOne(test, request);
    talk.insert(talk.end(), heard.tokens.begin(), heard.tokens.end());
    request.prompt = talk;
    EXPECT_EQ(RunOne(test, request).finished->usage.cached_tokens, 16) << name;
  }
}

TEST(SparseEngineTest, ResidencyKeepsSinkAndWindowAndReusesNoPrefix) {
  FakeRunner::Shape shape = SparseShape();
  shape.groups.push_back(WindowGroup(6, 3));
  shape.group_pages = {64, 8};
  const ManualClock clock;
  const PlanRef plan = Named(shape, "streaming");
  TestEngine test = MakeTestEngine(shape, {.step_tokens_max = 8}, clock, {}, true, 1 << 20, plan);
  auto stream = test.engine->Submit(Ask(plan, 120, 60));
  ASSERT_TRUE(stream.ok()) << stream.status().ToString();
  int64_t used_max = 0, full_max = 0;
  while (test.engine->StepOnce()) {
    const std::vector<PageCounts> counts = test.engine->page_counts();
    for (const PageCounts& group : counts) {
      ASSERT_EQ(group.free + group.used + group.cached, group.total);
    }
    full_max = std::max(full_max, counts[0].used);
    used_max = std::max(used_max, counts[1].used);
    ASSERT_TRUE(test.engine->CheckInvariants().ok());
  }
  EXPECT_EQ(full_max, 45);  // 179 tokens in pages of four
  EXPECT_LE(used_max, 5);   // sink, a window and a chunk
  Heard heard;
  heard.Drain(*stream);
  EXPECT_EQ(heard.tokens.size(), 60u);
  EXPECT_EQ(RunOne(test, Ask(plan, 120, 60)).tokens, heard.tokens);
  EXPECT_EQ(test.engine->stats().prefix_hit_tokens, 0u);
  EXPECT_TRUE(test.runner->faults.empty()) << test.runner->faults.front();
}

TEST(SparseEngineTest, UsageAndStatsCountWhatWasRead) {
  const FakeRunner::Shape shape = SparseShape();
  const ManualClock clock;
  TestEngine test = MakeTestEngine(shape, {.step_tokens_max = 16}, clock);
  Request request = Ask(Named(shape, "both"), 40, 21);
  request.sparse.audit_fraction = 1;
  const SparseUsage usage = RunOne(test, request).finished->usage.sparse;
  EXPECT_EQ(usage.dense_steps, 0);
  EXPECT_EQ(usage.sparse_steps, 20);
  EXPECT_EQ(usage.prefill_blocks_considered, 40);  // as the FakeRunner counts
  EXPECT_EQ(usage.prefill_blocks_selected, 3);     // one per chunk
  EXPECT_EQ(usage.pages_selected, 20);
  EXPECT_DOUBLE_EQ(usage.estimated_mass, 0.5);
  EXPECT_EQ(usage.audited_steps, 20);
  double mass = 0;
  for (int64_t position = 40; position < 60; ++position) {
    mass += FakeRunner::CapturedMass(position, 1) / 20;
  }
  for (int g = 0; g < SparseUsage::kLayerGroups; ++g) {
    EXPECT_NEAR(usage.captured_mass[g], mass, 1e-6);
    EXPECT_NEAR(usage.output_error[g], 1 - mass, 1e-6);
  }
  EXPECT_EQ(usage.budget_widened, 0);
  const SparseStats& stats = test.engine->stats().sparse;
  EXPECT_EQ(stats.sparse_steps, 20u);
  EXPECT_EQ(stats.dense_steps, 0u);
  EXPECT_EQ(stats.pages_considered, static_cast<uint64_t>(usage.pages_considered));
  EXPECT_EQ(stats.pages_selected, 20u);
  EXPECT_EQ(stats.prefill_blocks_considered, 40u);
  EXPECT_EQ(stats.prefill_blocks_selected, 3u);
  EXPECT_EQ(stats.audited_steps, 20u);
  EXPECT_EQ(stats.group_audits[2], 20u);
  EXPECT_NEAR(stats.captured_mass[1], 20 * mass, 1e-5);
  RunOne(test, Ask(nullptr, 40, 9));  // without a plan: none of it
  EXPECT_EQ(stats.sparse_steps, 20u);
  const SparseUsage short_usage =
      RunOne(test, Ask(Named(shape, "decode"), 4, 9)).finished->usage.sparse;
  EXPECT_EQ(short_usage.dense_steps, 5);  // below ten tokens
  EXPECT_EQ(short_usage.sparse_steps, 3);
}

// One sequence's decode steps, as the loop fills and lands them.
struct Steps {
  explicit Steps(SparseOptions options, int32_t prompt_in = 20)
      : prompt(prompt_in), progress(options, 5, std::vector<TokenId>{1, 2, 3}) {}
  StepSequence Fill(int64_t output) {
    StepSequence step;
    step.decode = true;
    step.prompt_tokens = prompt;
    step.first_position = prompt + static_cast<int32_t>(output);
    progress.Fill(step);
    return step;
  }
  void Land(int64_t output, float mass) {
    SparseReport report;
    report.audits[0] = {.captured_mass = 2 * mass, .output_error = 0, .layers = 2};
    report.audits[2] = {.captured_mass = mass, .output_error = 0, .layers = 1};
    progress.Land(output, report, stats);
  }
  std::vector<int32_t> Ages(int64_t count) {
    std::vector<int32_t> ages;
    for (int64_t k = 0; k < count; ++k) ages.push_back(Fill(k).steps_since_choice);
    return ages;
  }
  int32_t prompt;
  SparseProgress progress;
  EngineStats stats;
};

TEST(SparseProgressTest, ChoicesAreCountedByTheRequestsOwnOutput) {
  struct Case {
    const char* name;
    PlanRef plan;
    int32_t prompt;
    std::vector<int32_t> ages;
  };
  const Case cases[] = {
      {"every third", DecodePlan(RefreshKind::kEveryN, 3), 20, {-1, 1, 2, 3, 1, 2, 3, 1}},
      {"every step", DecodePlan(RefreshKind::kEveryStep, 1), 20, {-1, 1, 1, 1, 1, 1, 1, 1}},
      {"cosine", DecodePlan(RefreshKind::kCosine, 1), 20, {-1, 1, 2, 3, 4, 5, 6, 7}},
      // Below ten tokens nothing is chosen: the first choice is that of the third step.
      {"dense at first", DecodePlan(RefreshKind::kEveryN, 3), 7, {-1, -1, -1, 1, 2, 3, 1, 2}},
  };
  for (const Case& c : cases) {
    Steps steps({.plan = c.plan}, c.prompt);
    EXPECT_EQ(steps.Ages(8), c.ages) << c.name;
    steps.progress.Restart();  // preempted: all over again
    EXPECT_EQ(steps.Ages(8), c.ages) << c.name;
  }
}

TEST(SparseProgressTest, AuditsAreTheSameStepsOfTheSameRequest) {
  const auto audited = [](double fraction, uint64_t seed) {
    SparseProgress progress({.plan = DecodePlan(), .audit_fraction = fraction}, seed,
                            std::vector<TokenId>{1, 2, 3});
    std::vector<int> steps;
    for (int k = 0; k < 2000; ++k) {
      StepSequence step;
      step.decode = true;
      step.prompt_tokens = 20;
      step.first_position = 20 + k;
      progress.Fill(step);
      if (step.audit) steps.push_back(k);
    }
    return steps;
  };
  EXPECT_EQ(audited(0, 1).size(), 0u);
  EXPECT_EQ(audited(1, 1).size(), 2000u);
  EXPECT_NEAR(static_cast<double>(audited(0.1, 1).size()), 200, 45);
  EXPECT_EQ(audited(0.1, 1), audited(0.1, 1));
  EXPECT_NE(audited(0.1, 1), audited(0.1, 2));
}

TEST(SparseProgressTest, AMassBelowTheFloorWidensTheBudgetFromTheStepAfterNext) {
  Steps steps({.plan = DecodePlan(), .audit_fraction = 1, .mass_floor = 0.5});
  EXPECT_TRUE(steps.Fill(0).audit);
  steps.Land(0, 0.5f);  // at the floor
  steps.Fill(1);
  steps.Land(1, 0.49f);
  EXPECT_EQ(steps.Fill(2).budget_scale, 1.0f);
  steps.Land(2, 0.4f);
  StepSequence wider = steps.Fill(3);
  EXPECT_EQ(wider.budget_scale, 1.5f);
  EXPECT_EQ(wider.steps_since_choice, -1);  // it may never have been chosen under this budget
  steps.Land(3, 0.9f);
  EXPECT_EQ(steps.Fill(4).budget_scale, 2.25f);
  EXPECT_EQ(steps.progress.usage().budget_widened, 2);
  EXPECT_EQ(steps.stats.sparse.budgets_widened, 2u);
  // Computed again: the same budgets, no audit, nothing is counted twice.
  steps.progress.Restart();
  for (int64_t k = 0; k < 4; ++k) {
    const StepSequence again = steps.Fill(k);
    EXPECT_EQ(again.budget_scale, k < 3 ? 1.0f : 1.5f) << k;
    EXPECT_FALSE(again.audit);
    steps.Land(k, 0.1f);
  }
  EXPECT_EQ(steps.progress.usage().budget_widened, 2);
  EXPECT_EQ(steps.progress.usage().audited_steps, 4);
  for (int64_t k = 4; k < 100; ++k) {
    steps.Fill(k);
    steps.Land(k, 0);
  }
  EXPECT_EQ(steps.progress.usage().budget_widened, SparseProgress::kWidenMax);
}

}  // namespace
}  // namespace lacuna::engine
