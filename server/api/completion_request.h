// CompletionRequest: the body of POST /v1/completions as a plain, bounded struct. Pure parsing.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <variant>
#include <vector>

#include "kernels/core/ids.h"
#include "server/api/generation_fields.h"

namespace lacuna::server {

struct CompletionRequest final {
  using Prompt = std::variant<std::string, std::vector<TokenId>>;

  GenerationFields fields;  // fields.max_tokens is always set; 0 only with echo
  std::vector<Prompt> prompts;
  bool echo = false;
  int32_t logprobs = -1;
  bool add_special_tokens = true;
};

// `body` must be an object (see ParseJsonObject).
ApiResult<CompletionRequest> ParseCompletionRequest(const nlohmann::json& body,
                                                    const ApiLimits& limits,
                                                    const ModelBounds& bounds);

}  // namespace lacuna::server
