#include "engine/schedule/scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

namespace lacuna::engine {
namespace {

// A scheduler with its cache; plans are committed as the engine does, without running anything.
class Yard final {
 public:
  Yard(SchedulerLimits limits, int64_t pages, std::vector<kvcache::KvGroup> groups = {{}}) {
    kvcache::KvCacheOptions options;
    options.group_pages.assign(groups.size(), pages);
    options.groups = std::move(groups);
    options.page_tokens = 4;
    cache_ = std::move(*kvcache::KvCache::Create(std::move(options)));
    scheduler_ = std::make_unique<Scheduler>(limits, *cache_);
  }
  ~Yard() {
    for (auto& sequence : sequences_) cache_->Release(sequence->kv);
  }

  ScheduledSequence& Add(int64_t tokens, int32_t priority = 0) {
    auto sequence = std::make_unique<ScheduledSequence>();
    sequence->id = RequestId{++arrivals_};
    sequence->arrival = arrivals_;
    sequence->priority = priority;
    // No two prompts are alike.
    for (int64_t i = 0; i < tokens; ++i) {
      sequence->tokens.push_back(static_cast<TokenId>(arrivals_ * 1000 + static_cast<uint64_t>(i)));
    }
    sequence->prompt_tokens = tokens;
    sequence->kv = cache_->MakeSequence(CacheScope{1});
    scheduler_->Enqueue(*sequence);
    sequences_.push_back(std::move(sequence));
    return *sequences_.back();
  }

  StepPlan Plan() const { return scheduler_->Plan(cache_->MakeLedger()); }

  // Plans and commits one step; a sequence that reached its end grows by one token. As a string:
  // "1:4 2:1+ !3" is 4 tokens of 1, one token of 2, which is admitted, and 3 preempted.
  std::string Step() {
    const StepPlan plan = Plan();
    std::string text;
    std::vector<kvcache::SequenceKv*> preempted;
    std::vector<kvcache::PageClaim> claims;
    for (const PlannedRun& run : plan.runs) {
      if (!text.empty()) text += ' ';
      text += std::to_string(run.sequence->id.value);
      text += ':';
      text += std::to_string(run.tokens);
      if (run.admit) text += '+';
      const int64_t begin = run.admit ? run.hit.tokens : run.sequence->kv.computed_tokens;
      claims.push_back({&run.sequence->kv, run.admit ? &run.hit : nullptr, begin + run.tokens});
    }
    for (ScheduledSequence* s : plan.preempt) {
      text += " !";
      text += std::to_string(s->id.value);
      preempted.push_back(&s->kv);
    }
    if (plan.stuck != nullptr) text += " stuck";
    EXPECT_TRUE(cache_->Commit(preempted, claims).ok());
    for (ScheduledSequence* s : plan.preempt) scheduler_->Preempt(*s);
    for (const PlannedRun& run : plan.runs) {
      if (run.admit) scheduler_->Admit(*run.sequence);
      ScheduledSequence& s = *run.sequence;
      cache_->Advance(s.kv, s.tokens, s.kv.computed_tokens + run.tokens);
      if (s.left_tokens() == 0) s.tokens.push_back(7);
    }
    return text;
  }

  void Retire(ScheduledSequence& sequence) {
    scheduler_->Remove(sequence);
    cache_->Release(sequence.kv);
  }

  kvcache::KvCache& cache() { return *cache_; }
  Scheduler& scheduler() { return *scheduler_; }

