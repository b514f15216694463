#include "server/api/generation.h"

#include <algorithm>
#include <random>
#include <utility>

#include "server/metrics/metrics.h"

namespace lacuna::server {
namespace {

uint64_t RandomSeed() {
  std::random_device device;
  return static_cast<uint64_t>(device()) << 32 | device();
}

Result<int32_t> FitMaxTokens(const GenerationInput& input, int64_t context_tokens_max) {
  const auto prompt_tokens = static_cast<int64_t>(input.prompt.size());
  const int64_t asked = input.sampling.max_tokens;
  const int64_t left = context_tokens_max - prompt_tokens;
  if (left < 1 || (!input.clamp_max_tokens && asked > left)) {
    return Status(StatusCode::kTooLong,
                  "This model's maximum context length is " + std::to_string(context_tokens_max) +
                      " tokens, but the request has " + std::to_string(prompt_tokens) +
                      " in the prompt and asks for up to " + std::to_string(asked) + " more.");
  }
  return static_cast<int32_t>(std::min(asked, left));
}

Outcome FromFinished(const engine::FinishedEvent& event) {
  Outcome outcome;
  outcome.usage = event.usage;
  outcome.timing = event.timing;
  outcome.stop_token = event.stop_token;
  switch (event.reason) {
    case engine::FinishReason::kStop:
      outcome.finish_reason = "stop";
      break;
    case engine::FinishReason::kLength:
      outcome.finish_reason = "length";
      break;
    case engine::FinishReason::kCancelled:
      outcome.error = Status(StatusCode::kCancelled, "The request was cancelled.");
      break;
  }
  return outcome;
}

EndReason ReasonOf(const Outcome& outcome) {
  if (outcome.error.code() == StatusCode::kCancelled) return EndReason::kAbort;
  if (!outcome.error.ok()) return EndReason::kError;
  return outcome.finish_reason == "length" ? EndReason::kLength : EndReason::kStop;
}

}  // namespace

Choice::Choice(engine::RequestStream stream, const Tokenizer& tokenizer,
               const GenerationInput& input, Metrics* metrics)
    : stream_(std::move(stream)),
      detokenizer_(tokenizer, input.skip_special_tokens),
      stop_matcher_(input.stop, input.include_stop),
      metrics_(metrics),
      min_tokens_(input.sampling.min_tokens),
      sparse_usage_of_(input.sparse_usage_of) {}

Choice::Choice(Choice&& other) noexcept
    : stream_(std::move(other.stream_)),
      detokenizer_(std::move(other.detokenizer_)),
      stop_matcher_(std::move(other.stop_matcher_)),
      metrics_(std::exchange(other.metrics_, nullptr)),
      min_tokens_(other.min_tokens_),
      sparse_usage_of_(std::move(other.sparse_usage_of_)),
      tokens_(other.tokens_),
      stopped_(other.stopped_),
      matched_stop_(std::move(other.matched_stop_)),
      last_token_(other.last_token_),
      done_(other.done_) {}

Choice::~Choice() {
  if (metrics_ != nullptr) metrics_->ObserveAbort();
}

std::optional<Choice::Delta> Choice::Poll() {
  if (done_) return std::nullopt;
  std::optional<engine::Event> event = stream_.Poll();
  if (!event) return std::nullopt;
  return OnEvent(std::move(*event));
}

std::optional<Choice::Delta> Choice::Wait(TimePoint until) {
  if (done_) return std::nullopt;
  std::optional<engine::Event> event = stream_.Wait(until);
  if (!event) return std::nullopt;
  return OnEvent(std::move(*event));
}

Choice::Delta Choice::OnEvent(engine::Event event) {
  Delta delta;
  if (auto* token = std::get_if<engine::TokenEvent>(&event)) {
    OnToken(std::move(*token), delta);
  } else if (auto* prompt = std::get_if<engine::PromptLogprobsEvent>(&event)) {
    delta.prompt_logprobs = std::move(*prompt);
  } else if (auto* finished = std::get_if<engine::FinishedEvent>(&event)) {
    OnTerminal(FromFinished(*finished), delta);
  } else if (auto* failed = std::get_if<engine::FailedEvent>(&event)) {
    Outcome outcome;
    outcome.error = std::move(failed->status);
    outcome.usage = failed->usage;
    outcome.timing = failed->timing;
    OnTerminal(std::move(outcome), delta);
  }
  return delta;
}

void Choice::OnToken(engine::TokenEvent event, Delta& delta) {
  if (stopped_) return;  // generated before the engine saw our cancel
  const TimePoint now = std::chrono::steady_clock::now();
  if (tokens_ > 0 && metrics_ != nullptr) metrics_->ObserveInterToken(Seconds(now - last_token_));
  last_token_ = now;
  ++tokens_;
  delta.tokens.push_back(event.token);
  delta.logprobs = std::move(event.logprob);
  std::string piece = detokenizer_.Push(event.token);
  if (tokens_ <= min_tokens_) {
    delta.text = std::move(piece);
    return;
  }
  StopMatcher::Output out = stop_matcher_.Push(piece);
  delta.text = std::move(out.text);
  if (!out.stopped) return;
  stopped_ = true;
  matched_stop_ = std::move(out.matched);
  stream_.Cancel();
}

void Choice::OnTerminal(Outcome outcome, Delta& delta) {
  done_ = true;
  outcome.sparse_usage_of = sparse_usage_of_;
  if (!stopped_ && outcome.error.ok()) {
    StopMatcher::Output out = stop_matcher_.Push(detokenizer_.Flush());
    delta.text = std::move(out.text);
    if (out.stopped) {
      stopped_ = true;
      matched_stop_ = std::move(out.matched);
    } else {
      delta.text += stop_matcher_.Flush().text;
    }
  }
  if (stopped_) {
    // The text was complete at the match, whatever the engine did until it saw the cancel.
    outcome.error = OkStatus();
    outcome.finish_reason = "stop";
    outcome.stop_token = -1;
    outcome.matched_stop = std::move(matched_stop_);
    outcome.usage.completion_tokens = tokens_;
  }
  if (metrics_ != nullptr) {
    std::exchange(metrics_, nullptr)->ObserveEnd(ReasonOf(outcome), outcome.usage, outcome.timing);
  }
  delta.outcome = std::move(outcome);
}

Result<std::vector<Choice>> StartGeneration(engine::Engine& engine, const Tokenizer& tokenizer,
                                            const GenerationInput& input, Metrics* metrics) {
  LACUNA_ASSIGN_OR_RETURN(const int32_t max_tokens,
                          FitMaxTokens(input, engine.context_tokens_max()));
  engine::Request request;
  request.scope = input.scope;
  request.sampling = input.sampling;
  request.sampling.max_tokens = max_tokens;
  request.priority = input.priority;
  request.deadline = input.deadline;
  request.sparse = input.sparse;
  const uint64_t seed = input.has_seed ? input.sampling.seed : RandomSeed();

  // All streams first: a refusal drops those before it, which cancels them, and no choice that
  // never ran is counted as an abort.
  std::vector<engine::RequestStream> streams;
  for (int32_t i = 0; i < input.n; ++i) {
    engine::Request one = request;
    one.prompt = input.prompt;
    one.sampling.seed = seed + static_cast<uint64_t>(i);
    one.prompt_logprobs = input.prompt_logprobs;
    LACUNA_ASSIGN_OR_RETURN(engine::RequestStream stream, engine.Submit(std::move(one)));
    streams.push_back(std::move(stream));
  }
  std::vector<Choice> choices;
  choices.reserve(streams.size());
  for (engine::RequestStream& stream : streams) {
    choices.emplace_back(std::move(stream), tokenizer, input, metrics);
  }
  return choices;
}

}  // namespace lacuna::server
