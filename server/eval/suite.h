// A suite of questions: JSON lines of {"id", "task", "context_tokens", "messages", "answers"};
// other keys are ignored. Reading, choosing and scoring; pure functions, any thread.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/core/status.h"

namespace lacuna::server {

struct EvalQuestion final {
  std::string id;  // unique in its suite
  std::string task;
  int64_t context_tokens = 0;       // the nominal length of the prompt
  nlohmann::ordered_json messages;  // as /v1/chat/completions takes them
  std::vector<std::string> answers;
};

// Empty lines are skipped. kInvalidArgument: "FILE: line N: got X, need Y".
Result<std::vector<EvalQuestion>> ParseSuite(std::string_view text, const std::string& file);

struct EvalChoice final {
  std::vector<int64_t> lengths;    // empty: all
  std::vector<std::string> tasks;  // empty: all
  int64_t limit = 0;  // most questions, taken in turn from each task and length; 0: all
};
// In the order of the suite. kInvalidArgument names the flag and what the suite has.
Result<std::vector<EvalQuestion>> ChooseQuestions(std::vector<EvalQuestion> suite,
                                                  const EvalChoice& choice);

// Every answer occurs in the text.
bool IsRight(std::span<const std::string> answers, std::string_view text);

}  // namespace lacuna::server
