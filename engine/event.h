// Events: what the engine tells about one request. Tokens in order, then exactly one terminal event
// (FinishedEvent or FailedEvent), nothing after it. SEAM.
#pragma once

#include <cstdint>
#include <utility>
#include <variant>
#include <vector>

#include "kernels/core/clock.h"
#include "kernels/core/ids.h"
#include "kernels/core/status.h"

namespace lacuna::engine {

// Natural log, of the raw distribution (before temperature and penalties); floor -9999.
struct TokenLogprob final {
  TokenId token = 0;
  float logprob = 0.0f;
  std::vector<std::pair<TokenId, float>> top;  // descending
};

struct TokenEvent final {
  TokenId token = 0;
  std::vector<TokenLogprob> logprob;  // one entry when asked for, else empty
};

// Before the first token, when prompt_logprobs >= 0: entry i is about prompt token i + 1.
struct PromptLogprobsEvent final {
  std::vector<TokenLogprob> tokens;
};

enum class FinishReason {
  kStop,    // eos or a stop token (not sent as a TokenEvent)
  kLength,  // max_tokens or the context is reached
  kCancelled,
};

struct Usage final {
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;  // prompt tokens served from the prefix cache
  int64_t completion_tokens = 0;
  int32_t preemptions = 0;
};

struct Timing final {
  TimePoint submitted, admitted, first_token, finished;  // unset stages hold `finished`
};

struct FinishedEvent final {
  FinishReason reason = FinishReason::kStop;
  TokenId stop_token = -1;  // the eos or stop token that ended it
  Usage usage;
  Timing timing;
};

struct FailedEvent final {
  Status status;
  Usage usage;
  Timing timing;
};

using Event = std::variant<TokenEvent, PromptLogprobsEvent, FinishedEvent, FailedEvent>;

inline bool IsTerminal(const Event& event) {
  return std::holds_alternative<FinishedEvent>(event) || std::holds_alternative<FailedEvent>(event);
}

}  // namespace lacuna::engine
