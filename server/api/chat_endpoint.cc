// POST /v1/chat/completions
#include <ctime>
#include <memory>
#include <utility>

#include "server/api/chat_prompt.h"
#include "server/api/endpoints.h"
#include "server/api/json_parse.h"
#include "server/api/logprobs_json.h"

namespace lacuna::server {
namespace {

using nlohmann::ordered_json;

class ChatResponder final : public Responder {
 public:
  ChatResponder(Header header, Shape shape, std::vector<Choice> choices, const Tokenizer& tokenizer,
                bool logprobs)
      : Responder(std::move(header), shape, std::move(choices)),
        tokenizer_(tokenizer),
        wants_logprobs_(logprobs),
        parts_(choice_count()) {}

 private:
  struct Part final {
    std::string text;
    ordered_json logprobs = ordered_json::array();
    std::string finish_reason;
  };

  // Clients add deltas up: the role must come once per choice, before anything else, in order.
  void OnBegin(std::string& out) override {
    for (size_t i = 0; i < choice_count(); ++i) {
      AppendDelta(i, {{"role", "assistant"}, {"content", ""}}, nullptr, nullptr, out);
    }
  }

  void OnDelta(size_t choice, Choice::Delta& delta, std::string& out) override {
    ordered_json logprobs = ordered_json::array();
    if (wants_logprobs_) logprobs = ChatLogprobs(tokenizer_, delta.logprobs);
    if (!streaming()) {
      Part& part = parts_[choice];
      part.text += delta.text;
      part.logprobs.insert(part.logprobs.end(), logprobs.begin(), logprobs.end());
      if (delta.outcome) part.finish_reason = delta.outcome->finish_reason;
      return;
    }
    if (!delta.text.empty() || !logprobs.empty()) {
      AppendDelta(choice, {{"content", delta.text}}, Wrap(std::move(logprobs)), nullptr, out);
    }
    if (delta.outcome) {
      AppendDelta(choice, ordered_json::object(), nullptr, delta.outcome->finish_reason, out);
    }
  }

  ordered_json Choices() override {
    ordered_json list = ordered_json::array();
    for (size_t i = 0; i < parts_.size(); ++i) {
      list.push_back(
          {{"index", i},
           {"message", {{"role", "assistant"}, {"content", parts_[i].text}, {"refusal", nullptr}}},
           {"logprobs", Wrap(std::move(parts_[i].logprobs))},
           {"finish_reason", parts_[i].finish_reason}});
    }
    return list;
  }

  ordered_json Wrap(ordered_json logprobs) const {
    if (!wants_logprobs_) return nullptr;
    return {{"content", std::move(logprobs)}, {"refusal", nullptr}};
  }

  void AppendDelta(size_t choice, ordered_json delta, ordered_json logprobs,
                   ordered_json finish_reason, std::string& out) const {
    AppendChunk({{"index", choice},
                 {"delta", std::move(delta)},
                 {"logprobs", std::move(logprobs)},
                 {"finish_reason", std::move(finish_reason)}},
                out);
  }

  const Tokenizer& tokenizer_;
  const bool wants_logprobs_;
  std::vector<Part> parts_;  // of a response that is not a stream
};

int32_t MaxTokens(const ApiContext& context, const GenerationFields& fields) {
  const int64_t context_tokens = context.engine.context_tokens_max();
  int64_t max_tokens = fields.max_tokens.value_or(context.limits.max_tokens_default);
  if (max_tokens == 0) max_tokens = context_tokens;
  // A default must not be refused where a client did not ask for anything.
  return static_cast<int32_t>(fields.max_tokens ? max_tokens
                                                : std::min(max_tokens, context_tokens));
}

}  // namespace

HandlerResult PostChatCompletions(ApiContext& context, const HttpRequest& request) {
  auto body =
      ParseJsonObject(request.body, {context.limits.json_depth_max, context.limits.json_nodes_max});
  if (!body.ok()) return ErrorReply(body.error());
  if (auto error = AddSparseHeaders(request, *body)) return ErrorReply(*error);
  auto parsed = ParseChatRequest(*body, context.limits, context.bounds());
  if (!parsed.ok()) return ErrorReply(parsed.error());
  const GenerationFields& fields = parsed->fields;
  if (auto error = CheckModel(context, fields.model)) return ErrorReply(*error);
  auto made = MakeGenerationInput(context, fields, request.caller.scope);
  if (!made.ok()) return ErrorReply(made.error());
  auto prompt = ChatPrompt(context, parsed->input);
  if (!prompt.ok()) return ErrorReply(prompt.error());

  GenerationInput& input = *made;
  input.prompt = std::move(*prompt);
  input.sampling.max_tokens = MaxTokens(context, fields);
  input.sampling.logprobs = parsed->logprobs ? parsed->top_logprobs : -1;
  if (!fields.max_tokens) input.clamp_max_tokens = true;
  auto choices = StartGeneration(context.engine, context.tokenizer, input, &context.metrics);
  if (!choices.ok()) return ErrorReply(FromSubmit(choices.status(), "messages"));

  Responder::Header header{"chatcmpl-" + RandomHex(24),
                           fields.stream ? "chat.completion.chunk" : "chat.completion",
                           fields.model, context.system_fingerprint, std::time(nullptr)};
  const Responder::Shape shape{fields.stream, fields.include_usage, fields.continuous_usage,
                               fields.n};
  return std::make_unique<ChatResponder>(std::move(header), shape, std::move(*choices),
                                         context.tokenizer, parsed->logprobs);
}

}  // namespace lacuna::server
