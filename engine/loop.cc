#include "engine/loop.h"

#include <pthread.h>

#include <algorithm>
#include <cmath>
#include <string>

namespace lacuna::engine {
namespace {

// Durations of our own work are measured in real time, whatever clock the requests live by.
double SecondsSince(TimePoint begin) { return Seconds(SteadyClock().Now() - begin); }

void RaiseTo(std::atomic<int64_t>& value, int64_t at_least) {
  if (value.load() < at_least) value.store(at_least);
}

}  // namespace

Engine::Loop::Loop(const EngineConfig& config, EngineParts parts,
                   std::unique_ptr<kvcache::KvCache> cache)
    : config_(config),
      parts_(std::move(parts)),
      context_tokens_max_(parts_.context_tokens_max),
      cache_(std::move(cache)),
      scheduler_({.step_tokens_max = config.step_tokens_max,
                  .running_max = config.running_max,
                  .logit_rows_max = parts_.logit_rows_max},
                 *cache_) {
  if (config_.context_tokens_max > 0) {
    context_tokens_max_ = std::min(context_tokens_max_, config_.context_tokens_max);
  }
  // The last token of a sequence is never computed.
  context_tokens_max_ = std::min(context_tokens_max_ - 1, cache_->sequence_tokens_max()) + 1;
  EndStep();
}

Engine::Loop::~Loop() { Stop(); }

Status Engine::Loop::CheckRequest(const Request& request) const {
  if (request.prompt.empty()) return InvalidArgument("the prompt has no tokens");
  if (static_cast<int64_t>(request.prompt.size()) + 1 > context_tokens_max_) {
    return {StatusCode::kTooLong, "got a prompt of " + std::to_string(request.prompt.size()) +
                                      " tokens, need at most " +
                                      std::to_string(context_tokens_max_ - 1)};
  }
  const auto in_vocab = [&](TokenId id) { return id >= 0 && id < parts_.vocab_size; };
  if (!std::ranges::all_of(request.prompt, in_vocab)) {
    return InvalidArgument("the prompt holds a token id outside of the vocabulary");
  }
  const int32_t max_tokens = request.sampling.max_tokens;
  if (max_tokens < 0 || (max_tokens == 0 && request.prompt_logprobs < 0)) {
    return InvalidArgument("got max_tokens " + std::to_string(max_tokens) + ", need 1 or more");
  }
  return OkStatus();
}

// Under the lock of the inbox, so that two submits cannot both take the last place.
Status Engine::Loop::CountIn(const Sequence& sequence) {
  if (stats_.waiting >= config_.queue_len_max) return Exhausted("the queue is full");
  if (stats_.waiting_tokens + sequence.prompt_tokens > config_.queue_tokens_max) {
    return Exhausted("the queue holds too many prompt tokens");
  }
  CountWaiting(sequence, 1);
  ++live_;
  ++stats_.submitted;
  return OkStatus();
}

Result<RequestStream> Engine::Loop::Submit(Request request) {
  Status status = CheckRequest(request);
  if (status.ok()) {
    auto sequence = std::make_unique<Sequence>(std::move(request), parts_.eos);
    const RequestId id{next_id_++};
    sequence->id = id;
    sequence->arrival = id.value;
    sequence->priority = sequence->request.priority;
    sequence->reuse_prefix = !sequence->wants_prompt_logprobs();
    if (sequence->wants_prompt_logprobs() && sequence->prompt_tokens > 1) {
      sequence->logits_from_position = 0;
    }
    sequence->tokens_max = std::min(sequence->prompt_tokens + sequence->request.sampling.max_tokens,
                                    context_tokens_max_);
    sequence->kv = cache_->MakeSequence(sequence->request.scope);
    sequence->usage.prompt_tokens = sequence->prompt_tokens;
    sequence->timing.submitted = parts_.clock->Now();
    auto events = std::make_shared<EventQueue>(id, config_.events_max, inbox_);
    sequence->events = events;
    const Sequence& counted = *sequence;
    status = inbox_->PostSubmit(std::move(sequence), [&] { return CountIn(counted); });
    if (status.ok()) return RequestStream(std::move(events), id);
  }
  ++stats_.rejected;
  return status;
}

std::vector<PageCounts> Engine::Loop::page_counts() const {
  const std::lock_guard lock(counts_mutex_);
  return counts_;
}

void Engine::Loop::Start() {
  thread_ = std::thread([this] {
    pthread_setname_np(pthread_self(), "lacuna-engine");
    while (!stopping_.load()) {
      if (!StepOnce() && !inbox_->WaitForMessage()) return;
    }
  });
}

void Engine::Loop::Stop() {
  stopping_.store(true);
  inbox_->Close();
  if (thread_.joinable()) thread_.join();
  TakeMessages();
  FailAll({StatusCode::kUnavailable, "the server is stopping"});
  EndStep();
}

bool Engine::Loop::StepOnce() {
  bool worked = TakeMessages();
  ExpireDeadlines();
  if (!scheduler_.empty()) {
    worked = true;
    const TimePoint begin = SteadyClock().Now();
    StepPlan plan = scheduler_.Plan(cache_->MakeLedger());
    stats_.plan_seconds.Observe(SecondsSince(begin));
    if (plan.stuck != nullptr) {
      Fail(AsSequence(*plan.stuck), Exhausted("the KV cache has no room for this request"));
    }
    CommitPlan(plan);
    if (!plan.runs.empty()) {
      RunPlan(plan);
      ++stats_.steps;
      stats_.step_seconds.Observe(SecondsSince(begin));
    }
  }
  if (worked || !ended_.empty()) EndStep();
  return worked;
}

bool Engine::Loop::TakeMessages() {
  std::vector<Message> messages = inbox_->Take();
  for (Message& message : messages) {
    if (message.submit != nullptr) {
      Sequence& sequence = *message.submit;
      if (sequence.request.deadline) deadlines_.emplace(*sequence.request.deadline, sequence.id);
      scheduler_.Enqueue(sequence);
      sequences_.emplace(sequence.id, std::move(message.submit));
    } else if (const auto found = sequences_.find(message.cancel); found != sequences_.end()) {
      Finish(*found->second, FinishReason::kCancelled);
    }
  }
  return !messages.empty();
}

void Engine::Loop::ExpireDeadlines() {
  if (deadlines_.empty()) return;
  const TimePoint now = parts_.clock->Now();
  while (!deadlines_.empty() && deadlines_.begin()->first <= now) {
    Fail(*sequences_.at(deadlines_.begin()->second),
         {StatusCode::kDeadline, "the request's deadline has passed"});
  }
}

void Engine::Loop::CommitPlan(const StepPlan& plan) {
  std::vector<kvcache::SequenceKv*> preempted;
  for (ScheduledSequence* s : plan.preempt) preempted.push_back(&s->kv);
  std::vector<kvcache::PageClaim> claims;
  for (const PlannedRun& run : plan.runs) {
    const int64_t begin = run.admit ? run.hit.tokens : run.sequence->kv.computed_tokens;
    claims.push_back({.kv = &run.sequence->kv,
                      .hit = run.admit ? &run.hit : nullptr,
                      .tokens_end = begin + run.tokens});
  }
  // Planned on the counts of this very moment: pages that do not suffice are a bug of ours.
  LACUNA_CHECK(cache_->Commit(preempted, claims).ok());
  for (ScheduledSequence* s : plan.preempt) {
    scheduler_.Preempt(*s);
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
  spans_.resize(plan.runs.size() * groups);
  kvcache::PageSpan* spans = spans_.data();
  for (const PlannedRun& run : plan.runs) {
    const ScheduledSequence& s = *run.sequence;
    const int64_t begin = s.kv.computed_tokens, end = begin + run.tokens;
    for (size_t g = 0; g < groups; ++g) spans[g] = s.kv.tables[g].span();
    const int64_t rows = s.LogitRows(begin, end);
    batch_.sequences.push_back(
        {.tokens = std::span(s.tokens).subspan(static_cast<size_t>(begin),
                                               static_cast<size_t>(run.tokens)),
         .first_position = static_cast<int32_t>(begin),
         .decode = s.decodes(),
         .pages = {spans, groups},
         .logits_from = rows > 0 ? static_cast<int32_t>(run.tokens - rows) : -1});
    spans += groups;
  }
}

void Engine::Loop::RunPlan(const StepPlan& plan) {
  FillBatch(plan);
  RaiseTo(stats_.batch_sequences_max, static_cast<int64_t>(plan.runs.size()));
  int64_t rows = 0;
  for (const StepSequence& s : batch_.sequences) {
    if (s.logits_from >= 0) rows += static_cast<int64_t>(s.tokens.size()) - s.logits_from;
  }
  Result<TensorView> logits = parts_.runner->Run(batch_);
  if (logits.ok() && rows > 0 &&
      (logits->rank() != 2 || logits->dim(0) < rows || logits->dim(1) != parts_.vocab_size ||
       logits->dtype() != DType::kF32)) {
    logits = InternalError("the runner gave logits of another shape than asked for");
  }
  if (!logits.ok()) {
    healthy_.store(false);
    inbox_->CloseIntake();
    TakeMessages();
    FailAll(logits.status());
    return;
  }
  int64_t row = 0;
  for (const PlannedRun& run : plan.runs) CommitRun(run, *logits, &row);
}

void Engine::Loop::CommitRun(const PlannedRun& run, const TensorView& logits, int64_t* row) {
  Sequence& sequence = AsSequence(*run.sequence);
  const int64_t begin = sequence.kv.computed_tokens, end = begin + run.tokens;
  const int64_t first = std::max(begin, sequence.first_logits_position());
  const int64_t known = sequence.known_tokens();
  cache_->Advance(sequence.kv, sequence.tokens, end);
  if (first >= end) return;
  float* next = logits.as<float>() + *row * logits.stride(0);
  *row += end - first;
  for (int64_t position = first; position < end; ++position, next += logits.stride(0)) {
    const std::span<float> line(next, static_cast<size_t>(parts_.vocab_size));
    if (sequence.logits_from_position == position) {
      if (!GatherPromptLogprobs(sequence, position, line)) return;
    }
    if (position == known - 1) SampleToken(sequence, line);  // may retire it; the last row anyway
  }
}

bool Engine::Loop::GatherPromptLogprobs(Sequence& sequence, int64_t position,
                                        std::span<const float> logits) {
  const auto next = static_cast<size_t>(position) + 1;
  TokenLogprob entry =
      ComputeLogprob(logits, sequence.tokens[next], sequence.request.prompt_logprobs);
  if (std::isnan(entry.logprob)) {
    Fail(sequence, InternalError("the model gave a value that is not a number"));
    return false;
  }
  sequence.prompt_logprobs.push_back(std::move(entry));
  const bool done = static_cast<int64_t>(next) + 1 == sequence.prompt_tokens;
  sequence.logits_from_position = done ? -1 : position + 1;
  return true;
}

bool Engine::Loop::Tell(Sequence& sequence, Event event) {
  if (sequence.events->Push(std::move(event))) return true;
  Fail(sequence, Exhausted("the client reads too slowly: its unread events are too many"));
  return false;
}

void Engine::Loop::SampleToken(Sequence& sequence, std::span<float> logits) {
  if (sequence.wants_prompt_logprobs() && !std::exchange(sequence.prompt_logprobs_sent, true)) {
    if (!Tell(sequence, PromptLogprobsEvent{std::move(sequence.prompt_logprobs)})) return;
    if (sequence.known_tokens() >= sequence.tokens_max) {  // max_tokens 0
      return Finish(sequence, FinishReason::kLength);
    }
  }
  Result<Sampler::Choice> choice = sequence.sampler.Sample(logits, sequence.generated_tokens());
  if (!choice.ok()) return Fail(sequence, choice.status());
  const TokenId token = choice->token;
  if (sequence.usage.completion_tokens == 0) sequence.timing.first_token = parts_.clock->Now();
  if (StopsAt(sequence, token)) return Finish(sequence, FinishReason::kStop, token);
  sequence.sampler.Accept(token);
  sequence.tokens.push_back(token);
  ++sequence.usage.completion_tokens;
  ++stats_.generated_tokens;
  if (!Tell(sequence, TokenEvent{token, std::move(choice->logprob)})) return;
  if (sequence.known_tokens() >= sequence.tokens_max) Finish(sequence, FinishReason::kLength);
}

bool Engine::Loop::StopsAt(const Sequence& sequence, TokenId token) const {
  const SamplingParams& sampling = sequence.request.sampling;
  const auto holds = [&](const std::vector<TokenId>& ids) {
    return std::ranges::find(ids, token) != ids.end();
  };
  return (!sampling.ignore_eos && holds(parts_.eos)) || holds(sampling.stop_token_ids);
}

void Engine::Loop::Finish(Sequence& sequence, FinishReason reason, TokenId stop_token) {
  switch (reason) {
    case FinishReason::kStop:
      ++stats_.finished_stop;
      break;
    case FinishReason::kLength:
      ++stats_.finished_length;
      break;
    case FinishReason::kCancelled:
      ++stats_.cancelled;
      break;
  }
  Retire(sequence,
         FinishedEvent{.reason = reason, .stop_token = stop_token, .usage = {}, .timing = {}});
}

void Engine::Loop::Fail(Sequence& sequence, Status status) {
  ++stats_.failed;
  Retire(sequence, FailedEvent{.status = std::move(status), .usage = {}, .timing = {}});
}

void Engine::Loop::FailAll(const Status& status) {
  while (!sequences_.empty()) Fail(*sequences_.begin()->second, status);
}

void Engine::Loop::Retire(Sequence& sequence, Event terminal) {
  Timing& timing = sequence.timing;
  timing.finished = parts_.clock->Now();
  if (!sequence.admitted_before) timing.admitted = timing.finished;
  if (sequence.usage.completion_tokens == 0) timing.first_token = timing.finished;
  std::visit(
      [&](auto& event) {
        if constexpr (requires { event.usage; }) {
          event.usage = sequence.usage;
          event.timing = timing;
        }
      },
      terminal);
  if (!scheduler_.running(sequence)) CountWaiting(sequence, -1);
  scheduler_.Remove(sequence);
  cache_->Release(sequence.kv);
  if (sequence.request.deadline) deadlines_.erase({*sequence.request.deadline, sequence.id});
  ended_.emplace_back(std::move(sequence.events), std::move(terminal));
  sequences_.erase(sequence.id);
}

// Whoever sees a terminal event also sees the pages given back and the request counted.
void Engine::Loop::EndStep() {
  stats_.running = scheduler_.running_count();
  stats_.evicted_pages = cache_->evicted_pages();
  {
    const std::lock_guard lock(counts_mutex_);
    counts_.clear();
    for (int g = 0; g < cache_->groups(); ++g) {
      const kvcache::PoolCounts& counts = cache_->counts(g);
      counts_.push_back({counts.total, counts.free, counts.used, counts.cached});
    }
  }
#ifndef NDEBUG
  if (sequences_.empty() && !ended_.empty()) LACUNA_CHECK(CheckPages().ok());
#endif
  for (auto& [events, terminal] : std::exchange(ended_, {})) {
    --live_;
    events->PushTerminal(std::move(terminal));
  }
}

void Engine::Loop::CountWaiting(const Sequence& sequence, int sign) {
  stats_.waiting += sign;
  stats_.waiting_tokens += sign * sequence.prompt_tokens;
}

Status Engine::Loop::CheckPages() const {
  std::vector<const kvcache::SequenceKv*> live;
  for (const auto& [id, sequence] : sequences_) live.push_back(&sequence->kv);
  LACUNA_RETURN_IF_ERROR(cache_->CheckInvariants(live));
  for (const auto& [id, sequence] : sequences_) {
    if (sequence->kv.computed_tokens > sequence->known_tokens()) {
      return InternalError("a sequence has computed more tokens than it knows");
    }
    if (!scheduler_.running(*sequence) && sequence->kv.computed_tokens > 0) {
      return InternalError("a waiting sequence holds pages");
    }
  }
  return OkStatus();
}

Status Engine::Loop::CheckInvariants() const {
  LACUNA_RETURN_IF_ERROR(CheckPages());
  const auto sequences = static_cast<int64_t>(sequences_.size());
  if (scheduler_.running_count() + scheduler_.waiting_count() != sequences ||
      static_cast<int64_t>(deadlines_.size()) > sequences) {
    return InternalError("a sequence is neither running nor waiting, or is both");
  }
  const uint64_t ended =
      stats_.finished_stop + stats_.finished_length + stats_.cancelled + stats_.failed;
  if (stats_.submitted != ended + static_cast<uint64_t>(live_.load())) {
    return InternalError("accepted is not completed + failed + cancelled + live");
  }
  // Submitted ones that were not yet taken wait too.
  if (stats_.running != scheduler_.running_count() ||
      stats_.waiting - scheduler_.waiting_count() != live_.load() - sequences) {
    return InternalError("running or waiting miscounted");
  }
  return OkStatus();
}

}  // namespace lacuna::engine
