// Tokenizer: text <-> token ids, from a Hugging Face tokenizer.json and with its exact semantics.
//
// Owned by the model entry of the server; immutable after load and safe on any thread. A component
// of tokenizer.json that is not implemented is an error at load that names it. The sections
// "truncation" and "padding" are ignored on purpose: a server never cuts or pads a prompt.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/core/ids.h"
#include "kernels/core/status.h"

namespace lacuna::server {

class DecodeStream;
struct TokenizerParts;

class Tokenizer final {
 public:
  // Parses the whole file text. Errors are one line and start with "tokenizer.json: ".
  static Result<std::unique_ptr<Tokenizer>> FromJson(std::string_view tokenizer_json);
  ~Tokenizer();
  Tokenizer(const Tokenizer&) = delete;
  Tokenizer& operator=(const Tokenizer&) = delete;

  struct EncodeOptions {
    // Runs the post-processor, which usually adds a begin-of-text token.
    bool add_special_tokens = false;
    // "<|im_end|>" in the text becomes its id; false for text from a user, which stays text.
    bool match_special_tokens = true;
  };
  // Invalid UTF-8 and text that the vocabulary cannot express are kInvalidArgument.
  Result<std::vector<TokenId>> Encode(std::string_view text, EncodeOptions options) const;
  Result<std::vector<TokenId>> Encode(std::string_view text) const { return Encode(text, {}); }

  // Always valid UTF-8: U+FFFD stands for broken bytes. Unknown ids are skipped.
  std::string Decode(std::span<const TokenId> ids, bool skip_special_tokens) const;
  // The raw bytes that one token stands for, perhaps a part of a code point; empty if unknown.
  std::string TokenBytes(TokenId id) const;
  std::optional<TokenId> TokenToId(std::string_view token) const;
  bool IsSpecial(TokenId id) const;
  // Highest id + 1.
  int64_t vocab_size() const;

 private:
  friend class Detokenizer;
  explicit Tokenizer(std::unique_ptr<TokenizerParts> parts);
  // The text of one token as the vocabulary writes it; nothing if unknown or to be skipped.
  std::optional<std::string_view> TokenText(TokenId id, bool skip_special_tokens) const;
  std::unique_ptr<DecodeStream> NewDecodeStream() const;

  const std::unique_ptr<const TokenizerParts> parts_;
};

}  // namespace lacuna::server
