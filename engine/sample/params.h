// SamplingParams: how the next token is chosen; already validated by the server. SEAM.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "kernels/core/ids.h"

namespace lacuna::engine {

struct SamplingParams final {
  double temperature = 1.0;         // 0: greedy
  double top_p = 1.0;               // (0, 1]
  double min_p = 0.0;               // [0, 1], relative to the most likely token
  int32_t top_k = 0;                // 0: off
  double repetition_penalty = 1.0;  // > 0; over prompt and output (Keskar et al. 2019)
  double presence_penalty = 0.0;    // over output, as OpenAI
  double frequency_penalty = 0.0;   // over output, as OpenAI
  std::vector<std::pair<TokenId, float>> logit_bias;
  uint64_t seed = 0;
  int32_t logprobs = -1;  // -1: none; n: the chosen token's and the n most likely ones'
  std::vector<TokenId> stop_token_ids;
  bool ignore_eos = false;
  int32_t min_tokens = 0;  // eos and stop tokens are impossible before that many
  int32_t max_tokens = 16;
};

}  // namespace lacuna::engine
