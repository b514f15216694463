// Unigram language model: the cut of a piece with the highest sum of token scores, by Viterbi as in
// Hugging Face tokenizers, models/unigram (encode_optimized), after sentencepiece.
#include <limits>
#include <optional>
#include <utility>

#include "server/text/tokenizer_model.h"
#include "server/text/unicode.h"

namespace lacuna::server {
namespace {

constexpr double kUnkPenalty = 10.0;  // below the lowest score

class Unigram final : public TokenModel {
 public:
  Status Load(const Json& json);
  Status Encode(std::span<const Piece> pieces, bool byte_level,
                std::vector<TokenId>& ids) const override;

 private:
  struct Best {
    double score = 0;
    size_t begin = kUnreached;
    TokenId id = kNoToken;
  };
  static constexpr size_t kUnreached = ~size_t{0};

  Status Search(std::string_view text, std::vector<Best>& best) const;
  Status EncodeText(std::string_view text, std::vector<Best>& best,
                    std::vector<std::string_view>& tokens, std::vector<TokenId>& ids) const;
  void AppendToken(std::string_view token, std::vector<TokenId>& ids) const;

  std::vector<double> scores_;  // by id
  double unk_score_ = 0;
  TokenId unk_id_ = kNoToken;
  ByteTrie trie_;
  std::vector<TokenId> byte_ids_;  // empty without byte_fallback
};

Status Unigram::Load(const Json& json) {
  LACUNA_ASSIGN_OR_RETURN(const Json* list, JsonArray(json, "vocab"));
  if (list->empty() || list->size() >= static_cast<size_t>(kTokenIdMax)) {
    return InvalidArgument("vocab: empty or too long");
  }
  double lowest = std::numeric_limits<double>::max();
  for (const Json& item : *list) {
    if (!item.is_array() || item.size() != 2 || !item[0].is_string() || !item[1].is_number()) {
      return InvalidArgument("vocab: need [token, score]");
    }
    const auto& text = item[0].get_ref<const std::string&>();
    vocab_.Add(text, static_cast<TokenId>(scores_.size()));
    scores_.push_back(item[1].get<double>());
    lowest = std::min(lowest, scores_.back());
  }
  for (TokenId id = 0; id < vocab_.id_end(); ++id) {
    trie_.Add(vocab_.Text(id), vocab_.Find(vocab_.Text(id)));
  }
  unk_score_ = lowest - kUnkPenalty;
  if (!JsonMember(json, "unk_id").is_null()) {
    LACUNA_ASSIGN_OR_RETURN(const int64_t unk, JsonInt(json, "unk_id", 0, vocab_.id_end() - 1));
    unk_id_ = static_cast<TokenId>(unk);
  }
  LACUNA_ASSIGN_OR_RETURN(const bool byte_fallback, JsonBool(json, "byte_fallback", false));
  if (byte_fallback) byte_ids_ = ByteFallbackIds(vocab_);
  return OkStatus();
}

Status Unigram::Encode(std::span<const Piece> pieces, bool byte_level,
                       std::vector<TokenId>& ids) const {
  std::vector<Best> best;
  std::vector<std::string_view> tokens;
  std::string spelled;
  for (const Piece& piece : pieces) {
    std::string_view text = piece.text;
    if (byte_level) {
      spelled.clear();
      AppendByteLevel(text, spelled);
      text = spelled;
    }
    LACUNA_RETURN_IF_ERROR(EncodeText(text, best, tokens, ids));
  }
  return OkStatus();
}

// best[i] is the last token of the best cut of text[0, i).
Status Unigram::Search(std::string_view text, std::vector<Best>& best) const {
  best.assign(text.size() + 1, {});
  for (size_t begin = 0; begin < text.size();) {
    const size_t char_bytes = DecodeUtf8(text.data() + begin).bytes;
    const double so_far = best[begin].score;
    const auto offer = [&](size_t bytes, double score, TokenId id) {
      Best& end = best[begin + bytes];
      if (end.begin == kUnreached || so_far + score > end.score) end = {so_far + score, begin, id};
    };
    bool has_char = false;
    trie_.Prefixes(text.substr(begin), [&](size_t bytes, TokenId id) {
      offer(bytes, scores_[static_cast<size_t>(id)], id);
      has_char |= bytes == char_bytes;
    });
    if (!has_char) {
      if (unk_id_ == kNoToken) {
        return InvalidArgument("the text holds a character that the vocabulary lacks");
      }
      offer(char_bytes, unk_score_, unk_id_);
    }
    begin += char_bytes;
  }
  return OkStatus();
}

Status Unigram::EncodeText(std::string_view text, std::vector<Best>& best,
                           std::vector<std::string_view>& tokens, std::vector<TokenId>& ids) const {
  LACUNA_RETURN_IF_ERROR(Search(text, best));
  tokens.clear();  // last first
  bool extends_unk = false;
  for (size_t end = text.size(); end > 0; end = best[end].begin) {
    const Best& last = best[end];
    const bool is_unk = last.id == unk_id_;
    if (is_unk && extends_unk) {  // a run of unknown characters is one token
      const size_t run_end =
          static_cast<size_t>(tokens.back().data() - text.data()) + tokens.back().size();
      tokens.back() = text.substr(last.begin, run_end - last.begin);
    } else {
      tokens.push_back(text.substr(last.begin, end - last.begin));
    }
    extends_unk = is_unk;
  }
  for (size_t i = tokens.size(); i-- > 0;) AppendToken(tokens[i], ids);
  return OkStatus();
}

void Unigram::AppendToken(std::string_view token, std::vector<TokenId>& ids) const {
  if (const TokenId id = vocab_.Find(token); id != kNoToken) {
    ids.push_back(id);
    return;
  }
  const auto byte_id = [&](char byte) { return byte_ids_[static_cast<uint8_t>(byte)]; };
  bool has_bytes = !byte_ids_.empty();
  for (size_t i = 0; has_bytes && i < token.size(); ++i) has_bytes = byte_id(token[i]) != kNoToken;
  if (has_bytes) {
    for (const char byte : token) ids.push_back(byte_id(byte));
  } else {
    ids.push_back(unk_id_);  // Search found one, or there would be no such token
  }
}

}  // namespace

Result<std::unique_ptr<TokenModel>> MakeUnigram(const Json& json) {
  auto unigram = std::make_unique<Unigram>();
  LACUNA_RETURN_IF_ERROR(unigram->Load(json));
  return std::unique_ptr<TokenModel>(std::move(unigram));
}

}  // namespace lacuna::server
