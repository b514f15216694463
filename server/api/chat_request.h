// ChatRequest: the body of POST /v1/chat/completions as a plain, bounded struct. Pure parsing.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "server/api/generation_fields.h"

namespace lacuna::server {

struct ChatMessage final {
  std::string role;  // system | user | assistant | tool | function; developer becomes system
  std::string content;
  std::string name;          // empty: none
  std::string tool_call_id;  // role tool only
};

// What decides the prompt; /tokenize takes the same.
struct ChatInput final {
  std::vector<ChatMessage> messages;
  bool add_generation_prompt = true;
  bool continue_final_message = false;
  nlohmann::ordered_json template_variables = nlohmann::ordered_json::object();
};

struct ChatRequest final {
  GenerationFields fields;
  ChatInput input;
  bool logprobs = false;
  int32_t top_logprobs = 0;
};

// Errors stay in `reader`.
ChatInput ReadChatInput(FieldReader& reader, const ApiLimits& limits);

// `body` must be an object (see ParseJsonObject).
ApiResult<ChatRequest> ParseChatRequest(const nlohmann::json& body, const ApiLimits& limits,
                                        const ModelBounds& bounds);

}  // namespace lacuna::server
