#include "server/api/completion_request.h"

#include <limits>
#include <nlohmann/json.hpp>
#include <optional>

namespace lacuna::server {
namespace {

using nlohmann::json;
using Prompt = CompletionRequest::Prompt;

constexpr int64_t kTokensDefault = 16;  // OpenAI's
constexpr int64_t kInt32Max = std::numeric_limits<int32_t>::max();

void FailPrompt(FieldReader& reader, ErrorKind kind, const std::string& name, const char* need) {
  reader.Fail(kind, name, "'" + name + "' " + need);
}

std::optional<Prompt> ReadIds(FieldReader& reader, const std::string& name, const json& value,
                              const ModelBounds& bounds) {
  if (value.empty()) {
    FailPrompt(reader, ErrorKind::kBadValue, name, "must not be empty.");
    return std::nullopt;
  }
  std::vector<TokenId> ids;
  ids.reserve(value.size());
  for (const json& item : value) {
    const std::optional<int64_t> id = AsInt(item, 0, bounds.vocab_size - 1);
    if (!id) {
      const bool number = item.is_number();
      FailPrompt(reader, number ? ErrorKind::kBadValue : ErrorKind::kWrongType, name,
                 number ? "holds a number that is no token id of this model."
                        : "must hold token ids only.");
      return std::nullopt;
    }
    ids.push_back(static_cast<TokenId>(*id));
  }
  return Prompt(std::move(ids));
}

std::optional<Prompt> ReadPrompt(FieldReader& reader, const std::string& name, const json& value,
                                 const ModelBounds& bounds) {
  if (value.is_array()) return ReadIds(reader, name, value, bounds);
  if (!value.is_string()) {
    FailPrompt(reader, ErrorKind::kWrongType, name, "must be a string or an array of token ids.");
    return std::nullopt;
  }
  const auto& text = value.get_ref<const std::string&>();
  if (text.empty()) {
    FailPrompt(reader, ErrorKind::kBadValue, name, "must not be empty.");
    return std::nullopt;
  }
  return Prompt(text);
}

void ReadPrompts(FieldReader& reader, const ApiLimits& limits, const ModelBounds& bounds,
                 std::vector<Prompt>& out) {
  const json* prompt = reader.Require("prompt");
  if (prompt == nullptr) return;
  const bool is_list = prompt->is_array() && !prompt->empty() &&
                       ((*prompt)[0].is_string() || (*prompt)[0].is_array());
  if (!is_list) {
    if (auto one = ReadPrompt(reader, "prompt", *prompt, bounds)) out.push_back(std::move(*one));
    return;
  }
  if (reader.Array("prompt", static_cast<size_t>(limits.prompts_max)) == nullptr) return;
  for (size_t i = 0; i < prompt->size() && reader.ok(); ++i) {
    auto one = ReadPrompt(reader, "prompt[" + std::to_string(i) + "]", (*prompt)[i], bounds);
    if (one) out.push_back(std::move(*one));
  }
}

void ReadBestOf(FieldReader& reader, const ApiLimits& limits, const GenerationFields& fields) {
  int64_t best_of = fields.n;
  if (!reader.Int("best_of", 1, limits.n_max, best_of)) return;
  if (best_of < fields.n) {
    reader.Fail(ErrorKind::kBadValue, "best_of", "'best_of' must be at least 'n'.");
  } else if (best_of > fields.n) {
    reader.Fail(ErrorKind::kUnsupported, "best_of",
                "'best_of' above 'n' is not supported by this server.");
  }
}

void CheckTogether(FieldReader& reader, const ApiLimits& limits, const CompletionRequest& request) {
  const GenerationFields& fields = request.fields;
  const auto choices = static_cast<int64_t>(request.prompts.size()) * fields.n;
  if (choices > limits.choices_max) {
    reader.Fail(ErrorKind::kBadValue, "n",
                "'n' times the prompts must be at most " + std::to_string(limits.choices_max) +
                    " choices.");
  }
  if (*fields.max_tokens == 0 && !request.echo) {
    reader.Fail(ErrorKind::kBadValue, "max_tokens",
                "'max_tokens' must be at least 1 unless 'echo' is true.");
  }
  if (fields.sampling.min_tokens > *fields.max_tokens) {
    reader.Fail(ErrorKind::kBadValue, "min_tokens", "'min_tokens' must be at most 'max_tokens'.");
  }
}

}  // namespace

ApiResult<CompletionRequest> ParseCompletionRequest(const json& body, const ApiLimits& limits,
                                                    const ModelBounds& bounds) {
  FieldReader reader(body, "");
  CompletionRequest request;
  request.fields = ReadGenerationFields(reader, limits, bounds);
  ReadPrompts(reader, limits, bounds, request.prompts);
  reader.Bool("echo", request.echo);
  reader.Bool("add_special_tokens", request.add_special_tokens);
  int64_t max_tokens = kTokensDefault;
  reader.Int("max_tokens", 0, kInt32Max, max_tokens);
  request.fields.max_tokens = max_tokens;
  int64_t logprobs = -1;
  reader.Int("logprobs", 0, limits.logprobs_max, logprobs);
  request.logprobs = static_cast<int32_t>(logprobs);
  ReadBestOf(reader, limits, request.fields);
  reader.Refuse(
      {"suffix", "prompt_embeds", "response_format", "prompt_logprobs", "return_token_ids"});
  CheckTogether(reader, limits, request);
  if (limits.strict_fields) reader.RefuseUnknown();
  if (!reader.ok()) return reader.error();
  return request;
}

}  // namespace lacuna::server
