#include "server/grpc/transcode.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "server/api/chat_prompt.h"
#include "server/api/completion_request.h"
#include "server/api/sparse_fields.h"

namespace lacuna::server {
namespace {

using nlohmann::json;

// The .proto's name of a field that HTTP spells otherwise.
std::string ProtoName(const std::string& name, const v1::GenerateRequest& request) {
  if (name == "prompt")
    return request.prompt_case() == v1::GenerateRequest::kTokens ? "tokens" : "text";
  if (name == "top_logprobs") return "logprobs";
  if (name.starts_with("messages")) return std::string("chat.").append(name);
  return name;
}

ApiError Renamed(ApiError error, const v1::GenerateRequest& request) {
  if (error.param) error.param = ProtoName(*error.param, request);
  return error;
}

json ModelName(const ApiContext& context, bool has, const std::string& name) {
  return has ? name : context.model_name;
}

void AddSampling(const v1::Sampling& sampling, json& body) {
  if (sampling.has_temperature()) body["temperature"] = sampling.temperature();
  if (sampling.has_top_p()) body["top_p"] = sampling.top_p();
  if (sampling.has_top_k()) body["top_k"] = sampling.top_k();
  if (sampling.has_min_p()) body["min_p"] = sampling.min_p();
  if (sampling.has_repetition_penalty()) body["repetition_penalty"] = sampling.repetition_penalty();
  if (sampling.has_presence_penalty()) body["presence_penalty"] = sampling.presence_penalty();
  if (sampling.has_frequency_penalty()) body["frequency_penalty"] = sampling.frequency_penalty();
  if (sampling.has_seed()) body["seed"] = sampling.seed();
  for (const auto& [token, bias] : sampling.logit_bias()) {
    body["logit_bias"][std::to_string(token)] = bias;
  }
}

// What text, tokens and chat share.
json CommonBody(const ApiContext& context, const v1::GenerateRequest& request) {
  json body = {{"model", ModelName(context, request.has_model(), request.model())}};
  AddSampling(request.sampling(), body);
  if (request.has_max_tokens()) body["max_tokens"] = request.max_tokens();
  if (request.has_min_tokens()) body["min_tokens"] = request.min_tokens();
  for (const std::string& stop : request.stop()) body["stop"].push_back(stop);
  for (const int32_t id : request.stop_token_ids()) body["stop_token_ids"].push_back(id);
  if (request.has_include_stop()) body["include_stop_str_in_output"] = request.include_stop();
  if (request.has_ignore_eos()) body["ignore_eos"] = request.ignore_eos();
  if (request.has_skip_special_tokens()) {
    body["skip_special_tokens"] = request.skip_special_tokens();
  }
  if (request.has_n()) body["n"] = request.n();
  if (request.has_priority()) body["priority"] = request.priority();
  if (request.has_cache_salt()) body["cache_salt"] = request.cache_salt();
  return body;
}

ApiResult<json> SparseBody(const v1::Sparse& sparse) {
  json body = json::object();
  for (const auto& [name, value] : sparse.dials()) {
    if (IsSparseKey(name)) {
      return ApiError{ErrorKind::kBadValue, "'" + name + "' is a field of its own and no dial.",
                      "sparse.dials"};
    }
    body[name] = value;
  }
  if (sparse.has_profile()) body["profile"] = sparse.profile();
  if (sparse.mode() == v1::SPARSE_MODE_DENSE) {
    body["mode"] = "dense";
  } else if (sparse.mode() != v1::SPARSE_MODE_UNSPECIFIED) {
    return ApiError{ErrorKind::kBadValue, "'sparse.mode' must be one of SparseMode's.",
                    "sparse.mode"};
  }
  if (sparse.has_audit_fraction()) body["audit_fraction"] = sparse.audit_fraction();
  if (sparse.has_mass_floor()) body["mass_floor"] = sparse.mass_floor();
  if (sparse.has_usage()) body["usage"] = sparse.usage();
  return body;
}

void AddChat(const v1::Chat& chat, json& body) {
  body["messages"] = json::array();
  for (const v1::ChatMessage& message : chat.messages()) {
    json item = {{"role", message.role()}, {"content", message.content()}};
    if (message.has_name()) item["name"] = message.name();
    if (message.has_tool_call_id()) item["tool_call_id"] = message.tool_call_id();
    body["messages"].push_back(std::move(item));
  }
  if (chat.has_continue_final_message()) {
    body["continue_final_message"] = chat.continue_final_message();
  }
}

std::optional<ApiError> CheckCount(const ApiContext& context, int count, const char* name) {
  if (count <= context.limits.json_nodes_max) return std::nullopt;
  return ApiError{ErrorKind::kBadValue,
                  "At most " + std::to_string(context.limits.json_nodes_max) + " are allowed.",
                  name};
}

ApiResult<GenerationInput> FromPrompt(const ApiContext& context, json body,
                                      const v1::GenerateRequest& request, CacheScope scope) {
  if (request.has_tokens()) {
    body["prompt"] = request.tokens().ids();
  } else {
    body["prompt"] = request.text();
  }
  if (request.has_add_special_tokens()) body["add_special_tokens"] = request.add_special_tokens();
  if (request.has_logprobs()) body["logprobs"] = request.logprobs();
  auto parsed = ParseCompletionRequest(body, context.limits, context.bounds());
  if (!parsed.ok()) return Renamed(parsed.error(), request);
  if (auto error = CheckModel(context, parsed->fields.model)) return *error;
  auto made = MakeGenerationInput(context, parsed->fields, scope);
  if (!made.ok()) return made.error();
  GenerationInput& input = *made;
  input.sampling.max_tokens = static_cast<int32_t>(*parsed->fields.max_tokens);
  input.sampling.logprobs = parsed->logprobs;
  if (auto* ids = std::get_if<std::vector<TokenId>>(&parsed->prompts.front())) {
    input.prompt = std::move(*ids);
    return made;
  }
  auto tokens = context.tokenizer.Encode(std::get<std::string>(parsed->prompts.front()),
                                         {.add_special_tokens = parsed->add_special_tokens});
  if (!tokens.ok()) return FromStatus(tokens.status(), "text");
  if (tokens->empty()) return ApiError{ErrorKind::kBadValue, "'text' has no tokens.", "text"};
  input.prompt = std::move(*tokens);
  return made;
}

ApiResult<GenerationInput> FromChat(const ApiContext& context, json body,
                                    const v1::GenerateRequest& request, CacheScope scope) {
  AddChat(request.chat(), body);
  if (request.has_logprobs()) {
    body["logprobs"] = true;
    body["top_logprobs"] = request.logprobs();
  }
  auto parsed = ParseChatRequest(body, context.limits, context.bounds());
  if (!parsed.ok()) return Renamed(parsed.error(), request);
  if (auto error = CheckModel(context, parsed->fields.model)) return *error;
  auto made = MakeGenerationInput(context, parsed->fields, scope);
  if (!made.ok()) return made.error();
  auto prompt = ChatPrompt(context, parsed->input);
  if (!prompt.ok()) return Renamed(prompt.error(), request);
  GenerationInput& input = *made;
  input.prompt = std::move(*prompt);
  input.sampling.logprobs = parsed->logprobs ? parsed->top_logprobs : -1;
  const int64_t context_tokens = context.engine.context_tokens_max();
  int64_t max_tokens = parsed->fields.max_tokens.value_or(context.limits.max_tokens_default);
  if (!parsed->fields.max_tokens) {
    // A default must not be refused where a client did not ask for anything.
    input.clamp_max_tokens = true;
    if (max_tokens == 0 || max_tokens > context_tokens) max_tokens = context_tokens;
  }
  input.sampling.max_tokens = static_cast<int32_t>(max_tokens);
  return made;
}

v1::SparseUsage MakeSparseUsage(const std::string& profile, const engine::SparseUsage& usage) {
  v1::SparseUsage out;
  out.set_profile(profile);
  out.set_dense_steps(usage.dense_steps);
  out.set_sparse_steps(usage.sparse_steps);
  out.set_pages_considered(usage.pages_considered);
  out.set_pages_selected(usage.pages_selected);
  out.set_prefill_blocks_considered(usage.prefill_blocks_considered);
  out.set_prefill_blocks_selected(usage.prefill_blocks_selected);
  if (usage.estimated_mass > 0) out.set_estimated_mass(usage.estimated_mass);
  out.set_audited_steps(usage.audited_steps);
  out.set_budget_widened(usage.budget_widened);
  if (usage.audited_steps == 0) return out;
  for (const double mass : usage.captured_mass) out.add_captured_mass(mass);
  for (const double error : usage.output_error) out.add_output_error(error);
  return out;
}

}  // namespace

ApiResult<GenerationInput> ReadGenerate(const ApiContext& context,
                                        const v1::GenerateRequest& request, CacheScope scope) {
  for (const auto& [count, name] :
       {std::pair{request.tokens().ids_size(), "tokens"}, std::pair{request.stop_size(), "stop"},
        std::pair{request.stop_token_ids_size(), "stop_token_ids"}}) {
    if (auto error = CheckCount(context, count, name)) return *error;
  }
  json body = CommonBody(context, request);
  if (request.has_sparse()) {
    auto sparse = SparseBody(request.sparse());
    if (!sparse.ok()) return sparse.error();
    body["sparse"] = std::move(*sparse);
  }
  switch (request.prompt_case()) {
    case v1::GenerateRequest::kText:
    case v1::GenerateRequest::kTokens:
      return FromPrompt(context, std::move(body), request, scope);
    case v1::GenerateRequest::kChat:
      return FromChat(context, std::move(body), request, scope);
    case v1::GenerateRequest::PROMPT_NOT_SET:
      break;
  }
  return ApiError{ErrorKind::kMissing, "One of 'text', 'tokens' and 'chat' is needed.", "prompt"};
}

ApiResult<std::vector<TokenId>> ReadTokenize(const ApiContext& context,
                                             const v1::TokenizeRequest& request) {
  if (request.has_model()) {
    if (auto error = CheckModel(context, request.model())) return *error;
  }
  if (request.has_chat()) {
    json body = json::object();
    AddChat(request.chat(), body);
    FieldReader reader(body, "");
    const ChatInput input = ReadChatInput(reader, context.limits);
    if (!reader.ok()) return reader.error();
    return ChatPrompt(context, input);
  }
  if (!request.has_text()) {
    return ApiError{ErrorKind::kMissing, "One of 'text' and 'chat' is needed.", "input"};
  }
  const bool special = !request.has_add_special_tokens() || request.add_special_tokens();
  auto tokens = context.tokenizer.Encode(request.text(), {.add_special_tokens = special});
  if (!tokens.ok()) return FromStatus(tokens.status(), "text");
  return std::move(*tokens);
}

ApiResult<std::vector<TokenId>> ReadDetokenize(const ApiContext& context,
                                               const v1::DetokenizeRequest& request) {
  if (request.has_model()) {
    if (auto error = CheckModel(context, request.model())) return *error;
  }
  if (auto error = CheckCount(context, request.ids_size(), "ids")) return *error;
  for (int i = 0; i < request.ids_size(); ++i) {
    if (request.ids(i) >= 0 && request.ids(i) < context.tokenizer.vocab_size()) continue;
    return ApiError{ErrorKind::kUnprocessable, "Not in the vocabulary.",
                    std::string("ids[").append(std::to_string(i)).append("]")};
  }
  return std::vector<TokenId>(request.ids().begin(), request.ids().end());
}

ApiResult<v1::GetModelResponse> ReadGetModel(const ApiContext& context,
                                             const v1::GetModelRequest& request) {
  if (request.has_model()) {
    if (auto error = CheckModel(context, request.model())) return *error;
  }
  v1::GetModelResponse model;
  model.set_name(context.model_name);
  for (const std::string& alias : context.aliases) model.add_aliases(alias);
  model.set_vocab_size(context.vocab_size);
  model.set_context_tokens_max(context.engine.context_tokens_max());
  model.set_has_chat_template(context.chat_template != nullptr);
  model.set_server_version(context.version);
  return model;
}

void AppendDelta(const Tokenizer& tokenizer, const Choice::Delta& delta, v1::Chunk& chunk) {
  chunk.mutable_text()->append(delta.text);
  for (const TokenId token : delta.tokens) chunk.add_token_ids(token);
  for (const engine::TokenLogprob& logprob : delta.logprobs) {
    v1::TokenLogprob& out = *chunk.add_logprobs();
    out.set_token_id(logprob.token);
    out.set_token(tokenizer.TokenBytes(logprob.token));
    out.set_logprob(logprob.logprob);
    for (const auto& [token, value] : logprob.top) {
      v1::TokenLogprob::Alternative& top = *out.add_top();
      top.set_token_id(token);
      top.set_token(tokenizer.TokenBytes(token));
      top.set_logprob(value);
    }
  }
}

v1::Finished MakeFinished(int32_t index, const Outcome& outcome) {
  v1::Finished finished;
  finished.set_index(index);
  finished.set_finish_reason(outcome.finish_reason == "length" ? v1::FINISH_REASON_LENGTH
                                                               : v1::FINISH_REASON_STOP);
  if (!outcome.matched_stop.empty()) finished.set_stop_string(outcome.matched_stop);
  if (outcome.stop_token >= 0) finished.set_stop_token_id(outcome.stop_token);
  finished.mutable_usage()->set_prompt_tokens(outcome.usage.prompt_tokens);
  finished.mutable_usage()->set_cached_tokens(outcome.usage.cached_tokens);
  finished.mutable_usage()->set_completion_tokens(outcome.usage.completion_tokens);
  if (!outcome.sparse_usage_of.empty()) {
    *finished.mutable_usage()->mutable_sparse() =
        MakeSparseUsage(outcome.sparse_usage_of, outcome.usage.sparse);
  }
  return finished;
}

}  // namespace lacuna::server
