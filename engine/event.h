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

// What sparse attention read and, where it was audited, what that cost. Of requests with a plan.
struct SparseUsage final {
  int64_t dense_steps = 0, sparse_steps = 0;         // decode steps; dense: too short to select
  int64_t pages_considered = 0, pages_selected = 0;  // over sparse steps, layers and kv heads
  int64_t prefill_blocks_considered = 0, prefill_blocks_selected = 0;  // 64 x 64, sparse layers
  double estimated_mass = 0;  // mean, as far as the method's own scores tell; 0: they cannot
  int64_t audited_steps = 0;
  static constexpr int kLayerGroups = 3;    // the first, middle and last third of the layers
  double captured_mass[kLayerGroups] = {};  // means over audited steps
  double output_error[kLayerGroups] = {};   // relative, likewise
  int32_t budget_widened = 0;               // times that the mass floor made the budget grow
};

struct Usage final {
  int64_t prompt_tokens = 0;
  int64_t cached_tokens = 0;  // prompt tokens served from the prefix cache
  int64_t completion_tokens = 0;
  int32_t preemptions = 0;
  SparseUsage sparse;
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
