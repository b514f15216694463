// Sampler: chooses the next token of one sequence from its logits. SEAM (the class may grow
// privately).
//
// Random numbers are a function of (seed, index of the generated token) alone, so that a preempted
// and recomputed sequence, or a batched one, draws the same tokens. Engine thread only.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "engine/event.h"
#include "engine/sample/params.h"
#include "kernels/core/status.h"

namespace lacuna::engine {

// log softmax of one row: `token`'s and the `top` most likely ones' (ties: lower id first).
TokenLogprob ComputeLogprob(std::span<const float> logits, TokenId token, int32_t top);

class Sampler final {
 public:
  // `eos` are impossible before min_tokens (as are stop_token_ids).
  Sampler(const SamplingParams& params, std::span<const TokenId> prompt,
          std::span<const TokenId> eos);

  struct Choice {
    TokenId token = 0;
    std::vector<TokenLogprob> logprob;  // one entry when asked for
  };
  // Chooses the token number `index` (0 for the first generated one). `logits` [vocab] is
  // overwritten. A NaN or no finite logit is kInternal: that request fails, its neighbours do not.
  Result<Choice> Sample(std::span<float> logits, int64_t index);
  // Counts a chosen token for the penalties.
  void Accept(TokenId token);

 private:
  void Penalize(std::span<float> logits) const;

  SamplingParams params_;
  std::vector<TokenId> barred_early_;  // eos and stop tokens, until min_tokens
  std::unordered_map<TokenId, int32_t> output_count_;
  std::vector<TokenId> prompt_tokens_;  // distinct, when repetition_penalty != 1
};

}  // namespace lacuna::engine
