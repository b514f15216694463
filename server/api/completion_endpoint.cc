// POST /v1/completions
#include <ctime>
#include <memory>
#include <utility>

#include "server/api/chat_prompt.h"
#include "server/api/completion_request.h"
#include "server/api/endpoints.h"
#include "server/api/json_parse.h"
#include "server/api/logprobs_json.h"

namespace lacuna::server {
namespace {

using nlohmann::ordered_json;

// One prompt as tokens, and as the text that echo repeats.
struct PreparedPrompt final {
  std::vector<TokenId> tokens;
  std::string text;
};

class CompletionResponder final : public Responder {
 public:
  CompletionResponder(Header header, Shape shape, std::vector<Choice> choices,
                      const Tokenizer& tokenizer, std::vector<PreparedPrompt> prompts,
                      const CompletionRequest& request)
      : Responder(std::move(header), shape, std::move(choices)),
        prompts_(std::move(prompts)),
        echo_(request.echo),
        wants_logprobs_(request.logprobs >= 0) {
    for (size_t i = 0; i < choice_count(); ++i) {
      parts_.push_back({"", CompletionLogprobs(tokenizer), ""});
      if (echo_ && !streaming()) parts_[i].text = PromptOf(i).text;
    }
  }

 private:
  struct Part final {
    std::string text;  // of a response that is not a stream
    CompletionLogprobs logprobs;
    std::string finish_reason;
  };

  const PreparedPrompt& PromptOf(size_t choice) const {
    return prompts_[choice / static_cast<size_t>(shape().n)];
  }

  void OnBegin(std::string& out) override {
    if (!echo_ || wants_logprobs_) return;
    for (size_t i = 0; i < choice_count(); ++i) AppendText(i, PromptOf(i).text, nullptr, out);
  }

  void OnDelta(size_t choice, Choice::Delta& delta, std::string& out) override {
    Part& part = parts_[choice];
    std::string text = std::move(delta.text);
    if (wants_logprobs_) {
      if (echo_ && delta.prompt_logprobs) {
        part.logprobs.AddFirst(PromptOf(choice).tokens.front());
        for (const auto& token : delta.prompt_logprobs->tokens) part.logprobs.Add(token);
        if (streaming()) text = PromptOf(choice).text + text;
      }
      for (const auto& token : delta.logprobs) part.logprobs.Add(token);
    }
    if (!streaming()) {
      part.text += text;
      if (delta.outcome) part.finish_reason = delta.outcome->finish_reason;
      return;
    }
    const bool has_tokens = !delta.logprobs.empty() || delta.prompt_logprobs;
    if (!text.empty() || (wants_logprobs_ && has_tokens)) {
      AppendText(choice, std::move(text), nullptr, out);
    }
    if (delta.outcome) AppendText(choice, "", delta.outcome->finish_reason, out);
  }

  ordered_json Choices() override {
    ordered_json list = ordered_json::array();
    for (size_t i = 0; i < parts_.size(); ++i) {
      list.push_back(One(i, std::move(parts_[i].text), parts_[i].finish_reason));
    }
    return list;
  }

  ordered_json One(size_t choice, std::string text, ordered_json finish_reason) {
    return {{"index", choice},
            {"text", std::move(text)},
            {"logprobs", wants_logprobs_ ? parts_[choice].logprobs.Take() : ordered_json(nullptr)},
            {"finish_reason", std::move(finish_reason)}};
  }

  void AppendText(size_t choice, std::string text, ordered_json finish_reason, std::string& out) {
    AppendChunk(One(choice, std::move(text), std::move(finish_reason)), out);
  }

  const std::vector<PreparedPrompt> prompts_;
  const bool echo_;
  const bool wants_logprobs_;
  std::vector<Part> parts_;
};

ApiResult<PreparedPrompt> Prepare(const ApiContext& context, const CompletionRequest& request,
                                  const CompletionRequest::Prompt& prompt) {
  PreparedPrompt out;
  if (const auto* ids = std::get_if<std::vector<TokenId>>(&prompt)) {
    out.tokens = *ids;
    if (request.echo) out.text = context.tokenizer.Decode(*ids, false);
    return out;
  }
  out.text = std::get<std::string>(prompt);
  auto tokens =
      context.tokenizer.Encode(out.text, {.add_special_tokens = request.add_special_tokens});
  if (!tokens.ok()) return FromStatus(tokens.status(), "prompt");
  if (tokens->empty()) {
    return ApiError{ErrorKind::kBadValue, "'prompt' has no tokens.", "prompt"};
  }
  out.tokens = std::move(*tokens);
  return out;
}

ApiResult<std::vector<Choice>> Start(ApiContext& context, const CompletionRequest& request,
                                     const std::vector<PreparedPrompt>& prompts,
                                     GenerationInput input) {
  input.sampling.max_tokens = static_cast<int32_t>(*request.fields.max_tokens);
  input.sampling.logprobs = request.logprobs;
  if (request.echo && request.logprobs >= 0) input.prompt_logprobs = request.logprobs;
  // The engine runs a request without output only for the sake of its prompt's probabilities.
  if (input.sampling.max_tokens == 0) input.prompt_logprobs = std::max(input.prompt_logprobs, 0);
  std::vector<Choice> all;
  for (const PreparedPrompt& prompt : prompts) {
    input.prompt = prompt.tokens;
    auto choices = StartGeneration(context.engine, context.tokenizer, input, &context.metrics);
    if (!choices.ok()) return FromSubmit(choices.status(), "prompt");
    for (Choice& choice : *choices) all.push_back(std::move(choice));
  }
  return all;
}

}  // namespace

HandlerResult PostCompletions(ApiContext& context, const HttpRequest& request) {
  auto body =
      ParseJsonObject(request.body, {context.limits.json_depth_max, context.limits.json_nodes_max});
  if (!body.ok()) return ErrorReply(body.error());
  if (auto error = AddSparseHeaders(request, *body)) return ErrorReply(*error);
  auto parsed = ParseCompletionRequest(*body, context.limits, context.bounds());
  if (!parsed.ok()) return ErrorReply(parsed.error());
  const GenerationFields& fields = parsed->fields;
  if (auto error = CheckModel(context, fields.model)) return ErrorReply(*error);
  auto input = MakeGenerationInput(context, fields, request.caller.scope);
  if (!input.ok()) return ErrorReply(input.error());
  std::vector<PreparedPrompt> prompts;
  for (const CompletionRequest::Prompt& prompt : parsed->prompts) {
    auto prepared = Prepare(context, *parsed, prompt);
    if (!prepared.ok()) return ErrorReply(prepared.error());
    prompts.push_back(std::move(*prepared));
  }
  auto choices = Start(context, *parsed, prompts, std::move(*input));
  if (!choices.ok()) return ErrorReply(choices.error());

  Responder::Header header{"cmpl-" + RandomHex(24), "text_completion", fields.model,
                           context.system_fingerprint, std::time(nullptr)};
  const Responder::Shape shape{fields.stream, fields.include_usage, fields.continuous_usage,
                               fields.n};
  return std::make_unique<CompletionResponder>(std::move(header), shape, std::move(*choices),
                                               context.tokenizer, std::move(prompts), *parsed);
}

}  // namespace lacuna::server
