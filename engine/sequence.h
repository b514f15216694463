// Sequence: the engine's side of one request, from submit to its terminal event. Made by the thread
// that submits, owned and changed by the engine thread alone from then on.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "engine/event.h"
#include "engine/request.h"
#include "engine/sample/sampling_state.h"
#include "engine/schedule/scheduled_sequence.h"
#include "engine/sparse_progress.h"

namespace lacuna::engine {

class EventQueue;

struct Sequence final : ScheduledSequence {
  Sequence(Request request_in, std::span<const TokenId> eos, int64_t vocab_size)
      : request(std::move(request_in)),
        sampling(request.sampling, request.prompt, eos, vocab_size) {
    tokens = std::move(request.prompt);
    prompt_tokens = known_tokens();
  }

  int64_t generated_tokens() const { return known_tokens() - prompt_tokens; }
  bool wants_prompt_logprobs() const { return request.prompt_logprobs >= 0; }

  Request request;  // without its prompt, which is the beginning of `tokens`
  SamplingState sampling;
  std::optional<SparseProgress> sparse;  // of a request with a plan
  std::shared_ptr<EventQueue> events;
  int32_t last_row = -1;  // of its newest sampled token in the results of its newest step
  std::vector<TokenLogprob> prompt_logprobs;
  bool prompt_logprobs_sent = false;
  bool admitted_before = false;
  Usage usage;
  Timing timing;
};

}  // namespace lacuna::engine
