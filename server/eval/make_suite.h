// Fresh suites: facts hidden in any text, and questions about them. The same seed, texts and
// tokenizer give the same bytes on any machine.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/core/ids.h"
#include "kernels/core/status.h"
#include "server/text/tokenizer.h"

namespace lacuna::server {

inline constexpr int64_t kSuiteTokensMin = 256, kSuiteTokensMax = 1 << 22;

struct SuiteOptions final {
  uint64_t seed = 1;
  std::vector<int64_t> lengths;    // tokens of whole prompts, kSuiteTokensMin .. kSuiteTokensMax
  std::vector<std::string> tasks;  // of SuiteTasks()
  int64_t count = 8;               // questions per task and length
};

// Tokens of a prompt of one user message, template included.
using CountPrompt = std::function<Result<int64_t>(std::string_view user_text)>;

// JSON lines as ParseSuite reads them. A prompt is a piece of the texts (which repeat when they are
// shorter) with the facts between its sentences, a blank line and the question; it has the asked
// length, less at most 1 % or 32 tokens. `on_question` (may be empty) is called after each.
// kInvalidArgument: "FLAG: got X, need Y".
Result<std::string> MakeSuite(const SuiteOptions& options, std::string_view text,
                              const Tokenizer& tokenizer, const CountPrompt& count_prompt,
                              const std::function<void()>& on_question);

// The text with ` fact` (several joined by blanks) put behind sentences; pure.
std::string HideFacts(std::string_view text, const std::vector<std::string>& facts, uint64_t seed);

}  // namespace lacuna::server
