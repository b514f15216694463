// Log probabilities in the two shapes of OpenAI's API. One use per choice, one thread.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>

#include "engine/event.h"
#include "server/text/tokenizer.h"

namespace lacuna::server {

// chat: [{token, logprob, bytes, top_logprobs: [{token, logprob, bytes}]}]. Bytes that are no UTF-8
// of their own appear as U+FFFD in `token` and exactly in `bytes`.
nlohmann::ordered_json ChatLogprobs(const Tokenizer& tokenizer,
                                    std::span<const engine::TokenLogprob> tokens);

// completions: four parallel arrays. A token that is no UTF-8 of its own is "bytes:\xe2\x82".
class CompletionLogprobs final {
 public:
  explicit CompletionLogprobs(const Tokenizer& tokenizer) : tokenizer_(&tokenizer) {}

  // A token of the prompt without a probability: its first.
  void AddFirst(TokenId token);
  void Add(const engine::TokenLogprob& token);
  // What was added since the last call; offsets go on counting.
  nlohmann::ordered_json Take();

 private:
  void AddToken(TokenId token);

  const Tokenizer* tokenizer_;
  int64_t offset_ = 0;  // code points
  nlohmann::ordered_json tokens_ = nlohmann::ordered_json::array();
  nlohmann::ordered_json logprobs_ = nlohmann::ordered_json::array();
  nlohmann::ordered_json tops_ = nlohmann::ordered_json::array();
  nlohmann::ordered_json offsets_ = nlohmann::ordered_json::array();
};

}  // namespace lacuna::server
