#include "server/commands/calibrate_prompts.h"

#include <zlib.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "kernels/core/field_reader.h"

namespace lacuna::server {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kPieceTokens = 4096, kPiecesMax = 16, kPieceTokensMin = 256;
constexpr int32_t kLeadTokens = 16;  // before an answer's place: what names it

// The text of a sequence and where each token begins in it.
struct TokenText final {
  std::string bytes;
  std::vector<size_t> begins;  // [tokens + 1]

  TokenText(std::span<const TokenId> tokens, const Tokenizer& tokenizer) {
    for (const TokenId token : tokens) {
      begins.push_back(bytes.size());
      bytes += tokenizer.TokenBytes(token);
    }
    begins.push_back(bytes.size());
  }
  // Tokens that hold bytes [begin, begin + size).
  engine::TokenSpan Tokens(size_t begin, size_t size) const {
    const auto first = std::ranges::upper_bound(begins, begin) - 1;
    const auto last = std::ranges::lower_bound(begins, begin + size);
    return {static_cast<int32_t>(first - begins.begin()),
            static_cast<int32_t>(last - begins.begin())};
  }
};

// Parts of the text, evenly from all over it.
std::vector<SamplePrompt> CutText(std::span<const TokenId> tokens, const SampleLimits& limits) {
  const int64_t count = static_cast<int64_t>(tokens.size());
  const int64_t piece = std::min({kPieceTokens, limits.tokens_max, count});
  if (piece < kPieceTokensMin) return {};
  const int64_t pieces = std::min({count / piece, kPiecesMax, limits.prompts_max});
  std::vector<SamplePrompt> prompts;
  for (int64_t i = 0; i < pieces; ++i) {
    const auto part =
        tokens.subspan(static_cast<size_t>(i * (count / pieces)), static_cast<size_t>(piece));
    prompts.push_back({{part.begin(), part.end()}, {}});
  }
  return prompts;
}

Result<std::string> PromptText(const Json& row, const ServedModel& model) {
  const auto prompt = row.find("prompt"), messages = row.find("messages");
  if (prompt != row.end() && prompt->is_string()) return prompt->get<std::string>();
  if (messages == row.end() || !messages->is_array()) {
    return InvalidArgument(R"(got neither, need "messages": [...] or "prompt": "...")");
  }
  if (model.chat_template == nullptr) {
    return InvalidArgument(R"(got "messages" for a model without chat template, need "prompt")");
  }
  return model.chat_template->Render({{"messages", *messages},
                                      {"add_generation_prompt", true},
                                      {"bos_token", model.bos_token},
                                      {"eos_token", model.eos_token}});
}

Result<SamplePrompt> ReadRow(std::string_view line, const ServedModel& model) {
  const Json row = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!row.is_object()) return InvalidArgument("got no JSON object, need one in each line");
  LACUNA_ASSIGN_OR_RETURN(const std::string text, PromptText(row, model));
  SamplePrompt prompt;
  // A chat template writes its own special tokens.
  LACUNA_ASSIGN_OR_RETURN(
      prompt.tokens, model.tokenizer->Encode(text, {.add_special_tokens = row.contains("prompt")}));
  const auto answers = row.find("answers");
  if (answers == row.end()) return prompt;
  for (const Json& answer : *answers) {
    if (!answers->is_array() || !answer.is_string() || answer.get<std::string>().empty()) {
      return InvalidArgument(R"(answers: got something else, need a list of strings)");
    }
    prompt.answers.push_back(answer.get<std::string>());
  }
  return prompt;
}

}  // namespace

Result<std::string> ReadTextFile(const std::string& path, int64_t bytes_max) {
  const std::unique_ptr<gzFile_s, int (*)(gzFile)> file(gzopen(path.c_str(), "rb"), gzclose);
  if (file == nullptr) return InvalidArgument(path + ": got no such file, need a readable one");
  std::string text;
  std::vector<char> buffer(1 << 16);
  for (;;) {
    const int got = gzread(file.get(), buffer.data(), static_cast<unsigned>(buffer.size()));
    if (got < 0) return InvalidArgument(path + ": got no readable or a broken gzip file");
    if (got == 0) return text;
    text.append(buffer.data(), static_cast<size_t>(got));
    if (static_cast<int64_t>(text.size()) > bytes_max) {
      return InvalidArgument(path + ": got more than " + std::to_string(bytes_max) +
                             " bytes, need less");
    }
  }
}

Result<std::vector<SamplePrompt>> ReadSamplePrompts(const std::string& path,
                                                    const ServedModel& model,
                                                    const SampleLimits& limits) {
  LACUNA_ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path));
  std::vector<SamplePrompt> prompts;
  if (path.ends_with(".txt") || path.ends_with(".txt.gz")) {
    const Result<std::vector<TokenId>> tokens = model.tokenizer->Encode(text);
    if (!tokens.ok()) return InvalidArgument(path + ": " + tokens.status().message());
    prompts = CutText(*tokens, limits);
  } else {
    int64_t line_number = 0;
    for (size_t at = 0; at < text.size();) {
      const size_t end = std::min(text.find('\n', at), text.size());
      const std::string_view line = std::string_view(text).substr(at, end - at);
      at = end + 1;
      ++line_number;
      if (line.find_first_not_of(" \t\r") == line.npos) continue;
      Result<SamplePrompt> prompt = ReadRow(line, model);
      if (!prompt.ok()) {
        return InvalidArgument(path + ": line " + std::to_string(line_number) + ": " +
                               prompt.status().message());
      }
      const auto tokens = static_cast<int64_t>(prompt->tokens.size());
      if (tokens == 0 || tokens > limits.tokens_max) continue;
      prompts.push_back(*std::move(prompt));
      if (static_cast<int64_t>(prompts.size()) == limits.prompts_max) break;
    }
  }
  if (prompts.empty()) {
    return InvalidArgument(path + ": got no prompt, need one of at most " +
                           std::to_string(limits.tokens_max) + " tokens, or text of " +
                           std::to_string(kPieceTokensMin));
  }
  return prompts;
}

engine::PromptMarks MarkAnswers(std::span<const TokenId> tokens, int64_t prompt_tokens,
                                std::span<const std::string> answers, const Tokenizer& tokenizer) {
  const TokenText text(tokens, tokenizer);
  const size_t prompt_bytes = text.begins[static_cast<size_t>(prompt_tokens)];
  engine::PromptMarks marks;
  for (const std::string& answer : answers) {
    const size_t made = text.bytes.find(answer, prompt_bytes);
    if (made == text.bytes.npos) continue;
    std::vector<engine::TokenSpan> spans;
    for (size_t at = 0; (at = text.bytes.find(answer, at)) + answer.size() <= prompt_bytes;) {
      engine::TokenSpan span = text.Tokens(at, answer.size());
      span.begin = std::max(span.begin - kLeadTokens, spans.empty() ? 0 : spans.back().end);
      spans.push_back(span);
      at += answer.size();
    }
    if (spans.empty()) continue;
    const engine::TokenSpan copied = text.Tokens(made, answer.size());
    for (int32_t token = copied.begin; token < copied.end; ++token) {
      if (token > 0) marks.answers.push_back({token - 1, spans});
    }
  }
  using Answer = engine::PromptMarks::Answer;
  auto& marked = marks.answers;  // they may share a token: the first counts
  std::ranges::stable_sort(marked, {}, &Answer::row);
  const auto same = [](const Answer& a, const Answer& b) { return a.row == b.row; };
  marked.erase(std::unique(marked.begin(), marked.end(), same), marked.end());
  return marks;
}

}  // namespace lacuna::server
