#include "engine/loop.h"

#include <pthread.h>

#include <algorithm>
#include <numeric>
#include <string>

#include "engine/sparse_intake.h"

namespace lacuna::engine {

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
  free_choices_.resize(static_cast<size_t>(config.running_max));
  std::iota(free_choices_.rbegin(), free_choices_.rend(), 0);
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
  const int32_t logprobs = std::max(request.prompt_logprobs, request.sampling.logprobs);
  if (logprobs > kernels::SampleResult::kLogprobsMax) {
    return InvalidArgument("got logprobs " + std::to_string(logprobs) + ", need at most " +
                           std::to_string(kernels::SampleResult::kLogprobsMax));
  }
  return CheckSparse(request, parts_, config_, *cache_);
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
    auto sequence = std::make_unique<Sequence>(std::move(request), parts_.eos, parts_.vocab_size);
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
    PrepareSparse(parts_, *cache_, *sequence);
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
  WakeReaders();
}

bool Engine::Loop::StepOnce() {
  bool worked = TakeMessages();
  ExpireDeadlines();
  worked = worked || !scheduler_.empty() || !flights_.empty();
  if (scheduler_.empty()) landed_with_work_ = false;
  // While the device runs one step, the next one is already in its queue.
  const size_t flights_max = parts_.runner->asynchronous() ? 2 : 1;
  while (flights_.size() < flights_max && LaunchStep()) {
  }
  if (!flights_.empty()) LandStep();
  if (worked || !ended_.empty()) EndStep();
  if (flights_max > 1 || scheduler_.empty()) WakeReaders();  // else once the next step is planned
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
  if (sequence.sparse) sequence.usage.sparse = sequence.sparse->usage();
  std::visit(
      [&](auto& event) {
        if constexpr (requires { event.usage; }) {
          event.usage = sequence.usage;
          event.timing = timing;
        }
      },
      terminal);
  scheduler_.running(sequence) ? GiveChoice(sequence) : CountWaiting(sequence, -1);
  scheduler_.Remove(sequence);
  cache_->Release(sequence.kv);
  // Steps under way still write to its pages; whoever gets them next is computed after that.
  for (Flight& flight : flights_) {
    for (Flight::Run& run : flight.runs) {
      if (run.sequence == &sequence) run.sequence = nullptr;
    }
  }
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
    unread_.push_back(std::move(events));
  }
}

void Engine::Loop::WakeReaders() {
  for (const auto& events : unread_) events->Wake();
  unread_.clear();
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
    if (!scheduler_.running(*sequence) && sequence->launched_tokens() > 0) {
      return InternalError("a waiting sequence holds pages or is being computed");
    }
    if (flights_.empty() && sequence->in_flight_tokens + sequence->pending_tokens != 0) {
      return InternalError("a sequence waits for the results of no step");
    }
  }
  return OkStatus();
}

void Engine::Loop::TakeChoice(Sequence& sequence) {
  if (!sequence.sparse) return;
  LACUNA_CHECK(!free_choices_.empty());  // there are as many as sequences may run
  sequence.sparse->set_choice(free_choices_.back());
  free_choices_.pop_back();
}

// A step under way may still write there; whoever takes it next chooses anew after that.
void Engine::Loop::GiveChoice(Sequence& sequence) {
  if (sequence.sparse) free_choices_.push_back(sequence.sparse->choice());
}

Status Engine::Loop::CheckChoices() const {
  std::vector<int> holders(static_cast<size_t>(config_.running_max), 0);
  for (const int32_t choice : free_choices_) ++holders.at(static_cast<size_t>(choice));
  for (const auto& [id, sequence] : sequences_) {
    if (!sequence->sparse || !scheduler_.running(*sequence)) continue;
    ++holders.at(static_cast<size_t>(sequence->sparse->choice()));
  }
  const bool once = std::ranges::all_of(holders, [](int count) { return count == 1; });
  return once ? OkStatus() : InternalError("a place for choices is nobody's or belongs to two");
}

Status Engine::Loop::CheckInvariants() const {
  LACUNA_RETURN_IF_ERROR(CheckPages());
  LACUNA_RETURN_IF_ERROR(CheckChoices());
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