 private:
  std::unique_ptr<kvcache::KvCache> cache_;
  std::unique_ptr<Scheduler> scheduler_;
  std::vector<std::unique_ptr<ScheduledSequence>> sequences_;
  uint64_t arrivals_ = 0;
};

TEST(SchedulerTest, AdmitsByPriorityThenArrivalUnderBothLimits) {
  struct Case {
    const char* name;
    SchedulerLimits limits;
    std::vector<int32_t> priorities;  // 4 tokens each
    const char* first_step;
  };
  const Case cases[] = {
      {"arrival", {100, 8}, {0, 0, 0}, "1:4+ 2:4+ 3:4+"},
      {"priority", {100, 8}, {2, 0, 1}, "2:4+ 3:4+ 1:4+"},
      {"negative is first", {100, 8}, {0, -1}, "2:4+ 1:4+"},
      {"running_max", {100, 2}, {0, 0, 0}, "1:4+ 2:4+"},
      {"step_tokens_max", {6, 8}, {0, 0, 0}, "1:4+ 2:2+"},
      {"rows", {100, 8, 2}, {0, 0, 0}, "1:4+ 2:4+"},
  };
  for (const Case& c : cases) {
    Yard yard(c.limits, 64);
    for (const int32_t priority : c.priorities) yard.Add(4, priority);
    EXPECT_EQ(yard.Step(), c.first_step) << c.name;
  }
}

TEST(SchedulerTest, OutputIsReplayedOneTokenAStep) {
  Yard yard({.step_tokens_max = 8, .running_max = 4}, 64);
  ScheduledSequence& s = yard.Add(13);
  s.replays_output = true;
  s.prompt_tokens = 10;  // and three that were generated before it was preempted
  EXPECT_EQ(yard.Step(), "1:8+");
  EXPECT_FALSE(s.RunsAsDecode(9, 1));  // a token of the prompt
  EXPECT_EQ(yard.Step(), "1:2");
  for (int i = 0; i < 3; ++i) {
    const StepPlan plan = yard.Plan();
    ASSERT_EQ(plan.runs.size(), 1u);
    EXPECT_TRUE(s.RunsAsDecode(s.launched_tokens(), plan.runs[0].tokens));
    EXPECT_EQ(yard.Step(), "1:1");
  }
  EXPECT_EQ(s.known_tokens(), 14);  // the replay has ended: it goes on
}

TEST(SchedulerTest, NothingBehindTheSharedTokensIsLookedUp) {
  for (const bool shares_all : {true, false}) {
    Yard yard({.step_tokens_max = 64, .running_max = 4}, 64);
    ScheduledSequence& first = yard.Add(13);
    yard.Step();
    ScheduledSequence& second = yard.Add(13);
    second.tokens = first.tokens;
    if (!shares_all) second.shared_tokens_max = 6;  // pages hold four tokens
    const StepPlan plan = yard.Plan();
    ASSERT_EQ(plan.runs.size(), 2u);
    EXPECT_EQ(plan.runs[1].hit.tokens, shares_all ? 12 : 4);
  }
}

TEST(SchedulerTest, AGrainIsComputedWholeOrNotAtAll) {
  Yard yard({.step_tokens_max = 20, .running_max = 8}, 64);
  ScheduledSequence& s = yard.Add(42);
  s.kv.grain_tokens = 8;
  EXPECT_EQ(yard.Step(), "1:16+");
  for (int i = 0; i < 3; ++i) yard.Add(4);
  EXPECT_EQ(yard.Step(), "1:16 2:4+");           // the rest of the budget is another's
  EXPECT_EQ(yard.Step(), "2:1 1:10 3:4+ 4:4+");  // to its end
}

TEST(SchedulerTest, WhoWaitsForAGrainLetsNobodyIn) {
  Yard yard({.step_tokens_max = 9, .running_max = 8}, 64);
  ScheduledSequence& first = yard.Add(3, 1);
  ScheduledSequence& second = yard.Add(3, 1);
  EXPECT_EQ(yard.Step(), "1:3+ 2:3+");
  ScheduledSequence& s = yard.Add(20);
  s.kv.grain_tokens = 8;
  yard.Add(2, 1);
  EXPECT_EQ(yard.Step(), "1:1 2:1");  // the head of the line needs eight, seven are left
  yard.Retire(first);
  EXPECT_EQ(yard.Step(), "2:1 3:8+");
  ScheduledSequence& late = yard.Add(1, -1);
  yard.Retire(second);
  EXPECT_EQ(yard.Step(), "3:8 5:1+");
  EXPECT_EQ(yard.Step(), "5:1 3:4 4:2+");
  yard.Retire(late);
  EXPECT_EQ(s.known_tokens(), 21);
}

TEST(SchedulerTest, ARunningOneWithoutItsGrainLetsNobodyIn) {
  Yard yard({.step_tokens_max = 8, .running_max = 8}, 64);
  ScheduledSequence& talker = yard.Add(4);
  ScheduledSequence& s = yard.Add(36);
  s.kv.grain_tokens = 4;
  EXPECT_EQ(yard.Step(), "1:4+ 2:4+");
  s.kv.grain_tokens = 12;  // so that its next grain is the whole budget
  yard.Add(1);
  EXPECT_EQ(yard.Step(), "1:1");
  EXPECT_EQ(yard.Step(), "1:1");
  yard.Retire(talker);
  EXPECT_EQ(yard.Step(), "2:8");
}

TEST(SchedulerTest, HitsOfGrainsAreWholeGrains) {
  Yard yard({.step_tokens_max = 64, .running_max = 4}, 64);
  ScheduledSequence& first = yard.Add(30);
  first.kv.grain_tokens = 8;
  yard.Step();
  ScheduledSequence& second = yard.Add(30);
  second.tokens.assign(first.tokens.begin(), first.tokens.begin() + 30);
  second.kv.grain_tokens = 8;
  const StepPlan plan = yard.Plan();
  ASSERT_EQ(plan.runs.size(), 2u);
  EXPECT_EQ(plan.runs[1].hit.tokens, 24);
  EXPECT_EQ(plan.runs[1].tokens, 6);
}

TEST(SchedulerTest, AGrainShrinksToNothingWherePagesLackForIt) {
  Yard yard({.step_tokens_max = 100, .running_max = 8}, 6);
  ScheduledSequence& s = yard.Add(36);  // the engine refuses it: nine pages
  s.kv.grain_tokens = 16;
  EXPECT_EQ(yard.Step(), "1:16+");  // of the 24 tokens that fit
}

TEST(SchedulerTest, APlanChangesNothing) {
  Yard yard({.step_tokens_max = 8, .running_max = 4}, 16);
  yard.Add(20);
  yard.Add(3);
  yard.Step();
  const auto before = yard.cache().counts(0);
  const StepPlan first = yard.Plan(), second = yard.Plan();
  ASSERT_EQ(first.runs.size(), second.runs.size());
  for (size_t i = 0; i < first.runs.size(); ++i) {
    EXPECT_EQ(first.runs[i].sequence, second.runs[i].sequence);
    EXPECT_EQ(first.runs[i].tokens, second.runs[i].tokens);
  }
  EXPECT_EQ(yard.cache().counts(0).used, before.used);
  EXPECT_EQ(yard.scheduler().running_count(), 1);
}

TEST(SchedulerTest, AStepMixesDecodesWithTheChunkThatIsLeft) {
  Yard yard({.step_tokens_max = 6, .running_max = 8}, 64);
  yard.Add(3);
  EXPECT_EQ(yard.Step(), "1:3+");
  yard.Add(14);
  EXPECT_EQ(yard.Step(), "1:1 2:5+");
  EXPECT_EQ(yard.Step(), "1:1 2:5");
  EXPECT_EQ(yard.Step(), "1:1 2:4");
  EXPECT_EQ(yard.Step(), "1:1 2:1");
}

TEST(SchedulerTest, AdmissionWaitsForTheWholePromptAndRoomToGrow) {
  Yard yard({.step_tokens_max = 100, .running_max = 8}, 8);
  ScheduledSequence& first = yard.Add(16);
  yard.Add(16);
  yard.Add(1);  // would fit, and does not pass the head of the line
  EXPECT_EQ(yard.Step(), "1:16+");
  EXPECT_EQ(yard.Step(), "1:1");
  yard.Retire(first);
  EXPECT_EQ(yard.Step(), "2:16+ 3:1+");
}

TEST(SchedulerTest, PagesThatARunningPrefillWillNeedArePromised) {
  Yard yard({.step_tokens_max = 8, .running_max = 8}, 8);
  yard.Add(20);
  EXPECT_EQ(yard.Step(), "1:8+");
  yard.Add(8);  // 6 pages are free, 3 of them promised, 2 kept to grow into
  EXPECT_EQ(yard.Step(), "1:8");
  EXPECT_EQ(yard.Step(), "1:4");
}

TEST(SchedulerTest, TheFirstPreemptsTheLastForItsNextPage) {
  Yard yard({.step_tokens_max = 100, .running_max = 8}, 6);
  ScheduledSequence& first = yard.Add(4);
  ScheduledSequence& second = yard.Add(7, 1);
  EXPECT_EQ(yard.Step(), "1:4+ 2:7+");
  std::string text;
  for (int step = 0; step < 30 && yard.scheduler().running_count() == 2; ++step) text = yard.Step();
  EXPECT_EQ(text, "1:1 !2");
  EXPECT_EQ(second.kv.computed_tokens, 0);
  EXPECT_EQ(second.kv.tables[0].size(), 0);
  EXPECT_GT(second.known_tokens(), 7);  // what was generated is kept
  yard.Retire(first);
  EXPECT_EQ(yard.Step().substr(0, 2), "2:");
}

TEST(SchedulerTest, TheLastOneWaitsWithItsPagesInsteadOfPreemptingItself) {
  Yard yard({.step_tokens_max = 100, .running_max = 8}, 5);
  yard.Add(7);
  ScheduledSequence& last = yard.Add(4);
  EXPECT_EQ(yard.Step(), "1:7+ 2:4+");
  for (int step = 0; step < 4; ++step) EXPECT_EQ(yard.Step(), "1:1 2:1");
  EXPECT_EQ(yard.Step(), "1:1");  // 2 would need the page that is not there
  EXPECT_EQ(last.kv.computed_tokens, 8);
  EXPECT_EQ(last.kv.tables[0].size(), 2);
  EXPECT_EQ(yard.Step(), "1:1 !2");  // now 1 does
}

TEST(SchedulerTest, AChunkShrinksToThePagesThatAreLeft) {
  Yard yard({.step_tokens_max = 100, .running_max = 8}, 3);
  yard.Add(16);  // the engine refuses it; here it shows that the head still gets what fits
  EXPECT_EQ(yard.Step(), "1:12+");
}

TEST(SchedulerTest, AHeadThatCannotBeAdmittedAloneIsStuck) {
  kvcache::KvGroup window;
  window.window_tokens = 4;
  Yard yard({.step_tokens_max = 4, .running_max = 8}, 1, {{}, window});
  ScheduledSequence& hog = yard.Add(4);
  EXPECT_EQ(yard.Step(), "1:4+");
  yard.scheduler().Remove(hog);  // retired without giving its page back
  yard.Add(4);
  EXPECT_EQ(yard.Step(), " stuck");
}

TEST(SchedulerTest, PrefixHitsNeedNoBudgetAndLeaveOneTokenToCompute) {
  Yard yard({.step_tokens_max = 100, .running_max = 8}, 16);
  ScheduledSequence& first = yard.Add(12);
  yard.Step();
  ScheduledSequence& same = yard.Add(12);
  same.tokens.assign(first.tokens.begin(), first.tokens.begin() + 12);
  ScheduledSequence& apart = yard.Add(12);
  apart.tokens = same.tokens;
  apart.reuse_prefix = false;
  EXPECT_EQ(yard.Step(), "1:1 2:4+ 3:12+");
}

TEST(SchedulerTest, TheOldestIsPromotedAfterBoundedBypass) {
  Yard yard({.step_tokens_max = 100, .running_max = 1}, 64);
  ScheduledSequence& low = yard.Add(4, 9);
  ScheduledSequence& lower = yard.Add(4, 10);
  std::vector<uint64_t> admitted;
  for (int i = 0; i < 3 * Scheduler::kBypassMax; ++i) {
    ScheduledSequence& high = yard.Add(4, 0);
    const StepPlan plan = yard.Plan();
    ASSERT_EQ(plan.runs.size(), 1u);
    ScheduledSequence& next = *plan.runs[0].sequence;
    admitted.push_back(next.id.value);
    yard.Step();
    yard.Retire(next);
    if (&next != &high && !low.promoted) FAIL();
  }
  const auto place = [&](const ScheduledSequence& s) {
    return std::find(admitted.begin(), admitted.end(), s.id.value) - admitted.begin();
  };
  EXPECT_EQ(place(low), Scheduler::kBypassMax);
  EXPECT_EQ(place(lower), 2 * Scheduler::kBypassMax + 1);
}

TEST(SchedulerTest, APromotedOneRunsBeforeHigherPriorities) {
  Yard yard({.step_tokens_max = 100, .running_max = 8}, 64);
  ScheduledSequence& promoted = yard.Add(4, 9);
  yard.scheduler().Remove(promoted);
  promoted.promoted = true;
  yard.scheduler().Enqueue(promoted);
  yard.Add(4, 0);
  EXPECT_EQ(yard.Step(), "1:4+ 2:4+");
  EXPECT_EQ(yard.Step(), "1:1 2:1");
}

}  // namespace
}  // namespace lacuna::engine
