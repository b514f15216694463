#include "server/api/chat_request.h"

#include <algorithm>
#include <array>
#include <limits>
#include <string_view>

namespace lacuna::server {
namespace {

using nlohmann::json;

constexpr std::array<std::string_view, 6> kRoles = {"system",    "developer", "user",
                                                    "assistant", "tool",      "function"};
constexpr size_t kLabelBytesMax = 256;
constexpr size_t kTemplateVariablesMax = 16;
// Set by the server; a request may not replace them.
constexpr std::array<std::string_view, 7> kReserved = {"messages",
                                                       "tools",
                                                       "documents",
                                                       "add_generation_prompt",
                                                       "bos_token",
                                                       "eos_token",
                                                       "continue_final_message"};

// Text parts are joined by a newline, as vLLM and llama.cpp do for templates that want strings.
void ReadParts(FieldReader& message, const json& parts, std::string& out) {
  for (size_t i = 0; i < parts.size() && message.ok(); ++i) {
    const std::string name = "content[" + std::to_string(i) + "]";
    const json& part = parts[i];
    if (!part.is_object()) {
      message.Fail(ErrorKind::kWrongType, name, "A content part must be an object.");
      return;
    }
    const auto type = part.find("type");
    if (type == part.end() || *type != "text") {
      message.Fail(ErrorKind::kUnsupported, name, "Only content parts of type 'text' are known.");
      return;
    }
    const auto text = part.find("text");
    if (text == part.end() || !text->is_string()) {
      message.Fail(text == part.end() ? ErrorKind::kMissing : ErrorKind::kWrongType, name + ".text",
                   "A text part needs the string 'text'.");
      return;
    }
    if (i > 0) out += '\n';
    out += text->get_ref<const std::string&>();
  }
}

void ReadContent(FieldReader& reader, ChatMessage& message) {
  const json* content = reader.Find("content");
  if (content == nullptr) {
    if (message.role != "assistant") reader.Require("content");
    return;
  }
  if (content->is_string()) {
    message.content = content->get_ref<const std::string&>();
  } else if (content->is_array()) {
    ReadParts(reader, *content, message.content);
  } else {
    reader.Fail(ErrorKind::kWrongType, "content",
                "'" + reader.Path("content") + "' must be a string or an array of text parts.");
  }
}

ChatMessage ReadMessage(FieldReader& reader) {
  ChatMessage message;
  if (reader.Require("role") != nullptr) reader.String("role", kLabelBytesMax, message.role);
  if (reader.ok() && std::ranges::find(kRoles, message.role) == kRoles.end()) {
    reader.Fail(ErrorKind::kBadValue, "role",
                "'" + reader.Path("role") +
                    "' must be one of system, developer, user, assistant, tool, function.");
  }
  if (message.role == "developer") message.role = "system";
  ReadContent(reader, message);
  reader.String("name", kLabelBytesMax, message.name);
  reader.String("tool_call_id", kLabelBytesMax, message.tool_call_id);
  if (message.role == "tool" && message.tool_call_id.empty()) reader.Require("tool_call_id");
  reader.Refuse({"tool_calls", "function_call", "audio"});
  return message;
}

void ReadMessages(FieldReader& reader, const ApiLimits& limits, std::vector<ChatMessage>& out) {
  if (reader.Require("messages") == nullptr) return;
  const json* messages = reader.Array("messages", static_cast<size_t>(limits.messages_max));
  if (messages == nullptr) return;
  if (messages->empty()) {
    reader.Fail(ErrorKind::kBadValue, "messages", "'messages' must not be empty.");
  }
  for (size_t i = 0; i < messages->size() && reader.ok(); ++i) {
    const std::string name = "messages[" + std::to_string(i) + "]";
    if (!(*messages)[i].is_object()) {
      reader.Fail(ErrorKind::kWrongType, name, "'" + name + "' must be an object.");
      return;
    }
    FieldReader inner((*messages)[i], name);
    out.push_back(ReadMessage(inner));
    if (!inner.ok()) reader.Fail(inner.error());
  }
}

void ReadTemplateVariables(FieldReader& reader, nlohmann::ordered_json& out) {
  const json* variables = reader.Find("chat_template_kwargs");
  if (variables == nullptr) return;
  if (!variables->is_object() || variables->size() > kTemplateVariablesMax) {
    reader.Fail(ErrorKind::kBadValue, "chat_template_kwargs",
                "'chat_template_kwargs' must be an object of at most 16 members.");
    return;
  }
  for (const auto& [name, value] : variables->items()) {
    const bool short_text =
        value.is_string() && value.get_ref<const std::string&>().size() <= kLabelBytesMax;
    const bool scalar = value.is_boolean() || value.is_number() || value.is_null() || short_text;
    if (!scalar || std::ranges::find(kReserved, name) != kReserved.end()) {
      reader.Fail(ErrorKind::kBadValue, "chat_template_kwargs",
                  "A member of 'chat_template_kwargs' is reserved or not a short scalar.");
      return;
    }
    out[name] = value;
  }
}

// Text is what we have; "text" and an object of that type are the only formats.
void ReadResponseFormat(FieldReader& reader) {
  const json* format = reader.Find("response_format");
  if (format == nullptr) return;
  if (!format->is_object() || !format->contains("type") || !(*format)["type"].is_string()) {
    reader.Fail(ErrorKind::kWrongType, "response_format",
                "'response_format' must be an object with the string 'type'.");
    return;
  }
  const auto& type = (*format)["type"].get_ref<const std::string&>();
  if (type == "text") return;
  const bool known = type == "json_object" || type == "json_schema" || type == "structural_tag";
  reader.Fail(known ? ErrorKind::kUnsupported : ErrorKind::kBadValue,
              known ? "response_format" : "response_format.type",
              "Only the response format 'text' is supported by this server.");
}

void ReadToolChoice(FieldReader& reader, std::string_view name) {
  const json* choice = reader.Find(name);
  if (choice == nullptr || *choice == "none" || *choice == "auto") return;
  reader.Fail(ErrorKind::kUnsupported, name,
              "'" + std::string(name) + "' is not supported by this server.");
}

void ReadModalities(FieldReader& reader) {
  const json* modalities = reader.Array("modalities", 8);
  if (modalities == nullptr) return;
  for (const json& item : *modalities) {
    if (item != "text") {
      reader.Fail(ErrorKind::kUnsupported, "modalities", "Only the modality 'text' is supported.");
    }
  }
}

void ReadLogprobs(FieldReader& reader, const ApiLimits& limits, ChatRequest& request) {
  reader.Bool("logprobs", request.logprobs);
  int64_t top = 0;
  if (!reader.Int("top_logprobs", 0, limits.logprobs_max, top)) return;
  if (!request.logprobs) {
    reader.Fail(ErrorKind::kBadValue, "top_logprobs",
                "'top_logprobs' needs 'logprobs' to be true.");
  }
  request.top_logprobs = static_cast<int32_t>(top);
}

void ReadMaxTokens(FieldReader& reader, GenerationFields& fields) {
  constexpr int64_t kInt32Max = std::numeric_limits<int32_t>::max();
  int64_t max_tokens = 0;
  if (reader.Int("max_tokens", 1, kInt32Max, max_tokens)) fields.max_tokens = max_tokens;
  if (reader.Int("max_completion_tokens", 1, kInt32Max, max_tokens)) {
    fields.max_tokens = max_tokens;
  }
  if (fields.max_tokens && fields.sampling.min_tokens > *fields.max_tokens) {
    reader.Fail(ErrorKind::kBadValue, "min_tokens", "'min_tokens' must be at most 'max_tokens'.");
  }
}

}  // namespace

ChatInput ReadChatInput(FieldReader& reader, const ApiLimits& limits) {
  ChatInput input;
  ReadMessages(reader, limits, input.messages);
  reader.Bool("continue_final_message", input.continue_final_message);
  input.add_generation_prompt = !input.continue_final_message;
  reader.Bool("add_generation_prompt", input.add_generation_prompt);
  ReadTemplateVariables(reader, input.template_variables);
  if (!reader.ok() || !input.continue_final_message) return input;
  if (input.add_generation_prompt) {
    reader.Fail(ErrorKind::kBadValue, "add_generation_prompt",
                "'add_generation_prompt' and 'continue_final_message' exclude each other.");
  }
  const std::vector<ChatMessage>& messages = input.messages;
  const bool two = messages.size() > 1 && messages[messages.size() - 2].role == "assistant";
  if (messages.back().role != "assistant" || messages.back().content.empty() || two) {
    reader.Fail(ErrorKind::kBadValue, "messages",
                "To continue, the last message, and not the one before, must be the assistant's.");
  }
  return input;
}

ApiResult<ChatRequest> ParseChatRequest(const json& body, const ApiLimits& limits,
                                        const ModelBounds& bounds) {
  FieldReader reader(body, "");
  ChatRequest request;
  request.fields = ReadGenerationFields(reader, limits, bounds);
  request.input = ReadChatInput(reader, limits);
  ReadLogprobs(reader, limits, request);
  ReadMaxTokens(reader, request.fields);
  ReadResponseFormat(reader);
  ReadToolChoice(reader, "tool_choice");
  ReadToolChoice(reader, "function_call");
  ReadModalities(reader);
  reader.Ignore({"parallel_tool_calls", "verbosity", "reasoning_effort", "prediction",
                 "web_search_options", "moderation"});
  reader.Refuse({"tools", "functions", "audio", "echo", "documents", "chat_template", "media_io",
                 "mm_processor_kwargs", "prompt_logprobs", "return_token_ids",
                 "return_tokens_as_token_ids"});
  if (limits.strict_fields) reader.RefuseUnknown();
  if (!reader.ok()) return reader.error();
  return request;
}

}  // namespace lacuna::server
