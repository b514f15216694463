#include "engine/loader/model_config.h"

#include <algorithm>
#include <array>
#include <cmath>

#include "engine/loader/bounded_json.h"
#include "kernels/core/dtype.h"

namespace lacuna::engine {
namespace {

using nlohmann::json;

constexpr std::string_view kInput = "input_layernorm";
constexpr std::string_view kPostAttention = "post_attention_layernorm";
constexpr std::string_view kPostFeedforward = "post_feedforward_layernorm";
constexpr BiasRule kByConfig = BiasRule::kIfAttentionBias;

constexpr std::array<FamilyTraits, 10> kFamilies = {{
    {.architecture = "LlamaForCausalLM",
     .model_type = "llama",
     .norm_before_attention = kInput,
     .norm_before_mlp = kPostAttention,
     .qkv_bias = kByConfig,
     .output_bias = kByConfig,
     .mlp_bias = true},
    {.architecture = "MistralForCausalLM",
     .model_type = "mistral",
     .norm_before_attention = kInput,
     .norm_before_mlp = kPostAttention,
     .window = WindowRule::kAllLayers,
     .window_default = 4096},
    {.architecture = "Qwen2ForCausalLM",
     .model_type = "qwen2",
     .norm_before_attention = kInput,
     .norm_before_mlp = kPostAttention,
     .qkv_bias = BiasRule::kAlways,
     .window = WindowRule::kUpperLayers,
     .window_default = 4096},
    {.architecture = "Qwen3ForCausalLM",
     .model_type = "qwen3",
     .norm_before_attention = kInput,
     .norm_before_mlp = kPostAttention,
     .qk_norm = QkNorm::kPerHead,
     .qkv_bias = kByConfig,
     .output_bias = kByConfig,
     .window = WindowRule::kUpperLayers,
     .head_dim_default = 128,
     .window_default = 4096},
    {.architecture = "Olmo2ForCausalLM",
     .model_type = "olmo2",
     .norm_after_attention = kPostAttention,
     .norm_after_mlp = kPostFeedforward,
     .qk_norm = QkNorm::kWhole,
     .qkv_bias = kByConfig,
     .output_bias = kByConfig,
     .eps_default = 1e-5},
    {.architecture = "Phi3ForCausalLM",
     .model_type = "phi3",
     .norm_before_attention = kInput,
     .norm_before_mlp = kPostAttention,
     .fused_qkv = true,
     .fused_gate_up = true,
     .window = WindowRule::kAllLayers,
     .eps_default = 1e-5},
    {.architecture = "GraniteForCausalLM",
     .model_type = "granite",
     .norm_before_attention = kInput,
     .norm_before_mlp = kPostAttention,
     .qkv_bias = kByConfig,
     .output_bias = kByConfig,
     .mlp_bias = true,
     .multipliers = true},
    {.architecture = "Glm4ForCausalLM",
     .model_type = "glm4",
     .norm_before_attention = kInput,
     .norm_after_attention = "post_self_attn_layernorm",
     .norm_before_mlp = kPostAttention,
     .norm_after_mlp = "post_mlp_layernorm",
     .fused_gate_up = true,
     .qkv_bias = kByConfig,
     .interleaved_rope = true,
     .head_dim_default = 128,
     .partial_rotary_default = 0.5,
     .eps_default = 1.5625e-7},
    {.architecture = "Gemma2ForCausalLM",
     .model_type = "gemma2",
     .norm_before_attention = kInput,
     .norm_after_attention = kPostAttention,
     .norm_before_mlp = "pre_feedforward_layernorm",
     .norm_after_mlp = kPostFeedforward,
     .norm_adds_one = true,
     .qkv_bias = kByConfig,
     .output_bias = kByConfig,
     .gelu = true,
     .scales_embedding = true,
     .query_scalar = true,
     .window = WindowRule::kAlternating,
     .tied_default = true,
     .head_dim_default = 256,
     .window_default = 4096,
     .window_pattern_default = 2},
    {.architecture = "Gemma3ForCausalLM",
     .model_type = "gemma3_text",
     .norm_before_attention = kInput,
     .norm_after_attention = kPostAttention,
     .norm_before_mlp = "pre_feedforward_layernorm",
     .norm_after_mlp = kPostFeedforward,
     .qk_norm = QkNorm::kPerHead,
     .norm_adds_one = true,
     .qkv_bias = kByConfig,
     .output_bias = kByConfig,
     .gelu = true,
     .scales_embedding = true,
     .query_scalar = true,
     .local_rope = true,
     .window = WindowRule::kAlternating,
     .tied_default = true,
     .head_dim_default = 256,
     .theta_default = 1e6,
     .window_default = 4096,
     .window_pattern_default = 6},
}};

const FamilyTraits* FindFamily(FieldReader& reader) {
  std::string name = reader.String("model_type", "");
  std::string_view FamilyTraits::*key = &FamilyTraits::model_type;
  if (const json* list = reader.Array("architectures", 16); list != nullptr && !list->empty()) {
    name = (*list)[0].is_string() ? (*list)[0].get<std::string>() : "";
    key = &FamilyTraits::architecture;
  }
  const auto it = std::ranges::find(kFamilies, name, key);
  if (it != kFamilies.end()) return &*it;
  std::string known;
  for (const FamilyTraits& family : kFamilies) {
    known += (known.empty() ? "one of " : ", ") + std::string(family.architecture);
  }
  reader.Fail("architectures", known, Describe(json(name)));
  return nullptr;
}

void ReadSizes(FieldReader& reader, ModelConfig& config) {
  constexpr int64_t kWidthMax = 1 << 20;
  config.vocab_size = reader.Int("vocab_size", 1, 1 << 24);
  config.hidden = reader.Int("hidden_size", 1, kWidthMax);
  config.ffn = reader.Int("intermediate_size", 1, kWidthMax);
  config.layers = reader.Int("num_hidden_layers", 1, 1024);
  config.q_heads = reader.Int("num_attention_heads", 1, 1024);
  config.kv_heads = reader.Int("num_key_value_heads", 1, 1024, config.q_heads);
  config.context_tokens_max = reader.Int("max_position_embeddings", 1, 1 << 24);
  if (!reader.status().ok()) return;
  if (config.q_heads % config.kv_heads != 0) {
    reader.Fail("num_key_value_heads", "a divisor of num_attention_heads",
                std::to_string(config.kv_heads));
  }
  const int64_t head_dim_default = config.family->head_dim_default > 0
                                       ? config.family->head_dim_default
                                       : config.hidden / config.q_heads;
  config.head_dim = reader.Int("head_dim", 2, 1024, head_dim_default);
  if (config.head_dim < 2 || config.head_dim % 2 != 0) {
    reader.Fail("head_dim", "an even number", std::to_string(config.head_dim));
  }
}

void ReadScales(FieldReader& reader, ModelConfig& config) {
  const FamilyTraits& family = *config.family;
  config.norm_eps = reader.Double("rms_norm_eps", 0.0, 1.0, family.eps_default);
  double scale = 1.0 / std::sqrt(static_cast<double>(config.head_dim));
  if (family.query_scalar) {
    scale = 1.0 / std::sqrt(reader.Double("query_pre_attn_scalar", 1e-6, 1e6, 256.0));
    config.attention_softcap = reader.Double("attn_logit_softcapping", 0.0, 1e6, 0.0);
    config.logits_softcap = reader.Double("final_logit_softcapping", 0.0, 1e6, 0.0);
  }
  if (family.scales_embedding) {
    // Rounded as the checkpoint's own arithmetic rounds it: that is what the model was trained on.
    const float multiplier = std::sqrt(static_cast<float>(config.hidden));
    config.embedding_multiplier = static_cast<double>(
        config.stored_dtype == "bfloat16" ? ToFloat(ToBF16(multiplier)) : multiplier);
  }
  if (family.multipliers) {
    config.embedding_multiplier = reader.Double("embedding_multiplier", -1e6, 1e6, 1.0);
    config.residual_multiplier = reader.Double("residual_multiplier", -1e6, 1e6, 1.0);
    config.logits_divisor = reader.Double("logits_scaling", 1e-6, 1e6, 1.0);
    scale = reader.Double("attention_multiplier", 1e-9, 1e6, 1.0);
  }
  config.attention_scale = scale;
}

void ReadSwitches(FieldReader& reader, ModelConfig& config) {
  const FamilyTraits& family = *config.family;
  config.tied_head = reader.Bool("tie_word_embeddings", family.tied_default);
  const bool attention_bias = reader.Bool("attention_bias", false);
  const auto resolve = [&](BiasRule rule) {
    return rule == BiasRule::kAlways || (rule == kByConfig && attention_bias);
  };
  config.qkv_bias = resolve(family.qkv_bias);
  config.output_bias = resolve(family.output_bias);
  config.mlp_bias = family.mlp_bias && reader.Bool("mlp_bias", false);

  const char* const key = reader.Has("hidden_activation") ? "hidden_activation" : "hidden_act";
  const std::string expected = family.gelu ? "gelu_pytorch_tanh" : "silu";
  const std::string activation = reader.String(key, expected);
  if (activation != expected) reader.Fail(key, expected, Describe(json(activation)));
  if (reader.Has("quantization_config")) {
    reader.Fail("quantization_config", "none (f32, bf16 or f16 weights)", "one");
  }
  if (reader.Bool("use_bidirectional_attention", false)) {
    reader.Fail("use_bidirectional_attention", "false", "true");
  }
  config.stored_dtype = reader.String("dtype", reader.String("torch_dtype", "unknown"));
}

// Which layers slide when `layer_types` does not say so.
bool SlidesByRule(const FamilyTraits& family, int64_t layer, int64_t first, int64_t pattern) {
  switch (family.window) {
    case WindowRule::kNone:
      return false;
    case WindowRule::kAllLayers:
      return true;
    case WindowRule::kUpperLayers:
      return layer >= first;
    case WindowRule::kAlternating:
      return (layer + 1) % pattern != 0;
  }
  return false;
}

// sliding[layer]; and the window that those layers share (0: none).
std::vector<bool> ReadWindows(FieldReader& reader, ModelConfig& config) {
  const FamilyTraits& family = *config.family;
  std::vector<bool> sliding(static_cast<size_t>(config.layers), false);
  config.layer_window.assign(static_cast<size_t>(config.layers), 0);
  if (family.window == WindowRule::kNone) return sliding;
  // Null means "no window"; only an absent key takes the family's default.
  const int64_t window = reader.Has("sliding_window") || !reader.Contains("sliding_window")
                             ? reader.Int("sliding_window", 0, INT32_MAX, family.window_default)
                             : 0;
  const bool used =
      family.window != WindowRule::kUpperLayers || reader.Bool("use_sliding_window", false);
  const int64_t first = reader.Int("max_window_layers", 0, 1 << 20, 28);
  const char* const pattern_key =
      reader.Has("sliding_window_pattern") ? "sliding_window_pattern" : "_sliding_window_pattern";
  const int64_t pattern =
      reader.Int(pattern_key, 1, 1 << 20, std::max<int64_t>(family.window_pattern_default, 1));
  const json* types = reader.Array("layer_types", 1024);
  if (types != nullptr && types->size() != sliding.size()) {
    reader.Fail("layer_types", std::to_string(sliding.size()) + " entries",
                std::to_string(types->size()));
    return sliding;
  }
  for (size_t i = 0; i < sliding.size(); ++i) {
    sliding[i] = used && SlidesByRule(family, static_cast<int64_t>(i), first, pattern);
    if (types != nullptr) {
      const json& type = (*types)[i];
      if (type != "full_attention" && type != "sliding_attention") {
        reader.Fail("layer_types", "full_attention or sliding_attention", Describe(type));
      }
      sliding[i] = used && type == "sliding_attention";
    }
    // A window that no sequence reaches is none: the layer then shares the full layers' pages.
    if (sliding[i] && window < config.context_tokens_max) {
      config.layer_window[i] = static_cast<int32_t>(window);
    }
  }
  return sliding;
}

void ReadRopes(FieldReader& reader, const std::vector<bool>& sliding, ModelConfig& config) {
  const FamilyTraits& family = *config.family;
  RopeDefaults defaults{
      .head_dim = config.head_dim,
      .theta = family.theta_default,
      .partial_rotary_factor = family.partial_rotary_default,
      .context_tokens_max = config.context_tokens_max,
      .original_context_tokens = reader.Int("original_max_position_embeddings", 0, 1 << 24, 0),
  };
  config.layer_rope.assign(static_cast<size_t>(config.layers), 0);
  if (!family.local_rope) {
    config.ropes = {ReadRopeConfig(reader, defaults)};
    return;
  }
  RopeConfig full, local;
  const json* nested = reader.Object("rope_parameters");
  if (nested != nullptr && nested->contains("full_attention")) {
    const auto read = [&](const char* type, double theta) {
      const json wrapped = {{"rope_parameters", nested->value(type, json::object())}};
      FieldReader inner(wrapped, reader.path() + type + ".");
      defaults.theta = theta;
      RopeConfig rope = ReadRopeConfig(inner, defaults);
      reader.Fail(inner.status());
      return rope;
    };
    full = read("full_attention", family.theta_default);
    local = read("sliding_attention", 10000.0);
  } else {
    // The old spelling: scaling applies to the full layers alone.
    full = ReadRopeConfig(reader, defaults);
    local.rotary_dim = full.rotary_dim;
    local.theta = reader.Double("rope_local_base_freq", 1.0 + 1e-6, 1e12, 10000.0);
  }
  config.ropes = {full};
  if (local != full) config.ropes.push_back(local);
  for (size_t i = 0; i < sliding.size(); ++i) {
    config.layer_rope[i] = sliding[i] && config.ropes.size() > 1 ? 1 : 0;
  }
}

// An integer or a list of them.
std::vector<TokenId> ReadTokenIds(FieldReader& reader, const json& object, const char* key) {
  std::vector<TokenId> ids;
  if (!reader.Has(key)) return ids;
  const json& value = object[key];
  const json list = value.is_array() ? value : json::array({value});
  for (const json& id : list) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() > INT32_MAX || list.size() > 1024) {
      reader.Fail(key, "a token id or a list of them", Describe(id));
      return {};
    }
    ids.push_back(static_cast<TokenId>(id.get<uint64_t>()));
  }
  return ids;
}

