// Chat messages -> prompt tokens: the model's template, then the tokenizer. Any thread; slow for
// long input, so it runs on a text worker.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "kernels/core/ids.h"
#include "server/api/api_context.h"
#include "server/api/api_error.h"
#include "server/api/chat_request.h"
#include "server/api/generation.h"

namespace lacuna::server {

// kUnsupported when the model has no template; kBadValue with the template's own message when it
// refuses the messages.
ApiResult<std::vector<TokenId>> ChatPrompt(const ApiContext& context, const ChatInput& input);

// kModelNotFound unless `name` is served.
std::optional<ApiError> CheckModel(const ApiContext& context, const std::string& name);

// What of a request does not depend on the endpoint. Errors are those of GrantSparse.
ApiResult<GenerationInput> MakeGenerationInput(const ApiContext& context,
                                               const GenerationFields& fields, CacheScope scope);

}  // namespace lacuna::server
