#include "server/text/tokenizer_added.h"

#include <algorithm>
#include <utility>

#include "server/text/unicode.h"

namespace lacuna::server {
namespace {

constexpr size_t kTokenBytesMax = 4096;  // bounds the work of a search at each position

bool EndsInWord(std::string_view text) {
  if (text.empty()) return false;
  return IsWordChar(DecodeUtf8(text.data() + text.size() - LastCodePointBytes(text)).value);
}

bool BeginsWithWord(std::string_view text) {
  return !text.empty() && IsWordChar(DecodeUtf8(text.data()).value);
}

size_t TrailingSpaceBytes(std::string_view text) {
  std::string_view rest = text;
  while (!rest.empty()) {
    const uint32_t bytes = LastCodePointBytes(rest);
    if (!IsWhiteSpace(DecodeUtf8(rest.data() + rest.size() - bytes).value)) break;
    rest.remove_suffix(bytes);
  }
  return text.size() - rest.size();
}

size_t LeadingSpaceBytes(std::string_view text) {
  size_t pos = 0;
  while (pos < text.size()) {
    const CodePoint c = DecodeUtf8(text.data() + pos);
    if (!IsWhiteSpace(c.value)) break;
    pos += c.bytes;
  }
  return pos;
}

}  // namespace

Result<AddedTokens::Token> AddedTokens::ParseToken(const Json& json, const Vocab& vocab) {
  Token token;
  LACUNA_ASSIGN_OR_RETURN(token.text, JsonString(json, "content"));
  LACUNA_ASSIGN_OR_RETURN(const int64_t id, JsonInt(json, "id", 0, kTokenIdMax - 1));
  LACUNA_ASSIGN_OR_RETURN(token.single_word, JsonBool(json, "single_word", false));
  LACUNA_ASSIGN_OR_RETURN(token.lstrip, JsonBool(json, "lstrip", false));
  LACUNA_ASSIGN_OR_RETURN(token.rstrip, JsonBool(json, "rstrip", false));
  LACUNA_ASSIGN_OR_RETURN(token.special, JsonBool(json, "special", false));
  LACUNA_ASSIGN_OR_RETURN(token.normalized, JsonBool(json, "normalized", !token.special));
  if (token.text.size() > kTokenBytesMax) return InvalidArgument("a token is too long");
  const TokenId in_vocab = vocab.Find(token.text);
  if (in_vocab == kNoToken && vocab.Has(static_cast<TokenId>(id))) {
    return InvalidArgument("id " + std::to_string(id) +
                           " stands for another token in the vocabulary");
  }
  token.id = in_vocab != kNoToken ? in_vocab : static_cast<TokenId>(id);
  return token;
}

Result<AddedTokens> AddedTokens::FromJson(const Json& json, const Vocab& vocab,
                                          const Normalizer* normalizer) {
  AddedTokens added;
  if (json.is_null()) return added;
  if (!json.is_array()) return InvalidArgument("need an array");
  for (const Json& item : json) {
    LACUNA_ASSIGN_OR_RETURN(Token token, ParseToken(item, vocab));
    if (token.text.empty() || added.by_text_.contains(token.text)) continue;
    if (added.by_id_.contains(token.id)) {
      return InvalidArgument("two tokens have the id " + std::to_string(token.id));
    }
    const size_t index = added.tokens_.size();
    added.by_id_.emplace(token.id, index);
    added.by_text_.emplace(token.text, index);
    added.id_end_ = std::max(added.id_end_, token.id + 1);
    std::string pattern = token.text;
    if (token.normalized && normalizer) LACUNA_RETURN_IF_ERROR(normalizer->Apply(pattern));
    if (pattern.size() > kTokenBytesMax) return InvalidArgument("a token is too long");
    (token.normalized ? added.normalized_ : added.raw_).Add(pattern, static_cast<int32_t>(index));
    added.tokens_.push_back(std::move(token));
  }
  return added;
}

void AddedTokens::Cut(const ByteTrie& trie, std::string_view text, bool match_special,
                      std::vector<Part>& parts) const {
  size_t gap = 0;  // begin of the text that is not yet in a part
  for (size_t pos = 0; pos < text.size() && !trie.empty();) {
    if (!trie.MayBegin(text[pos])) {
      ++pos;
      continue;
    }
    size_t bytes = 0;  // of the longest token here
    int32_t index = kNoToken;
    trie.Prefixes(text.substr(pos), [&](size_t length, int32_t value) {
      bytes = length;
      index = value;
    });
    if (index == kNoToken) {
      ++pos;
      continue;
    }
    const Token& token = tokens_[static_cast<size_t>(index)];
    size_t begin = pos;
    pos += bytes;
    if (token.special && !match_special) continue;
    const bool in_word = EndsInWord(text.substr(0, begin)) || BeginsWithWord(text.substr(pos));
    if (token.single_word && in_word) continue;
    if (token.lstrip) begin -= TrailingSpaceBytes(text.substr(gap, begin - gap));
    if (token.rstrip) pos += LeadingSpaceBytes(text.substr(pos));
    if (gap < begin) parts.push_back({text.substr(gap, begin - gap), kNoToken});
    parts.push_back({text.substr(begin, pos - begin), token.id});
    gap = pos;
  }
  if (gap < text.size()) parts.push_back({text.substr(gap), kNoToken});
}

TokenId AddedTokens::Find(std::string_view text) const {
  const auto it = by_text_.find(std::string(text));
  return it == by_text_.end() ? kNoToken : tokens_[it->second].id;
}

std::string_view AddedTokens::Text(TokenId id) const {
  const auto it = by_id_.find(id);
  return it == by_id_.end() ? std::string_view() : tokens_[it->second].text;
}

bool AddedTokens::IsSpecial(TokenId id) const {
  const auto it = by_id_.find(id);
  return it != by_id_.end() && tokens_[it->second].special;
}

}  // namespace lacuna::server
