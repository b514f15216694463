#include "server/api/generation_fields.h"

#include <charconv>
#include <limits>
#include <nlohmann/json.hpp>

namespace lacuna::server {
namespace {

using nlohmann::json;

constexpr int64_t kInt32Max = std::numeric_limits<int32_t>::max();

void ReadSampling(FieldReader& reader, engine::SamplingParams& sampling) {
  reader.Number("temperature", 0.0, 2.0, sampling.temperature);
  if (reader.Number("top_p", 0.0, 1.0, sampling.top_p) && sampling.top_p == 0.0) {
    reader.Fail(ErrorKind::kBadValue, "top_p", "'top_p' must be above 0 and at most 1.");
  }
  reader.Number("min_p", 0.0, 1.0, sampling.min_p);
  reader.Number("presence_penalty", -2.0, 2.0, sampling.presence_penalty);
  reader.Number("frequency_penalty", -2.0, 2.0, sampling.frequency_penalty);
  if (reader.Number("repetition_penalty", 0.0, 100.0, sampling.repetition_penalty) &&
      sampling.repetition_penalty < 0.01) {
    reader.Fail(ErrorKind::kBadValue, "repetition_penalty",
                "'repetition_penalty' must be a number from 0.01 to 100.");
  }
  int64_t top_k = 0;
  if (reader.Int("top_k", -1, kInt32Max, top_k)) {
    sampling.top_k = top_k < 0 ? 0 : static_cast<int32_t>(top_k);
  }
  reader.Bool("ignore_eos", sampling.ignore_eos);
}

void ReadSeed(FieldReader& reader, GenerationFields& fields) {
  const json* seed = reader.Find("seed");
  if (seed == nullptr) return;
  if (!seed->is_number_integer()) {
    reader.Fail(seed->is_number() ? ErrorKind::kBadValue : ErrorKind::kWrongType, "seed",
                "'seed' must be a 64-bit integer.");
    return;
  }
  // Negative seeds are valid in OpenAI's API; only their bits matter.
  fields.sampling.seed = seed->is_number_unsigned() ? seed->get<uint64_t>()
                                                    : static_cast<uint64_t>(seed->get<int64_t>());
  fields.has_seed = true;
}

void ReadLogitBias(FieldReader& reader, const ApiLimits& limits, int64_t vocab_size,
                   engine::SamplingParams& sampling) {
  const json* bias = reader.Find("logit_bias");
  if (bias == nullptr) return;
  if (!bias->is_object()) {
    reader.Fail(ErrorKind::kWrongType, "logit_bias",
                "'logit_bias' must be an object of token ids and numbers.");
    return;
  }
  if (static_cast<int64_t>(bias->size()) > limits.logit_bias_max) {
    reader.Fail(
        ErrorKind::kBadValue, "logit_bias",
        "'logit_bias' must have at most " + std::to_string(limits.logit_bias_max) + " entries.");
    return;
  }
  for (const auto& [key, value] : bias->items()) {
    TokenId token = -1;
    const char* end = key.data() + key.size();
    const auto [stop, error] = std::from_chars(key.data(), end, token);
    if (error != std::errc() || stop != end || token < 0 || token >= vocab_size) {
      reader.Fail(ErrorKind::kBadValue, "logit_bias",
                  "A key of 'logit_bias' is not a token id of this model.");
      return;
    }
    if (!value.is_number() || !(value.get<double>() >= -100.0 && value.get<double>() <= 100.0)) {
      reader.Fail(ErrorKind::kBadValue, "logit_bias",
                  "The values of 'logit_bias' must be numbers from -100 to 100.");
      return;
    }
    sampling.logit_bias.emplace_back(token, value.get<float>());
  }
}

void AddStop(FieldReader& reader, const std::string& name, const json& value,
             const ApiLimits& limits, std::vector<std::string>& out) {
  if (!value.is_string()) {
    reader.Fail(ErrorKind::kWrongType, name, "'" + name + "' must be a string.");
    return;
  }
  const auto& text = value.get_ref<const std::string&>();
  if (text.empty() || static_cast<int64_t>(text.size()) > limits.stop_bytes_max) {
    reader.Fail(
        ErrorKind::kBadValue, name,
        "'" + name + "' must have 1 to " + std::to_string(limits.stop_bytes_max) + " bytes.");
    return;
  }
  out.push_back(text);
}

void ReadStop(FieldReader& reader, const ApiLimits& limits, std::vector<std::string>& out) {
  const json* stop = reader.Find("stop");
  if (stop == nullptr) return;
  if (!stop->is_array()) {
    AddStop(reader, "stop", *stop, limits, out);
    return;
  }
  if (reader.Array("stop", static_cast<size_t>(limits.stop_strings_max)) == nullptr) return;
  for (size_t i = 0; i < stop->size(); ++i) {
    AddStop(reader, "stop[" + std::to_string(i) + "]", (*stop)[i], limits, out);
  }
}

void ReadStopTokens(FieldReader& reader, const ApiLimits& limits, int64_t vocab_size,
                    engine::SamplingParams& sampling) {
  const json* ids = reader.Array("stop_token_ids", static_cast<size_t>(limits.stop_token_ids_max));
  if (ids == nullptr) return;
  for (size_t i = 0; i < ids->size(); ++i) {
    const std::optional<int64_t> id = AsInt((*ids)[i], 0, vocab_size - 1);
    if (!id) {
      const std::string name = "stop_token_ids[" + std::to_string(i) + "]";
      reader.Fail(ErrorKind::kBadValue, name, "'" + name + "' is not a token id of this model.");
      return;
    }
    sampling.stop_token_ids.push_back(static_cast<TokenId>(*id));
  }
}

void ReadStream(FieldReader& reader, GenerationFields& fields) {
  reader.Bool("stream", fields.stream);
  const json* options = reader.Find("stream_options");
  if (options == nullptr) return;
  if (!options->is_object()) {
    reader.Fail(ErrorKind::kWrongType, "stream_options", "'stream_options' must be an object.");
    return;
  }
  if (!fields.stream) {
    reader.Fail(ErrorKind::kBadValue, "stream_options",
                "'stream_options' is only allowed when 'stream' is true.");
    return;
  }
  FieldReader inner(*options, reader.Path("stream_options"));
  inner.Bool("include_usage", fields.include_usage);
  inner.Bool("continuous_usage_stats", fields.continuous_usage);
  inner.Ignore({"include_obfuscation"});
  if (!inner.ok()) reader.Fail(inner.error());
}

void ReadBudget(FieldReader& reader, const ApiLimits& limits, const ModelBounds& bounds,
                GenerationFields& fields) {
  int64_t min_tokens = 0;
  reader.Int("min_tokens", 0, bounds.context_tokens_max, min_tokens);
  fields.sampling.min_tokens = static_cast<int32_t>(min_tokens);
  int64_t n = 1;
  reader.Int("n", 1, limits.n_max, n);
  fields.n = static_cast<int32_t>(n);
  int64_t priority = 0;
  reader.Int("priority", -100, 100, priority);
  fields.priority = static_cast<int32_t>(priority);
  reader.Int("deadline_ms", 1, limits.deadline_ms, fields.deadline_ms);
}

}  // namespace

GenerationFields ReadGenerationFields(FieldReader& reader, const ApiLimits& limits,
                                      const ModelBounds& bounds) {
  GenerationFields fields;
  if (reader.Require("model") != nullptr) reader.String("model", 256, fields.model);
  ReadSampling(reader, fields.sampling);
  ReadSeed(reader, fields);
  ReadLogitBias(reader, limits, bounds.vocab_size, fields.sampling);
  ReadStop(reader, limits, fields.stop);
  ReadStopTokens(reader, limits, bounds.vocab_size, fields.sampling);
  ReadStream(reader, fields);
  ReadBudget(reader, limits, bounds, fields);
  reader.Bool("include_stop_str_in_output", fields.include_stop);
  reader.Bool("skip_special_tokens", fields.skip_special_tokens);
  reader.String("cache_salt", 256, fields.cache_salt);
  fields.sparse = ReadSparseFields(reader);
  reader.Ignore({"user", "metadata", "store", "safety_identifier", "prompt_cache_key",
                 "prompt_cache_retention", "prompt_cache_options", "service_tier",
                 "spaces_between_special_tokens", "request_id"});
  // What would change the text and cannot be honoured must not be dropped silently.
  reader.Refuse({"guided_json", "guided_regex", "guided_choice", "guided_grammar",
                 "structured_outputs", "grammar", "json_schema", "regex", "ebnf", "use_beam_search",
                 "truncate_prompt_tokens", "logits_processors", "kv_transfer_params", "bad_words",
                 "lora"});
  return fields;
}

}  // namespace lacuna::server
