#include "engine/loader/model_config.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

namespace lacuna::engine {
namespace {

using nlohmann::json;

json Llama() {
  return {{"architectures", {"LlamaForCausalLM"}},
          {"vocab_size", 320},
          {"hidden_size", 128},
          {"intermediate_size", 192},
          {"num_hidden_layers", 4},
          {"num_attention_heads", 4},
          {"num_key_value_heads", 2},
          {"max_position_embeddings", 8192},
          {"rms_norm_eps", 1e-5}};
}

json Family(const std::string& architecture) {
  json config = Llama();
  config["architectures"] = {architecture};
  return config;
}

ModelConfig Parse(const json& config, const std::string& generation = "") {
  const Result<ModelConfig> result = ParseModelConfig(config.dump(), generation);
  EXPECT_TRUE(result.ok()) << result.status().ToString();
  return result.ok() ? *result : ModelConfig{};
}

std::string ErrorOf(const json& config, const std::string& generation = "") {
  const Result<ModelConfig> result = ParseModelConfig(config.dump(), generation);
  EXPECT_FALSE(result.ok()) << config.dump();
  return result.status().message();
}

TEST(ModelConfig, FillsInDefaults) {
  const ModelConfig config = Parse(Llama());
  EXPECT_EQ(config.head_dim, 32);
  EXPECT_FALSE(config.tied_head);
  EXPECT_DOUBLE_EQ(config.attention_scale, 1.0 / std::sqrt(32.0));
  EXPECT_EQ(config.layer_window, (std::vector<int32_t>{0, 0, 0, 0}));
  ASSERT_EQ(config.ropes.size(), 1u);
  EXPECT_EQ(config.ropes[0].rotary_dim, 32);
  EXPECT_EQ(config.ropes[0].theta, 10000.0);
}

TEST(ModelConfig, BothSpellingsMeanTheSame) {
  json old_one = Llama(), new_one = Llama();
  old_one["torch_dtype"] = "bfloat16";
  old_one["rope_theta"] = 500000.0;
  old_one["rope_scaling"] = {{"type", "llama3"},
                             {"factor", 8.0},
                             {"low_freq_factor", 1.0},
                             {"high_freq_factor", 4.0},
                             {"original_max_position_embeddings", 1024}};
  new_one["dtype"] = "bfloat16";
  new_one["rope_parameters"] = {
      {"rope_type", "llama3"},   {"rope_theta", 500000.0},
      {"factor", 8.0},           {"low_freq_factor", 1.0},
      {"high_freq_factor", 4.0}, {"original_max_position_embeddings", 1024}};
  EXPECT_EQ(Parse(old_one).ropes, Parse(new_one).ropes);
  EXPECT_EQ(Parse(old_one).stored_dtype, Parse(new_one).stored_dtype);
  EXPECT_EQ(Parse(new_one).ropes[0].theta, 500000.0);

  json gemma_old = Family("Gemma3ForCausalLM"), gemma_new = Family("Gemma3ForCausalLM");
  gemma_old["rope_theta"] = 1e6;
  gemma_old["rope_local_base_freq"] = 10000.0;
  gemma_old["rope_scaling"] = {{"rope_type", "linear"}, {"factor", 8.0}};
  gemma_old["sliding_window_pattern"] = 2;
  gemma_new["rope_parameters"] = {
      {"full_attention", {{"rope_type", "linear"}, {"factor", 8.0}, {"rope_theta", 1e6}}},
      {"sliding_attention", {{"rope_type", "default"}, {"rope_theta", 10000.0}}}};
  gemma_new["layer_types"] = {"sliding_attention", "full_attention", "sliding_attention",
                              "full_attention"};
  EXPECT_EQ(Parse(gemma_old).ropes, Parse(gemma_new).ropes);
  EXPECT_EQ(Parse(gemma_old).layer_rope, (std::vector<int32_t>{1, 0, 1, 0}));
  EXPECT_EQ(Parse(gemma_old).layer_rope, Parse(gemma_new).layer_rope);
  EXPECT_EQ(Parse(gemma_old).layer_window, Parse(gemma_new).layer_window);
}

TEST(ModelConfig, Windows) {
  const std::vector<int32_t> none = {0, 0, 0, 0};
  json mistral = Family("MistralForCausalLM");
  EXPECT_EQ(Parse(mistral).layer_window, (std::vector<int32_t>{4096, 4096, 4096, 4096}));
  mistral["sliding_window"] = nullptr;
  EXPECT_EQ(Parse(mistral).layer_window, none);
  mistral["sliding_window"] = 16;
  EXPECT_EQ(Parse(mistral).layer_window, (std::vector<int32_t>{16, 16, 16, 16}));
  mistral["sliding_window"] = 8192;  // no sequence is longer
  EXPECT_EQ(Parse(mistral).layer_window, none);

  json qwen = Family("Qwen2ForCausalLM");
  qwen["sliding_window"] = 64;
  qwen["max_window_layers"] = 3;
  EXPECT_EQ(Parse(qwen).layer_window, none);
  qwen["use_sliding_window"] = true;
  EXPECT_EQ(Parse(qwen).layer_window, (std::vector<int32_t>{0, 0, 0, 64}));

  json gemma = Family("Gemma2ForCausalLM");
  EXPECT_EQ(Parse(gemma).layer_window, (std::vector<int32_t>{4096, 0, 4096, 0}));
  gemma["layer_types"] = {"full_attention", "linear_attention", "full_attention", "full_attention"};
  EXPECT_EQ(ErrorOf(gemma),
            "config.json: layer_types: expected full_attention or sliding_attention, found "
            "\"linear_attention\"");
  gemma["layer_types"] = {"full_attention"};
  EXPECT_EQ(ErrorOf(gemma), "config.json: layer_types: expected 4 entries, found 1");
}

TEST(ModelConfig, EndOfSequenceIsAnIntegerOrAList) {
  json config = Llama();
  config["eos_token_id"] = 7;
  config["bos_token_id"] = 1;
  const ModelConfig merged = Parse(config, R"({"eos_token_id": [9, 7, 3]})");
  EXPECT_EQ(merged.eos, (std::vector<TokenId>{3, 7, 9}));
  EXPECT_EQ(merged.bos, 1);
  config["eos_token_id"] = "x";
  EXPECT_EQ(ErrorOf(config),
            "config.json: eos_token_id: expected a token id or a list of them, found \"x\"");
  EXPECT_EQ(ErrorOf(Llama(), R"({"eos_token_id": -1})"),
            "generation_config.json: eos_token_id: expected a token id or a list of them, found "
            "-1");
}

TEST(ModelConfig, ErrorsNameKeyExpectedAndFound) {
  json config = Llama();
  config["architectures"] = {"MambaForCausalLM"};
  EXPECT_NE(ErrorOf(config).find("config.json: architectures: expected one of LlamaForCausalLM"),
            std::string::npos);
  EXPECT_NE(ErrorOf(config).find("found \"MambaForCausalLM\""), std::string::npos);
  config = Llama();
  config.erase("hidden_size");
  EXPECT_EQ(ErrorOf(config),
            "config.json: hidden_size: expected an integer from 1 to 1048576, found nothing");
  config = Llama();
  config["num_key_value_heads"] = 3;
  EXPECT_EQ(ErrorOf(config),
            "config.json: num_key_value_heads: expected a divisor of "
            "num_attention_heads, found 3");
  config = Llama();
  config["hidden_act"] = "relu";
  EXPECT_EQ(ErrorOf(config), "config.json: hidden_act: expected silu, found \"relu\"");
  config = Llama();
  config["quantization_config"] = {{"bits", 4}};
  EXPECT_NE(ErrorOf(config).find("quantization_config"), std::string::npos);
  config = Llama();
  config["rope_scaling"] = {{"type", "dynamic"}, {"factor", 2.0}};
  EXPECT_EQ(ErrorOf(config),
            "config.json: rope_scaling.rope_type: expected default, linear, "
            "llama3, yarn or longrope, found \"dynamic\"");
}

TEST(ModelConfig, HostileNumbersAreErrors) {
  for (const char* key :
       {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
        "num_attention_heads", "num_key_value_heads", "max_position_embeddings", "head_dim"}) {
    for (const json& value : {json(0), json(-1), json(1e300), json(1.5), json("4"), json(INT64_MAX),
                              json(UINT64_MAX), json::array()}) {
      json config = Llama();
      config[key] = value;
      EXPECT_NE(ErrorOf(config).find(key), std::string::npos);
    }
  }
  EXPECT_FALSE(ParseModelConfig(std::string(1 << 20, '['), "").ok());
  EXPECT_FALSE(ParseModelConfig("", "").ok());
  EXPECT_FALSE(ParseModelConfig(Llama().dump(), "[").ok());
}

TEST(ModelConfig, TheTableNamesEveryFamilyOnce) {
  ASSERT_EQ(Families().size(), 10u);
  for (const FamilyTraits& family : Families()) {
    json config = Family(std::string(family.architecture));
    EXPECT_EQ(Parse(config).family, &family);
    config.erase("architectures");
    config["model_type"] = family.model_type;
    EXPECT_EQ(Parse(config).family, &family);
  }
}

}  // namespace
}  // namespace lacuna::engine
