// Sample prompts of `lacuna calibrate`: a file of questions or of text -> token sequences, and
// where in them an answer is copied from. Pure functions over a tokenizer but for ReadTextFile.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/calibrate/head_map.h"
#include "kernels/core/ids.h"
#include "kernels/core/status.h"
#include "server/commands/served_model.h"

namespace lacuna::server {

struct SamplePrompt final {
  std::vector<TokenId> tokens;
  std::vector<std::string> answers;  // what a right continuation contains
};

struct SampleLimits final {
  int64_t prompts_max = 1 << 20;
  int64_t tokens_max = 8192;  // longer prompts are left out; text is cut into pieces
};

// A file, unpacked if it is gzip. kInvalidArgument: "FILE: got X, need Y".
Result<std::string> ReadTextFile(const std::string& path, int64_t bytes_max = 256 << 20);

// Lines of {"messages": [...]} (through the model's chat template) or {"prompt": "..."}, with
// "answers": ["..."] for tables that need them; other keys are ignored. A file whose name ends in
// .txt or .txt.gz is text: pieces of at most 4096 tokens from all over it, without answers.
// kInvalidArgument: "FILE: line N: got X, need Y".
Result<std::vector<SamplePrompt>> ReadSamplePrompts(const std::string& path,
                                                    const ServedModel& model,
                                                    const SampleLimits& limits);

// `tokens` are a prompt of `prompt_tokens` and what the model made of it. Answers that stand in
// both parts give marks.
engine::PromptMarks MarkAnswers(std::span<const TokenId> tokens, int64_t prompt_tokens,
                                std::span<const std::string> answers, const Tokenizer& tokenizer);

}  // namespace lacuna::server