Status AddSpecialTokens(std::string_view text, const char* file, ModelConfig& config) {
  LACUNA_ASSIGN_OR_RETURN(const json object, ParseJsonObject(text, file));
  FieldReader reader(object, std::string(file) + ": ");
  for (const TokenId id : ReadTokenIds(reader, object, "eos_token_id")) config.eos.push_back(id);
  const std::vector<TokenId> bos = ReadTokenIds(reader, object, "bos_token_id");
  if (!bos.empty() && !config.bos) config.bos = bos.front();
  std::ranges::sort(config.eos);
  config.eos.erase(std::unique(config.eos.begin(), config.eos.end()), config.eos.end());
  return reader.status();
}

}  // namespace

std::span<const FamilyTraits> Families() { return kFamilies; }

Result<ModelConfig> ParseModelConfig(std::string_view config_json,
                                     std::string_view generation_config_json) {
  LACUNA_ASSIGN_OR_RETURN(const json object, ParseJsonObject(config_json, "config.json"));
  FieldReader reader(object, "config.json: ");
  ModelConfig config;
  config.family = FindFamily(reader);
  LACUNA_RETURN_IF_ERROR(reader.status());
  ReadSizes(reader, config);
  LACUNA_RETURN_IF_ERROR(reader.status());  // the sizes bound all that follows
  ReadSwitches(reader, config);
  ReadScales(reader, config);
  ReadRopes(reader, ReadWindows(reader, config), config);
  LACUNA_RETURN_IF_ERROR(reader.status());
  LACUNA_RETURN_IF_ERROR(AddSpecialTokens(config_json, "config.json", config));
  if (!generation_config_json.empty()) {
    LACUNA_RETURN_IF_ERROR(
        AddSpecialTokens(generation_config_json, "generation_config.json", config));
  }
  return config;
}

}  // namespace lacuna::engine
