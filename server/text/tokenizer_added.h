// AddedTokens: the section "added_tokens", texts that are one token wherever they stand.
//
// Immutable after load; any thread. Follows Hugging Face's AddedVocabulary: tokens with
// normalized=false are found in the raw text, the others after normalization.
#pragma once

#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "kernels/core/ids.h"
#include "kernels/core/status.h"
#include "server/text/normalizer.h"
#include "server/text/tokenizer_json.h"
#include "server/text/tokenizer_tables.h"

namespace lacuna::server {

class AddedTokens final {
 public:
  // `json` may be null. A token that `vocab` also holds gets the id it has there. `normalizer` may
  // be null and is used only here.
  static Result<AddedTokens> FromJson(const Json& json, const Vocab& vocab,
                                      const Normalizer* normalizer);

  struct Part {
    std::string_view text;
    TokenId id = kNoToken;  // kNoToken: ordinary text
  };
  // Appends the cut of `text` at the tokens of one kind. `match_special` false leaves special ones
  // as text. O(text * longest token).
  void CutRaw(std::string_view text, bool match_special, std::vector<Part>& parts) const {
    Cut(raw_, text, match_special, parts);
  }
  void CutNormalized(std::string_view text, bool match_special, std::vector<Part>& parts) const {
    Cut(normalized_, text, match_special, parts);
  }
  bool has_normalized() const { return !normalized_.empty(); }

  // kNoToken if the text is no added token; empty if the id is none.
  TokenId Find(std::string_view text) const;
  std::string_view Text(TokenId id) const;
  bool IsSpecial(TokenId id) const;
  TokenId id_end() const { return id_end_; }

 private:
  struct Token {
    TokenId id = kNoToken;
    std::string text;
    bool single_word = false;
    bool lstrip = false;
    bool rstrip = false;
    bool normalized = false;
    bool special = false;
  };
  static Result<Token> ParseToken(const Json& json, const Vocab& vocab);
  void Cut(const ByteTrie& trie, std::string_view text, bool match_special,
           std::vector<Part>& parts) const;

  std::vector<Token> tokens_;
  std::unordered_map<TokenId, size_t> by_id_;  // index into tokens_
  std::unordered_map<std::string, size_t> by_text_;
  ByteTrie raw_;  // values are indices into tokens_
  ByteTrie normalized_;
  TokenId id_end_ = 0;
};

}  // namespace lacuna::server
