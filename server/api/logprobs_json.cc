#include "server/api/logprobs_json.h"

#include <algorithm>
#include <cstdio>
#include <string_view>
#include <utility>

#include "server/text/jinja_unicode.h"
#include "server/text/unicode.h"

namespace lacuna::server {
namespace {

using nlohmann::ordered_json;

ordered_json Entry(const Tokenizer& tokenizer, TokenId token, float logprob) {
  const std::string bytes = tokenizer.TokenBytes(token);
  ordered_json list = ordered_json::array();
  for (const char byte : bytes) list.push_back(static_cast<unsigned char>(byte));
  return {{"token", bytes}, {"logprob", logprob}, {"bytes", std::move(list)}};
}

// dump() replaces broken UTF-8 by U+FFFD, which would make two such tokens equal as keys.
std::string PrintableToken(const Tokenizer& tokenizer, TokenId token) {
  std::string bytes = tokenizer.TokenBytes(token);
  if (IsValidUtf8(bytes)) return bytes;
  std::string text = "bytes:";
  for (const char byte : bytes) {
    char hex[8];
    std::snprintf(hex, sizeof hex, "\\x%02x", static_cast<unsigned char>(byte));
    text += hex;
  }
  return text;
}

}  // namespace

ordered_json ChatLogprobs(const Tokenizer& tokenizer,
                          std::span<const engine::TokenLogprob> tokens) {
  ordered_json list = ordered_json::array();
  for (const engine::TokenLogprob& token : tokens) {
    ordered_json entry = Entry(tokenizer, token.token, token.logprob);
    ordered_json top = ordered_json::array();
    for (const auto& [id, logprob] : token.top) top.push_back(Entry(tokenizer, id, logprob));
    entry["top_logprobs"] = std::move(top);
    list.push_back(std::move(entry));
  }
  return list;
}

void CompletionLogprobs::AddToken(TokenId token) {
  std::string text = PrintableToken(*tokenizer_, token);
  offsets_.push_back(offset_);
  offset_ += jinja::CodePointCount(text);
  tokens_.push_back(std::move(text));
}

void CompletionLogprobs::AddFirst(TokenId token) {
  AddToken(token);
  logprobs_.push_back(nullptr);
  tops_.push_back(nullptr);
}

void CompletionLogprobs::Add(const engine::TokenLogprob& token) {
  AddToken(token.token);
  logprobs_.push_back(token.logprob);
  ordered_json top = ordered_json::object();
  for (const auto& [id, logprob] : token.top) top[PrintableToken(*tokenizer_, id)] = logprob;
  // As OpenAI: the chosen token is among them even when it is not one of the most likely.
  top[PrintableToken(*tokenizer_, token.token)] = token.logprob;
  tops_.push_back(std::move(top));
}

ordered_json CompletionLogprobs::Take() {
  return {{"tokens", std::exchange(tokens_, ordered_json::array())},
          {"token_logprobs", std::exchange(logprobs_, ordered_json::array())},
          {"top_logprobs", std::exchange(tops_, ordered_json::array())},
          {"text_offset", std::exchange(offsets_, ordered_json::array())}};
}

}  // namespace lacuna::server
