// Small tokenizers for the tests of server/text, made from a few lines of JSON.
#pragma once

#include <gtest/gtest.h>

#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "server/text/tokenizer.h"
#include "server/text/unicode.h"

namespace lacuna::server {

inline std::string ReadFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.good()) << path;
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// A BPE without merges over `tokens` (ids in order); sections are JSON text or "null".
struct TokenizerSpec {
  std::vector<std::string> tokens;
  std::vector<std::string> merges = {};
  std::string normalizer = "null";
  std::string pre_tokenizer = "null";
  std::string post_processor = "null";
  std::string decoder = R"({"type":"Fuse"})";
  std::string added_tokens = "[]";
  std::string model_extra = "{}";
};

inline std::string SpecJson(const TokenizerSpec& spec) {
  using nlohmann::json;
  json model = {{"type", "BPE"}, {"vocab", json::object()}, {"merges", spec.merges}};
  for (size_t id = 0; id < spec.tokens.size(); ++id) model["vocab"][spec.tokens[id]] = id;
  model.update(json::parse(spec.model_extra));
  return json{{"normalizer", json::parse(spec.normalizer)},
              {"pre_tokenizer", json::parse(spec.pre_tokenizer)},
              {"post_processor", json::parse(spec.post_processor)},
              {"decoder", json::parse(spec.decoder)},
              {"added_tokens", json::parse(spec.added_tokens)},
              {"model", model}}
      .dump();
}

inline std::unique_ptr<Tokenizer> MakeTokenizer(const std::string& json) {
  auto tokenizer = Tokenizer::FromJson(json);
  if (!tokenizer.ok()) {
    ADD_FAILURE() << tokenizer.status().message();
    return nullptr;
  }
  return std::move(tokenizer).value();
}

inline std::vector<TokenId> Ids(const Tokenizer& tokenizer, const std::string& text,
                                Tokenizer::EncodeOptions options = {}) {
  auto ids = tokenizer.Encode(text, options);
  EXPECT_TRUE(ids.ok()) << ids.status().message();
  return ids.ok() ? *ids : std::vector<TokenId>{};
}

// The 256 characters of the byte-level alphabet, by byte.
inline std::vector<std::string> ByteLevelTokens() {
  std::vector<std::string> tokens;
  for (int byte = 0; byte < 256; ++byte) {
    tokens.emplace_back(ByteLevelChar(static_cast<uint8_t>(byte)));
  }
  return tokens;
}

}  // namespace lacuna::server
