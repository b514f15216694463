#include "engine/engine.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "tests/engine/engine_fixture.h"

namespace lacuna::engine {
namespace {

std::vector<TokenId> Prompt(int64_t tokens, TokenId first = 1) {
  std::vector<TokenId> prompt(static_cast<size_t>(tokens));
  for (size_t i = 0; i < prompt.size(); ++i) {
    prompt[i] = static_cast<TokenId>((static_cast<size_t>(first) + i * 7) % 32);
  }
  return prompt;
}

// Turns the loop until nothing is left; the invariants hold after every turn.
void RunDry(Engine& engine) {
  for (int step = 0; !engine.Idle(); ++step) {
    ASSERT_LT(step, 10000) << "no progress";
    engine.StepOnce();
    const Status status = engine.CheckInvariants();
    ASSERT_TRUE(status.ok()) << status.ToString();
  }
}

Heard RunOne(TestEngine& test, Request request) {
  Heard heard;
  auto stream = test.engine->Submit(std::move(request));
  if (!stream.ok()) {
    ADD_FAILURE() << stream.status().ToString();
    return heard;
  }
  RunDry(*test.engine);
  heard.Drain(*stream);
  EXPECT_EQ(heard.terminals, 1);
  EXPECT_EQ(heard.after_terminal, 0);
  return heard;
}

TEST(EngineTest, OneRequestGivesTheReferenceTokens) {
  ManualClock clock;
  TestEngine test = MakeTestEngine(SmallShape(), {}, clock);
  const Heard heard = RunOne(test, MakeRequest(Prompt(10), 9));
  EXPECT_EQ(heard.tokens, Reference(test.shape, Prompt(10), 9));
  ASSERT_TRUE(heard.finished);
  EXPECT_EQ(heard.finished->reason, FinishReason::kLength);
  EXPECT_EQ(heard.finished->usage.completion_tokens, 9);
  EXPECT_EQ(heard.finished->usage.prompt_tokens, 10);
  EXPECT_EQ(test.engine->page_counts()[0].used, 0);
  EXPECT_EQ(test.runner->runs, 9);  // the first token comes from the prefill's own logits
  EXPECT_FALSE(test.engine->StepOnce());
}

TEST(EngineTest, ChunksOfAnySizeGiveTheSameTokens) {
  for (int64_t chunk = 1; chunk <= 12; ++chunk) {
    ManualClock clock;
    TestEngine test = MakeTestEngine(SmallShape(), {.step_tokens_max = chunk}, clock);
    EXPECT_EQ(RunOne(test, MakeRequest(Prompt(11), 5)).tokens,
              Reference(test.shape, Prompt(11), 5));
  }
}

TEST(EngineTest, ASecondEqualPromptHitsAllButItsLastPage) {
  ManualClock clock;
  TestEngine test = MakeTestEngine(SmallShape(), {}, clock);
  EXPECT_EQ(RunOne(test, MakeRequest(Prompt(12), 3)).finished->usage.cached_tokens, 0);
  const Heard again = RunOne(test, MakeRequest(Prompt(12), 3));
  EXPECT_EQ(again.finished->usage.cached_tokens, 8);  // 12 would leave nothing to compute
  EXPECT_EQ(again.tokens, Reference(test.shape, Prompt(12), 3));
  const Heard longer = RunOne(test, MakeRequest(Prompt(13), 3));
  EXPECT_EQ(longer.finished->usage.cached_tokens, 12);
  EXPECT_EQ(test.engine->stats().prefix_hit_tokens, 20u);
  EXPECT_GT(test.engine->page_counts()[0].cached, 0);
}

TEST(EngineTest, AnotherScopeNeverHits) {
  ManualClock clock;
  TestEngine test = MakeTestEngine(SmallShape(), {}, clock);
  RunOne(test, MakeRequest(Prompt(12), 3, 1));
  EXPECT_EQ(RunOne(test, MakeRequest(Prompt(12), 3, 2)).finished->usage.cached_tokens, 0);
}

TEST(EngineTest, GeneratedPagesAreReusedByTheNextTurn) {
  ManualClock clock;
  TestEngine test = MakeTestEngine(SmallShape(), {}, clock);
  std::vector<TokenId> talk = Prompt(6);
  const Heard heard = RunOne(test, MakeRequest(talk, 8));
  talk.insert(talk.end(), heard.tokens.begin(), heard.tokens.end());
  talk.push_back(3);
  const Heard next = RunOne(test, MakeRequest(talk, 2));
  EXPECT_EQ(next.finished->usage.cached_tokens, 12);  // 13 were computed
  EXPECT_EQ(next.tokens, Reference(test.shape, talk, 2));
}

TEST(EngineTest, AWindowModelKeepsItsWindowAndNeverHits) {
  FakeRunner::Shape shape = SmallShape();
  shape.groups = {FullGroup(), WindowGroup(6, 3)};
  shape.group_pages = {32, 5};  // sink page, 3 of the window and its edge
  ManualClock clock;
  TestEngine test = MakeTestEngine(shape, {.step_tokens_max = 8}, clock);
  EXPECT_EQ(RunOne(test, MakeRequest(Prompt(70), 30)).tokens, Reference(shape, Prompt(70), 30));
  EXPECT_EQ(RunOne(test, MakeRequest(Prompt(70), 3)).finished->usage.cached_tokens, 0);
  EXPECT_EQ(test.engine->stats().prefix_queried_tokens, 0u);
}

TEST(EngineTest, StopsAtEosUnlessIgnoredAndAtStopTokens) {
  ManualClock clock;
  const std::vector<TokenId> reference = Reference(SmallShape(), Prompt(5), 6);
  const TokenId third = reference[2];
  ASSERT_EQ(std::count(reference.begin(), reference.begin() + 2, third), 0);
  TestEngine test = MakeTestEngine(SmallShape(), {}, clock, {third});
  Heard heard = RunOne(test, MakeRequest(Prompt(5), 6));
  EXPECT_EQ(heard.tokens, std::vector<TokenId>(reference.begin(), reference.begin() + 2));
  EXPECT_EQ(heard.finished->reason, FinishReason::kStop);
  EXPECT_EQ(heard.finished->stop_token, third);

  Request ignoring = MakeRequest(Prompt(5), 6);
  ignoring.sampling.ignore_eos = true;
  EXPECT_EQ(RunOne(test, ignoring).tokens, reference);
  ignoring.sampling.stop_token_ids = {reference[0]};
  heard = RunOne(test, ignoring);
  EXPECT_TRUE(heard.tokens.empty());
  EXPECT_EQ(heard.finished->stop_token, reference[0]);
}

TEST(EngineTest, ContextEndsASequence) {
  ManualClock clock;
  TestEngine test = MakeTestEngine(SmallShape(), {.context_tokens_max = 12}, clock);
  const Heard heard = RunOne(test, MakeRequest(Prompt(10), 100));
  EXPECT_EQ(heard.tokens.size(), 2u);
  EXPECT_EQ(heard.finished->reason, FinishReason::kLength);
  EXPECT_EQ(test.engine->Submit(MakeRequest(Prompt(12), 1)).status().code(), StatusCode::kTooLong);
  EXPECT_TRUE(test.engine->Submit(MakeRequest(Prompt(11), 1)).ok());
}

TEST(EngineTest, APoolSmallerThanTheContextLimitsIt) {
  FakeRunner::Shape shape = SmallShape();
  shape.group_pages = {3};
  ManualClock clock;
  TestEngine test = MakeTestEngine(shape, {}, clock);
  EXPECT_EQ(test.engine->context_tokens_max(), 13);
  EXPECT_EQ(test.engine->Submit(MakeRequest(Prompt(13), 1)).status().code(), StatusCode::kTooLong);
  EXPECT_EQ(RunOne(test, MakeRequest(Prompt(12), 9)).tokens, Reference(shape, Prompt(12), 1));
}

TEST(EngineTest, RefusesBadRequestsAndFullQueues) {
  ManualClock clock;
  TestEngine test =
      MakeTestEngine(SmallShape(), {.queue_len_max = 2, .queue_tokens_max = 9}, clock);
  const auto code = [&](Request request) {
    return test.engine->Submit(std::move(request)).status().code();
  };
  EXPECT_EQ(code(MakeRequest({}, 1)), StatusCode::kInvalidArgument);
  EXPECT_EQ(code(MakeRequest({32}, 1)), StatusCode::kInvalidArgument);
  EXPECT_EQ(code(MakeRequest({-1}, 1)), StatusCode::kInvalidArgument);
  EXPECT_EQ(code(MakeRequest({1}, 0)), StatusCode::kInvalidArgument);
  EXPECT_EQ(code(MakeRequest(Prompt(10), 1)), StatusCode::kExhausted);  // tokens
  auto first = test.engine->Submit(MakeRequest(Prompt(3), 1));
  auto second = test.engine->Submit(MakeRequest(Prompt(3), 1));
  EXPECT_EQ(code(MakeRequest(Prompt(3), 1)), StatusCode::kExhausted);  // length
  EXPECT_EQ(test.engine->stats().rejected, 6u);
  RunDry(*test.engine);
  EXPECT_EQ(code(MakeRequest(Prompt(3), 1)), StatusCode::kOk);
  test.engine->Drain();
  EXPECT_EQ(code(MakeRequest(Prompt(3), 1)), StatusCode::kUnavailable);
}

TEST(EngineTest, DecodesGoOnBesideALongPrefill) {
  FakeRunner::Shape shape = SmallShape();
  shape.group_pages = {64};
  ManualClock clock;
  TestEngine test = MakeTestEngine(shape, {.step_tokens_max = 4}, clock);
  auto talker = test.engine->Submit(MakeRequest(Prompt(3), 30));
  test.engine->StepOnce();
  auto reader = test.engine->Submit(MakeRequest(Prompt(60, 5), 2));
  Heard talk, read;
  for (int step = 0; step < 15; ++step) test.engine->StepOnce();
  talk.Drain(*talker);
  EXPECT_EQ(talk.tokens.size(), 16u);  // one in each step
  EXPECT_GE(test.runner->mixed_steps, 10);
  RunDry(*test.engine);
  talk.Drain(*talker);
  read.Drain(*reader);
  EXPECT_EQ(talk.tokens, Reference(shape, Prompt(3), 30));
  EXPECT_EQ(read.tokens, Reference(shape, Prompt(60, 5), 2));
}

TEST(EngineTest, PreemptedSequencesGiveTheSameTokens) {
  FakeRunner::Shape shape = SmallShape();
  shape.group_pages = {12};
  ManualClock clock;
  TestEngine test = MakeTestEngine(shape, {}, clock, {}, /*prefix_cache=*/false);
  std::vector<RequestStream> streams;
  for (TokenId i = 0; i < 4; ++i) {
    auto stream = test.engine->Submit(MakeRequest(Prompt(5, i), 25));
    ASSERT_TRUE(stream.ok());
    streams.push_back(std::move(*stream));
  }
  RunDry(*test.engine);
  int32_t preemptions = 0;
  for (TokenId i = 0; i < 4; ++i) {
    Heard heard;
    heard.Drain(streams[static_cast<size_t>(i)]);
    EXPECT_EQ(heard.tokens, Reference(shape, Prompt(5, i), 25));
    preemptions += heard.finished->usage.preemptions;
  }
  EXPECT_GE(preemptions, 1);
  EXPECT_EQ(test.engine->stats().preemptions, static_cast<uint64_t>(preemptions));
}

TEST(EngineTest, CancelEndsWaitingAndRunningOnes) {
  ManualClock clock;
  TestEngine test = MakeTestEngine(SmallShape(), {.running_max = 1}, clock);
  auto running = test.engine->Submit(MakeRequest(Prompt(5), 50));
  auto waiting = test.engine->Submit(MakeRequest(Prompt(5), 50));
  for (int i = 0; i < 3; ++i) test.engine->StepOnce();
  waiting->Cancel();
  running->Cancel();
  running->Cancel();
  test.engine->StepOnce();
  EXPECT_TRUE(test.engine->Idle());
  EXPECT_EQ(test.engine->page_counts()[0].used, 0);
  for (RequestStream* stream : {&*running, &*waiting}) {
    Heard heard;
    heard.Drain(*stream);
    EXPECT_EQ(heard.terminals, 1);
    EXPECT_EQ(heard.finished->reason, FinishReason::kCancelled);
  }
  EXPECT_EQ(test.engine->stats().cancelled, 2u);
  EXPECT_TRUE(test.engine->CheckInvariants().ok());
}

TEST(EngineTest, ADroppedStreamCancels) {
  ManualClock clock;
  TestEngine test = MakeTestEngine(SmallShape(), {}, clock);
  { auto stream = test.engine->Submit(MakeRequest(Prompt(5), 50)); }
  test.engine->StepOnce();
  EXPECT_TRUE(test.engine->Idle());
  EXPECT_EQ(test.engine->stats().cancelled, 1u);
}

TEST(EngineTest, DeadlinesFailWaitingAndRunningOnes) {
  ManualClock clock;
  TestEngine test = MakeTestEngine(SmallShape(), {.running_max = 1}, clock);
  Request request = MakeRequest(Prompt(5), 50);
  request.deadline = clock.Now() + std::chrono::seconds(2);
  auto running = test.engine->Submit(request);
  auto waiting = test.engine->Submit(request);
  test.engine->StepOnce();
  EXPECT_EQ(test.engine->stats().running, 1);
  EXPECT_EQ(test.engine->stats().waiting, 1);
  clock.Advance(std::chrono::seconds(2));
  test.engine->StepOnce();
  EXPECT_TRUE(test.engine->Idle());
  for (RequestStream* stream : {&*running, &*waiting}) {
    Heard heard;
    heard.Drain(*stream);
    ASSERT_TRUE(heard.failed);
    EXPECT_EQ(heard.failed->status.code(), StatusCode::kDeadline);
  }
  EXPECT_EQ(test.engine->stats().waiting_tokens, 0);
}

TEST(EngineTest, ASlowReaderLosesOnlyItsOwnRequest) {
  ManualClock clock;
  TestEngine test = MakeTestEngine(SmallShape(), {.events_max = 4}, clock);
  auto slow = test.engine->Submit(MakeRequest(Prompt(5), 20));
  auto quick = test.engine->Submit(MakeRequest(Prompt(5, 9), 20));
  Heard slow_heard, quick_heard;
  while (!test.engine->Idle()) {
    test.engine->StepOnce();
    quick_heard.Drain(*quick);
  }
  slow_heard.Drain(*slow);
  EXPECT_EQ(slow_heard.tokens.size(), 4u);
  ASSERT_TRUE(slow_heard.failed);
  EXPECT_EQ(slow_heard.failed->status.code(), StatusCode::kExhausted);
  EXPECT_EQ(quick_heard.tokens, Reference(test.shape, Prompt(5, 9), 20));
}

TEST(EngineTest, ANanFailsItsOwnRequestOnly) {
  ManualClock clock;
  TestEngine test = MakeTestEngine(SmallShape(), {}, clock);
  const std::vector<TokenId> poisoned = {7, 7, 31};
  test.runner->nan_after = 31;
  const std::vector<TokenId> healthy = Reference(test.shape, Prompt(4), 3);
  ASSERT_EQ(std::ranges::count(healthy, 31), 0);
  auto bad = test.engine->Submit(MakeRequest(poisoned, 5));
  auto good = test.engine->Submit(MakeRequest(Prompt(4), 3));
  RunDry(*test.engine);
  Heard bad_heard, good_heard;
  bad_heard.Drain(*bad);
  good_heard.Drain(*good);
  ASSERT_TRUE(bad_heard.failed);
  EXPECT_EQ(bad_heard.failed->status.code(), StatusCode::kInternal);
  EXPECT_EQ(good_heard.tokens, healthy);
}

TEST(EngineTest, CountsTheRowsThatSamplingReadTwice) {
  ManualClock clock;
  TestEngine test = MakeTestEngine(SmallShape(), {}, clock);
  RunOne(test, MakeRequest(Prompt(10), 4));
  EXPECT_EQ(test.engine->stats().sample_rereads, 0u);
  test.runner->rereads = 1;
  RunOne(test, MakeRequest(Prompt(10), 5));
  EXPECT_EQ(test.engine->stats().sample_rereads, 5u);
}

TEST(EngineTest, ADeviceErrorFailsAllAndClosesIntake) {
  ManualClock clock;
  TestEngine test = MakeTestEngine(SmallShape(), {.running_max = 1}, clock);
  auto first = test.engine->Submit(MakeRequest(Prompt(5), 20));
  auto second = test.engine->Submit(MakeRequest(Prompt(5), 20));
  test.engine->StepOnce();
  test.runner->fail_next = InternalError("device lost");
  test.engine->StepOnce();
  EXPECT_TRUE(test.engine->Idle());
  EXPECT_FALSE(test.engine->healthy());
  for (RequestStream* stream : {&*first, &*second}) {
    Heard heard;
    heard.Drain(*stream);
    EXPECT_EQ(heard.terminals, 1);
    EXPECT_EQ(heard.failed->status.message(), "device lost");
  }
  EXPECT_EQ(test.engine->Submit(MakeRequest(Prompt(5), 1)).status().code(),
            StatusCode::kUnavailable);
  EXPECT_EQ(test.engine->page_counts()[0].used, 0);
}

TEST(EngineTest, PromptLogprobsAcrossChunksBeforeTheFirstToken) {
  for (const int64_t chunk : {1, 3, 4, 64}) {
    FakeRunner::Shape shape = SmallShape();
    shape.logit_rows_max = 5;
    ManualClock clock;
    TestEngine test = MakeTestEngine(shape, {.step_tokens_max = chunk, .running_max = 5}, clock);
    Request request = MakeRequest(Prompt(11), 2);
    request.prompt_logprobs = 1;
    const Heard heard = RunOne(test, request);
    ASSERT_EQ(heard.prompt_logprobs.size(), 10u);
    for (size_t i = 0; i < 10; ++i) {
      const std::vector<TokenId> prompt = Prompt(11);
      const TokenId likely = FakeRunner::Next(shape, std::span(prompt).first(i + 1));
      EXPECT_EQ(heard.prompt_logprobs[i].token, prompt[i + 1]);
      ASSERT_EQ(heard.prompt_logprobs[i].top.size(), 1u);
      EXPECT_EQ(heard.prompt_logprobs[i].top[0].first, likely);
    }
    EXPECT_EQ(heard.tokens, Reference(shape, Prompt(11), 2));
    EXPECT_LE(test.runner->rows_max, 5);
    // Again, with a warm cache: all positions are computed all the same.
    EXPECT_EQ(RunOne(test, request).prompt_logprobs.size(), 10u);
  }
}

TEST(EngineTest, MaxTokensZeroEndsAfterThePrompt) {
  ManualClock clock;
  TestEngine test = MakeTestEngine(SmallShape(), {}, clock);
  for (const int64_t length : {1, 6}) {
    Request request = MakeRequest(Prompt(length), 0);
    request.prompt_logprobs = 0;
    const Heard heard = RunOne(test, request);
    EXPECT_TRUE(heard.tokens.empty());
    EXPECT_EQ(heard.prompt_logprobs.size(), static_cast<size_t>(length) - 1);
    EXPECT_EQ(heard.finished->reason, FinishReason::kLength);
  }
}

// An asynchronous runner: the next step is launched before the results of the one before are seen.
FakeRunner::Shape AsynchronousShape() {
  FakeRunner::Shape shape = SmallShape();
  shape.group_pages = {200};
  shape.asynchronous = true;
  return shape;
}

TEST(EngineAheadTest, TokensAreTheSameAndTakenFromTheStepBefore) {
  ManualClock clock;
  TestEngine test = MakeTestEngine(AsynchronousShape(), {.step_tokens_max = 8}, clock);
  std::vector<RequestStream> streams;
  for (TokenId i = 0; i < 6; ++i) {
    auto stream = test.engine->Submit(MakeRequest(Prompt(5 + 7 * i, i), 20 + i));
    ASSERT_TRUE(stream.ok());
    streams.push_back(std::move(*stream));
  }
  RunDry(*test.engine);
  for (TokenId i = 0; i < 6; ++i) {
    Heard heard;
    heard.Drain(streams[static_cast<size_t>(i)]);
    EXPECT_EQ(heard.tokens, Reference(test.shape, Prompt(5 + 7 * i, i), 20 + i));
    EXPECT_EQ(heard.terminals, 1);
  }
  EXPECT_EQ(test.runner->launched_ahead, test.runner->runs - 1);  // all but the first
  EXPECT_GT(test.runner->pending_tokens_run, 100);
  EXPECT_TRUE(test.runner->faults.empty()) << test.runner->faults.front();
}

TEST(EngineAheadTest, ASequenceThatEndsByLengthIsNotRunAgain) {
  ManualClock clock;
  TestEngine test = MakeTestEngine(AsynchronousShape(), {}, clock);
  EXPECT_EQ(RunOne(test, MakeRequest(Prompt(10), 9)).tokens, Reference(test.shape, Prompt(10), 9));
  EXPECT_EQ(test.runner->runs, 9);
  EXPECT_EQ(test.runner->launched_ahead, 8);
}

TEST(EngineAheadTest, AStoppedOneIsDroppedFromTheStepUnderWay) {
  const std::vector<TokenId> reference = Reference(SmallShape(), Prompt(5), 6);
  ManualClock clock;
  TestEngine test = MakeTestEngine(AsynchronousShape(), {}, clock, {reference[3]});
  ASSERT_EQ(std::count(reference.begin(), reference.begin() + 3, reference[3]), 0);
  auto other = test.engine->Submit(MakeRequest(Prompt(9, 4), 30));
  const Heard heard = RunOne(test, MakeRequest(Prompt(5), 6));
  EXPECT_EQ(heard.tokens, std::vector<TokenId>(reference.begin(), reference.begin() + 3));
  EXPECT_EQ(heard.finished->reason, FinishReason::kStop);
  Heard rest;
  rest.Drain(*other);
  EXPECT_EQ(rest.tokens,
            Reference(test.shape, Prompt(9, 4), rest.finished->usage.completion_tokens));
  EXPECT_TRUE(test.runner->faults.empty()) << test.runner->faults.front();
}

TEST(EngineAheadTest, PenaltiesWaitForTheToken) {
  ManualClock clock;
  TestEngine test = MakeTestEngine(AsynchronousShape(), {}, clock);
  Request request = MakeRequest(Prompt(6), 20);
  request.sampling.repetition_penalty = 1.1;
  const Heard heard = RunOne(test, request);
  EXPECT_EQ(heard.tokens, Reference(test.shape, Prompt(6), 20));
  EXPECT_EQ(test.runner->launched_ahead, 0);
}

TEST(EngineAheadTest, CancelUnderWayGivesBackPagesAtOnce) {
  ManualClock clock;
  TestEngine test = MakeTestEngine(AsynchronousShape(), {}, clock);
  auto stream = test.engine->Submit(MakeRequest(Prompt(5), 50));
  for (int i = 0; i < 3; ++i) test.engine->StepOnce();
  stream->Cancel();
  test.engine->StepOnce();
  EXPECT_TRUE(test.engine->Idle());
  EXPECT_EQ(test.engine->page_counts()[0].used, 0);
  Heard heard;
  heard.Drain(*stream);
  EXPECT_EQ(heard.finished->reason, FinishReason::kCancelled);
  EXPECT_FALSE(test.engine->StepOnce());
  EXPECT_EQ(test.runner->runs, 4);  // the step under way was waited for
  EXPECT_EQ(RunOne(test, MakeRequest(Prompt(7), 4)).tokens, Reference(test.shape, Prompt(7), 4));
}

TEST(EngineAheadTest, ADeviceErrorOfEitherKindFailsAll) {
  for (const bool at_launch : {true, false}) {
    ManualClock clock;
    TestEngine test = MakeTestEngine(AsynchronousShape(), {}, clock);
    auto first = test.engine->Submit(MakeRequest(Prompt(5), 20));
    auto second = test.engine->Submit(MakeRequest(Prompt(9), 20));
    test.engine->StepOnce();
    (at_launch ? test.runner->fail_launch : test.runner->fail_next) = InternalError("device lost");
    test.engine->StepOnce();
    EXPECT_TRUE(test.engine->Idle());
    EXPECT_FALSE(test.engine->healthy());
    for (RequestStream* stream : {&*first, &*second}) {
      Heard heard;
      heard.Drain(*stream);
      EXPECT_EQ(heard.terminals, 1);
      EXPECT_EQ(heard.failed->status.message(), "device lost");
    }
    EXPECT_TRUE(test.engine->CheckInvariants().ok());
  }
}

TEST(EngineTest, StopFailsWhatIsLeft) {
  ManualClock clock;
  TestEngine test = MakeTestEngine(SmallShape(), {}, clock);
  auto taken = test.engine->Submit(MakeRequest(Prompt(5), 50));
  test.engine->StepOnce();
  auto posted = test.engine->Submit(MakeRequest(Prompt(5), 50));
  test.engine->Stop();
  test.engine->Stop();
  for (RequestStream* stream : {&*taken, &*posted}) {
    Heard heard;
    heard.Drain(*stream);
    EXPECT_EQ(heard.terminals, 1);
    EXPECT_EQ(heard.failed->status.code(), StatusCode::kUnavailable);
  }
  EXPECT_TRUE(test.engine->CheckInvariants().ok());
  test.engine.reset();
  taken->Cancel();  // a stream may outlive the engine
}

}  // namespace
}  // namespace lacuna::engine
