// Request: what the server hands to the engine; immutable after submit. SEAM.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "engine/sample/params.h"
#include "kernels/core/clock.h"
#include "kernels/core/ids.h"

namespace lacuna::engine {

struct Request final {
  CacheScope scope;
  std::vector<TokenId> prompt;   // 1 .. context_tokens_max - 1 ids, each in the vocabulary
  SamplingParams sampling;       // max_tokens 0 is allowed with prompt_logprobs only
  int32_t prompt_logprobs = -1;  // -1: none; n: each prompt token's and the n most likely ones'
  int32_t priority = 0;          // lower runs first, as in vLLM
  std::optional<TimePoint> deadline;
};

}  // namespace lacuna::engine
