#include "server/api/chat_prompt.h"

#include <algorithm>
#include <chrono>
#include <string>
#include <utility>

namespace lacuna::server {
namespace {

nlohmann::ordered_json Variables(const ApiContext& context, const ChatInput& input) {
  nlohmann::ordered_json messages = nlohmann::ordered_json::array();
  for (const ChatMessage& message : input.messages) {
    nlohmann::ordered_json item = {{"role", message.role}, {"content", message.content}};
    if (!message.name.empty()) item["name"] = message.name;
    if (!message.tool_call_id.empty()) item["tool_call_id"] = message.tool_call_id;
    messages.push_back(std::move(item));
  }
  nlohmann::ordered_json variables = input.template_variables;
  variables["messages"] = std::move(messages);
  variables["tools"] = nullptr;  // transformers passes None: templates ask "tools is not none"
  variables["documents"] = nullptr;
  variables["add_generation_prompt"] = input.add_generation_prompt;
  variables["bos_token"] = context.bos_token;
  variables["eos_token"] = context.eos_token;
  return variables;
}

// Cuts what the template wrote after the last message's text, so that the model goes on with it.
bool CutAfterFinalMessage(const std::string& content, std::string& prompt) {
  const size_t end = content.find_last_not_of(" \t\r\n");
  const size_t begin = content.find_first_not_of(" \t\r\n");
  if (begin == std::string::npos) return false;
  const std::string trimmed = content.substr(begin, end - begin + 1);
  const size_t at = prompt.rfind(trimmed);
  if (at == std::string::npos) return false;
  prompt.resize(at + trimmed.size());
  return true;
}

}  // namespace

bool ApiContext::KnowsModel(std::string_view name) const {
  return name == model_name || std::ranges::find(aliases, name) != aliases.end();
}

ApiResult<std::vector<TokenId>> ChatPrompt(const ApiContext& context, const ChatInput& input) {
  if (context.chat_template == nullptr) {
    return ApiError{ErrorKind::kUnsupported, "This model has no chat template.", "messages"};
  }
  ChatTemplate::Limits limits;
  limits.steps_max = context.limits.template_steps_max;
  limits.output_bytes_max = context.limits.template_output_bytes_max;
  auto rendered = context.chat_template->Render(Variables(context, input), limits);
  if (!rendered.ok()) return FromStatus(rendered.status(), "messages");
  std::string& prompt = *rendered;
  if (input.continue_final_message &&
      !CutAfterFinalMessage(input.messages.back().content, prompt)) {
    return ApiError{ErrorKind::kBadValue,
                    "The chat template does not keep the final message, so it cannot be continued.",
                    "continue_final_message"};
  }
  auto tokens = context.tokenizer.Encode(prompt);
  if (!tokens.ok()) return FromStatus(tokens.status(), "messages");
  if (tokens->empty()) return ApiError{ErrorKind::kBadValue, "The prompt is empty.", "messages"};
  return std::move(*tokens);
}

std::optional<ApiError> CheckModel(const ApiContext& context, const std::string& name) {
  if (context.KnowsModel(name)) return std::nullopt;
  return ApiError{ErrorKind::kModelNotFound,
                  "The model '" + name.substr(0, 256) + "' is not served here.", "model"};
}

ApiResult<GenerationInput> MakeGenerationInput(const ApiContext& context,
                                               const GenerationFields& fields, CacheScope scope) {
  auto sparse = GrantSparse(context.sparse, fields.sparse);
  if (!sparse.ok()) return sparse.error();
  GenerationInput input;
  input.sparse = std::move(sparse->options);
  if (fields.sparse.usage) input.sparse_usage_of = std::move(sparse->profile);
  input.sampling = fields.sampling;
  input.has_seed = fields.has_seed;
  input.n = fields.n;
  input.stop = fields.stop;
  input.include_stop = fields.include_stop;
  input.skip_special_tokens = fields.skip_special_tokens;
  input.clamp_max_tokens = context.limits.clamp_max_tokens;
  input.priority = fields.priority;
  const int64_t deadline_ms =
      fields.deadline_ms > 0 ? fields.deadline_ms : context.limits.deadline_ms;
  input.deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(deadline_ms);
  input.scope = context.admit.Salted(scope, fields.cache_salt);
  return input;
}

}  // namespace lacuna::server
