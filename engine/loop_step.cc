// One step of the loop: plan, commit pages, launch; later wait, advance, tell.
//
// Steps overlap when the runner is asynchronous. Step n + 1 is then planned on what step n will
// have done: its tokens computed, one token more in each sequence that it samples. What the host
// does not know yet (the token, or that it ends its sequence) does not matter to the plan; a
// sequence that turns out to have ended is dropped from step n + 1 when that lands. Pages need no
// care: the device runs steps in order, so a page given away is rewritten after its last reader.
#include <algorithm>
#include <string>

#include "engine/loop.h"

namespace lacuna::engine {
namespace {

using kernels::SampleResult;
using kernels::SampleRow;

// A wait that returns sooner than this found the device already done.
constexpr double kPromptWaitSeconds = 20e-6;
constexpr TokenId kUnknownToken = 0;  // stands for the one that the device knows

// Durations of our own work are measured in real time, whatever clock the requests live by.
TimePoint Now() { return SteadyClock().Now(); }

void RaiseTo(std::atomic<int64_t>& value, int64_t at_least) {
  if (value.load() < at_least) value.store(at_least);
}

Status StatusOf(const SampleResult& result) {
  switch (result.status) {
    case SampleResult::kOk:
      return OkStatus();
    case SampleResult::kImpossible:
      return InternalError("no token is possible: every logit is minus infinity");
    default:
      return InternalError("the model gave a logit that is not a number");
  }
}

TokenLogprob LogprobOf(const SampleResult& result) {
  TokenLogprob out{.token = result.token, .logprob = result.logprob, .top = {}};
  const int32_t count = std::clamp(result.top_count, 0, SampleResult::kLogprobsMax);
  for (int32_t i = 0; i < count; ++i) {
    out.top.emplace_back(result.top_tokens[i], result.top_logprobs[i]);
  }
  return out;
}

}  // namespace

bool Engine::Loop::LaunchStep() {
  if (scheduler_.empty()) return false;
  const TimePoint begin = Now();
  const StepPlan plan = scheduler_.Plan(cache_->MakeLedger());
  stats_.plan_seconds.Observe(Seconds(Now() - begin));
  WakeReaders();  // not before: on a small machine they would take the planner's core
  if (!flights_.empty() && !CanRunAhead(plan)) return false;
  if (plan.stuck != nullptr) {
    Fail(AsSequence(*plan.stuck), Exhausted("the KV cache has no room for this request"));
  }
  CommitPlan(plan);
  if (plan.runs.empty()) return false;
  FillBatch(plan);
  NoteFlight(plan, begin);
  const Result<StepKind> launched = parts_.runner->Launch(batch_);
  if (!launched.ok()) {
    LoseDevice(launched.status());
    return false;
  }
  ++(*launched == StepKind::kGraph ? stats_.graph_steps : stats_.eager_steps);
  if (*launched == StepKind::kEagerDecode) ++stats_.eager_decode_steps;
  flights_.back().launch_end = Now();
  if (flights_.size() == 1 && landed_with_work_) {
    stats_.gap_seconds.Observe(Seconds(flights_.back().launch_end - landed_));
  }
  return true;
}

// Preemption takes pages and results from a sequence under way, and penalties need the token that
// is being chosen: such a step waits for the one before.
bool Engine::Loop::CanRunAhead(const StepPlan& plan) const {
  if (plan.runs.empty() || !plan.preempt.empty() || plan.stuck != nullptr) return false;
  return std::ranges::none_of(plan.runs, [](const PlannedRun& run) {
    return run.sequence->pending_tokens > 0 &&
           AsSequence(*run.sequence).sampling.depends_on_output();
  });
}

void Engine::Loop::CommitPlan(const StepPlan& plan) {
  std::vector<kvcache::SequenceKv*> preempted;
  for (ScheduledSequence* s : plan.preempt) preempted.push_back(&s->kv);
  std::vector<kvcache::PageClaim> claims;
  for (const PlannedRun& run : plan.runs) {
    const int64_t begin = run.admit ? run.hit.tokens : run.sequence->launched_tokens();
    claims.push_back({.kv = &run.sequence->kv,
                      .hit = run.admit ? &run.hit : nullptr,
                      .tokens_end = begin + run.tokens});
  }
  // Planned on the counts of this very moment: pages that do not suffice are a bug of ours.
  LACUNA_CHECK(cache_->Commit(preempted, claims).ok());
  for (ScheduledSequence* s : plan.preempt) {
    scheduler_.Preempt(*s);
    GiveChoice(AsSequence(*s));
    if (AsSequence(*s).sparse) AsSequence(*s).sparse->Restart();
    CountWaiting(AsSequence(*s), 1);
    ++AsSequence(*s).usage.preemptions;
    ++stats_.preemptions;
  }
  for (const PlannedRun& run : plan.runs) {
    if (run.admit) CommitAdmission(AsSequence(*run.sequence), run);
  }
}

void Engine::Loop::CommitAdmission(Sequence& sequence, const PlannedRun& run) {
  scheduler_.Admit(sequence);
  TakeChoice(sequence);
  CountWaiting(sequence, -1);
  if (std::exchange(sequence.admitted_before, true)) return;
  sequence.timing.admitted = parts_.clock->Now();
  sequence.usage.cached_tokens = run.hit.tokens;
  const auto prompt = static_cast<uint64_t>(sequence.prompt_tokens);
  stats_.prompt_tokens += prompt;
  if (sequence.reuse_prefix && cache_->reuses_prefixes()) stats_.prefix_queried_tokens += prompt;
  stats_.prefix_hit_tokens += static_cast<uint64_t>(run.hit.tokens);
}

void Engine::Loop::FillBatch(const StepPlan& plan) {
  const auto groups = static_cast<size_t>(cache_->groups());
  batch_.sequences.clear();
  batch_.rows.clear();
  batch_.edits.clear();
  spans_.resize(plan.runs.size() * groups);
  kvcache::PageSpan* spans = spans_.data();
  for (const PlannedRun& run : plan.runs) {
    Sequence& s = AsSequence(*run.sequence);
    const int64_t begin = s.launched_tokens(), end = begin + run.tokens;
    for (size_t g = 0; g < groups; ++g) spans[g] = s.kv.tables[g].span();
    const int64_t rows = s.LogitRows(begin, end);
    // All known tokens are under way when one is being chosen, which then runs alone.
    const bool pending = begin == s.known_tokens();
    batch_.sequences.push_back(
        {.tokens = pending ? std::span(&kUnknownToken, 1)
                           : std::span(s.tokens).subspan(static_cast<size_t>(begin),
                                                         static_cast<size_t>(run.tokens)),
         .sampled_row = pending ? s.last_row : -1,
         .first_position = static_cast<int32_t>(begin),
         .decode = s.RunsAsDecode(begin, run.tokens),
         .pages = {spans, groups},
         .logits_from = rows > 0 ? static_cast<int32_t>(run.tokens - rows) : -1,
         .prompt_tokens = static_cast<int32_t>(s.prompt_tokens)});
    if (s.sparse) s.sparse->Fill(batch_.sequences.back());
    AddRows(s, end - rows, end);
    spans += groups;
  }
}

void Engine::Loop::AddRows(const Sequence& sequence, int64_t first, int64_t end) {
  for (int64_t position = first; position < end; ++position) {
    if (position + 1 < sequence.prompt_tokens) {
      SampleRow row;
      row.forced_token = sequence.tokens[static_cast<size_t>(position) + 1];
      row.logprobs = sequence.request.prompt_logprobs;
      batch_.rows.push_back(row);
    } else {
      const int64_t index = sequence.expected_tokens() - sequence.prompt_tokens;
      batch_.rows.push_back(sequence.sampling.MakeRow(index, batch_.edits));
    }
  }
}

void Engine::Loop::NoteFlight(const StepPlan& plan, TimePoint begin) {
  Flight& flight = flights_.emplace_back();
  flight.begin = begin;
  flight.launch_begin = Now();
  flight.rows = batch_.rows.size();
  RaiseTo(stats_.batch_sequences_max, static_cast<int64_t>(plan.runs.size()));
  size_t row = 0;
  for (const PlannedRun& run : plan.runs) {
    Sequence& s = AsSequence(*run.sequence);
    const int64_t begin_tokens = s.launched_tokens(), end = begin_tokens + run.tokens;
    const auto rows = static_cast<size_t>(s.LogitRows(begin_tokens, end));
    const bool decode = s.RunsAsDecode(begin_tokens, run.tokens);
    flight.runs.push_back({.sequence = &s,
                           .tokens = run.tokens,
                           .first_row = row,
                           .rows = rows,
                           .output = decode ? begin_tokens - s.prompt_tokens : -1,
                           .plan = s.request.sparse.plan});
    row += rows;
    const bool samples = rows > 0 && end == s.expected_tokens();
    s.in_flight_tokens += run.tokens;
    if (!samples) continue;
    ++s.pending_tokens;
    s.last_row = static_cast<int32_t>(row) - 1;
  }
}

void Engine::Loop::LandStep() {
  const TimePoint wait_begin = Now();
  const Result<std::span<const SampleResult>> results = parts_.runner->Wait();
  const TimePoint wait_end = Now();
  if (!results.ok()) return LoseDevice(results.status());
  const Flight flight = std::move(flights_.front());
  flights_.pop_front();
  if (results->size() < flight.rows) {
    return LoseDevice(InternalError("the runner gave fewer results than asked for"));
  }
  if (!flights_.empty()) {
    // The next step was in the queue in time, unless the device was done before we waited: then
    // the gap is at most the time that its launch took.
    const bool late = Seconds(wait_end - wait_begin) < kPromptWaitSeconds;
    stats_.gap_seconds.Observe(
        late ? Seconds(flights_.front().launch_end - flights_.front().launch_begin) : 0.0);
  }
  LandReports(flight);
  const TimePoint begin = std::max(flight.begin, landed_);
  for (const Flight::Run& run : flight.runs) {
    if (run.sequence != nullptr) LandRun(run, *results);
  }
  landed_ = wait_end;
  landed_with_work_ = !scheduler_.empty();
  ++stats_.steps;
  stats_.step_seconds.Observe(Seconds(Now() - begin));
}

// Before the runs, which may retire their sequences with what they have used.
void Engine::Loop::LandReports(const Flight& flight) {
  for (const SparseReport& report : parts_.runner->reports()) {
    const auto index = static_cast<size_t>(report.sequence);
    if (report.sequence < 0 || index >= flight.runs.size()) continue;
    const Flight::Run& run = flight.runs[index];
    if (run.sequence == nullptr || !run.sequence->sparse) continue;
    run.sequence->sparse->Land(run.output, report, stats_);
  }
}

void Engine::Loop::LandRun(const Flight::Run& run, std::span<const SampleResult> results) {
  Sequence& sequence = *run.sequence;
  const int64_t end = sequence.kv.computed_tokens + run.tokens;
  sequence.in_flight_tokens -= run.tokens;
  cache_->Advance(sequence.kv, sequence.tokens, end, sequence.shared_tokens_max);
  int64_t position = end - static_cast<int64_t>(run.rows);
  for (const SampleResult& result : results.subspan(run.first_row, run.rows)) {
    if (result.rereads > 0) ++stats_.sample_rereads;
    if (position + 1 < sequence.prompt_tokens) {
      if (!GatherPromptLogprobs(sequence, position, result)) return;
    } else {
      return TakeToken(sequence, result);  // may retire it; the last row anyway
    }
    ++position;
  }
}

bool Engine::Loop::GatherPromptLogprobs(Sequence& sequence, int64_t position,
                                        const SampleResult& result) {
  if (Status status = StatusOf(result); !status.ok()) {
    Fail(sequence, std::move(status));
    return false;
  }
  sequence.prompt_logprobs.push_back(LogprobOf(result));
  const bool done = position + 2 == sequence.prompt_tokens;
  sequence.logits_from_position = done ? -1 : position + 1;
  return true;
}

bool Engine::Loop::Tell(Sequence& sequence, Event event) {
  unread_.push_back(sequence.events);
  if (sequence.events->Push(std::move(event))) return true;
  Fail(sequence, Exhausted("the client reads too slowly: its unread events are too many"));
  return false;
}

void Engine::Loop::TakeToken(Sequence& sequence, const SampleResult& result) {
  --sequence.pending_tokens;
  if (sequence.wants_prompt_logprobs() && !std::exchange(sequence.prompt_logprobs_sent, true)) {
    if (!Tell(sequence, PromptLogprobsEvent{std::move(sequence.prompt_logprobs)})) return;
    if (sequence.known_tokens() >= sequence.tokens_max) {  // max_tokens 0
      return Finish(sequence, FinishReason::kLength);
    }
  }
  if (Status status = StatusOf(result); !status.ok()) return Fail(sequence, std::move(status));
  const TokenId token = result.token;
  if (sequence.usage.completion_tokens == 0) sequence.timing.first_token = parts_.clock->Now();
  if (StopsAt(sequence, token)) return Finish(sequence, FinishReason::kStop, token);
  sequence.sampling.Accept(token);
  sequence.tokens.push_back(token);
  ++sequence.usage.completion_tokens;
  ++stats_.generated_tokens;
  TokenEvent event{token, {}};
  if (sequence.request.sampling.logprobs >= 0) event.logprob.push_back(LogprobOf(result));
  if (!Tell(sequence, std::move(event))) return;
  if (sequence.known_tokens() >= sequence.tokens_max) Finish(sequence, FinishReason::kLength);
}

bool Engine::Loop::StopsAt(const Sequence& sequence, TokenId token) const {
  const SamplingParams& sampling = sequence.request.sampling;
  const auto holds = [&](const std::vector<TokenId>& ids) {
    return std::ranges::find(ids, token) != ids.end();
  };
  return (!sampling.ignore_eos && holds(parts_.eos)) || holds(sampling.stop_token_ids);
}

void Engine::Loop::LoseDevice(const Status& status) {
  healthy_.store(false);
  inbox_->CloseIntake();
  TakeMessages();
  flights_.clear();
  FailAll(status);
}

}  // namespace lacuna::engine
