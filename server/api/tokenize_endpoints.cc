// POST /tokenize and POST /detokenize, with vLLM's bodies.
#include <limits>
#include <string>
#include <utility>

#include "server/api/chat_prompt.h"
#include "server/api/endpoints.h"
#include "server/api/json_parse.h"

namespace lacuna::server {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

// /tokenize and /detokenize may leave out the model.
void ReadModel(FieldReader& reader, const ApiContext& context) {
  std::string model;
  if (!reader.String("model", 256, model)) return;
  if (auto error = CheckModel(context, model)) reader.Fail(*error);
}

ApiResult<std::vector<TokenId>> TokensOf(FieldReader& reader, const ApiContext& context) {
  const json* prompt = reader.Find("prompt");
  bool add_special_tokens = prompt != nullptr;  // a template writes its own
  reader.Bool("add_special_tokens", add_special_tokens);
  if (prompt == nullptr) {
    if (reader.ok() && reader.Find("messages") == nullptr) reader.Require("prompt");
    const ChatInput input = ReadChatInput(reader, context.limits);
    if (!reader.ok()) return reader.error();
    return ChatPrompt(context, input);
  }
  if (!prompt->is_string()) {
    reader.Fail(ErrorKind::kWrongType, "prompt", "'prompt' must be a string.");
  }
  if (!reader.ok()) return reader.error();
  auto tokens = context.tokenizer.Encode(prompt->get_ref<const std::string&>(),
                                         {.add_special_tokens = add_special_tokens});
  if (!tokens.ok()) return FromStatus(tokens.status(), "prompt");
  return std::move(*tokens);
}

HttpReply JsonReply(const ordered_json& body) {
  HttpReply reply;
  reply.body = body.dump(-1, ' ', false, ordered_json::error_handler_t::replace);
  return reply;
}

}  // namespace

HandlerResult PostTokenize(ApiContext& context, const HttpRequest& request) {
  auto body =
      ParseJsonObject(request.body, {context.limits.json_depth_max, context.limits.json_nodes_max});
  if (!body.ok()) return ErrorReply(body.error());
  FieldReader reader(*body, "");
  ReadModel(reader, context);
  bool strings = false;
  reader.Bool("return_token_strs", strings);
  if (!reader.ok()) return ErrorReply(reader.error());
  auto tokens = TokensOf(reader, context);
  if (!tokens.ok()) return ErrorReply(tokens.error());
  ordered_json reply = {{"tokens", *tokens},
                        {"count", tokens->size()},
                        {"max_model_len", context.engine.context_tokens_max()}};
  if (strings) {
    ordered_json list = ordered_json::array();
    for (const TokenId token : *tokens) list.push_back(context.tokenizer.TokenBytes(token));
    reply["token_strs"] = std::move(list);
  }
  return JsonReply(reply);
}

HandlerResult PostDetokenize(ApiContext& context, const HttpRequest& request) {
  auto body =
      ParseJsonObject(request.body, {context.limits.json_depth_max, context.limits.json_nodes_max});
  if (!body.ok()) return ErrorReply(body.error());
  FieldReader reader(*body, "");
  ReadModel(reader, context);
  bool skip_special_tokens = false;
  reader.Bool("skip_special_tokens", skip_special_tokens);
  reader.Require("tokens");
  const json* list = reader.Array("tokens", static_cast<size_t>(context.limits.json_nodes_max));
  std::vector<TokenId> tokens;
  for (size_t i = 0; list != nullptr && i < list->size() && reader.ok(); ++i) {
    constexpr int64_t kAny = std::numeric_limits<int64_t>::max();
    const std::string name = "tokens[" + std::to_string(i) + "]";
    const std::optional<int64_t> id = AsInt((*list)[i], -kAny, kAny);
    if (!id) {
      reader.Fail(ErrorKind::kWrongType, name, "'" + name + "' must be an integer.");
    } else if (*id < 0 || *id >= context.tokenizer.vocab_size()) {
      reader.Fail(ErrorKind::kUnprocessable, name, "'" + name + "' is not in the vocabulary.");
    } else {
      tokens.push_back(static_cast<TokenId>(*id));
    }
  }
  if (!reader.ok()) return ErrorReply(reader.error());
  return JsonReply({{"prompt", context.tokenizer.Decode(tokens, skip_special_tokens)}});
}

}  // namespace lacuna::server
