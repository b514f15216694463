// Request: what the server hands to the engine; immutable after submit. SEAM.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "engine/sample/params.h"
#include "kernels/core/clock.h"
#include "kernels/core/ids.h"
#include "kvcache/sparse/plan.h"

namespace lacuna::engine {

struct SparseOptions final {
  // Null: dense. Else one of those that the engine was assembled for, or of the same path with
  // other dials (ApplyDials).
  std::shared_ptr<const kvcache::SparsePlan> plan;
  // Share of the request's sparse decode steps that are also computed densely, to compare.
  double audit_fraction = 0;
  // When an audited step captures less mass, the request's budget grows by half from then on; 0:
  // never.
  double mass_floor = 0;
};

struct Request final {
  CacheScope scope;
  std::vector<TokenId> prompt;   // 1 .. context_tokens_max - 1 ids, each in the vocabulary
  SamplingParams sampling;       // max_tokens 0 is allowed with prompt_logprobs only
  int32_t prompt_logprobs = -1;  // -1: none; n: each prompt token's and the n most likely ones'
  int32_t priority = 0;          // lower runs first, as in vLLM
  std::optional<TimePoint> deadline;
  SparseOptions sparse;
};

}  // namespace lacuna::engine
