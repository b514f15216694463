// Byte pair encoding as in Hugging Face tokenizers, models/bpe: byte-level or with byte fallback.
#include <array>
#include <optional>
#include <utility>

#include "server/text/bpe_merge.h"
#include "server/text/tokenizer_model.h"
#include "server/text/unicode.h"

namespace lacuna::server {
namespace {

class Bpe final : public TokenModel {
 public:
  Status Load(const Json& json);
  Status Encode(std::span<const Piece> pieces, bool byte_level,
                std::vector<TokenId>& ids) const override;

 private:
  struct Worker {
    explicit Worker(const Bpe& bpe) : merger(bpe.merges_, bpe.rank_count_) {}
    BpeMerger merger;
    // By how a piece is read: the same bytes differ with and without byte_level.
    std::array<std::optional<WordCache>, 2> caches;
    std::string spelled;           // a piece in the byte-level alphabet
    std::vector<TokenId> symbols;  // of the word being merged
  };

  Status LoadVocab(const Json& json);
  Status LoadMerges(const Json& json);
  Status AddMerge(const std::string& left, const std::string& right);
  Status EncodeWord(std::string_view word, Worker& worker) const;
  Status AppendSymbols(std::string_view word, std::vector<TokenId>& symbols) const;
  TokenId FindSymbol(std::string_view symbol, bool is_first, bool is_last) const;
  bool AppendBytes(std::string_view symbol, std::vector<TokenId>& symbols) const;

  BpeMerges merges_;
  uint32_t rank_count_ = 0;
  std::vector<TokenId> byte_ids_;       // empty without byte_fallback
  std::array<TokenId, 128> ascii_ids_;  // of the one-character tokens, to save a lookup
  std::string prefix_;                  // continuing_subword_prefix
  std::string suffix_;                  // end_of_word_suffix
  TokenId unk_id_ = kNoToken;
  bool unk_is_missing_ = false;  // named, but not in the vocabulary: an error once it is needed
  bool fuse_unk_ = false;
  bool ignore_merges_ = false;
  mutable LendingPool<Worker> workers_;
};

Status Bpe::Load(const Json& json) {
  const Json& dropout = JsonMember(json, "dropout");
  if (!dropout.is_null() && dropout != 0) {
    return InvalidArgument("dropout: not supported, it is for training");
  }
  LACUNA_ASSIGN_OR_RETURN(prefix_, JsonString(json, "continuing_subword_prefix", ""));
  LACUNA_ASSIGN_OR_RETURN(suffix_, JsonString(json, "end_of_word_suffix", ""));
  LACUNA_ASSIGN_OR_RETURN(fuse_unk_, JsonBool(json, "fuse_unk", false));
  LACUNA_ASSIGN_OR_RETURN(ignore_merges_, JsonBool(json, "ignore_merges", false));
  LACUNA_ASSIGN_OR_RETURN(const bool byte_fallback, JsonBool(json, "byte_fallback", false));
  LACUNA_RETURN_IF_ERROR(LoadVocab(json));
  LACUNA_RETURN_IF_ERROR(LoadMerges(json));
  if (byte_fallback) byte_ids_ = ByteFallbackIds(vocab_);
  for (size_t c = 0; c < ascii_ids_.size(); ++c) {
    const char text = static_cast<char>(c);
    ascii_ids_[c] = vocab_.Find({&text, 1});
  }
  if (!JsonMember(json, "unk_token").is_null()) {
    LACUNA_ASSIGN_OR_RETURN(const std::string unk, JsonString(json, "unk_token"));
    unk_id_ = vocab_.Find(unk);
    unk_is_missing_ = unk_id_ == kNoToken;
  }
  return OkStatus();
}

Status Bpe::LoadVocab(const Json& json) {
  const Json& vocab = JsonMember(json, "vocab");
  if (!vocab.is_object()) return InvalidArgument("vocab: need an object");
  for (const auto& [text, id] : vocab.items()) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() >= uint64_t{kTokenIdMax}) {
      return InvalidArgument("vocab: an id is not in 0.." + std::to_string(kTokenIdMax - 1));
    }
    const auto token = id.get<TokenId>();
    if (vocab_.Has(token)) {
      return InvalidArgument("vocab: two tokens have the id " + std::to_string(token));
    }
    vocab_.Add(text, token);
  }
  return OkStatus();
}

Status Bpe::LoadMerges(const Json& json) {
  LACUNA_ASSIGN_OR_RETURN(const Json* list, JsonArray(json, "merges"));
  for (const Json& merge : *list) {
    if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
      LACUNA_RETURN_IF_ERROR(
          AddMerge(merge[0].get_ref<const std::string&>(), merge[1].get_ref<const std::string&>()));
      continue;
    }
    if (!merge.is_string()) return InvalidArgument("merges: need \"a b\" or [\"a\", \"b\"]");
    const auto& text = merge.get_ref<const std::string&>();
    const size_t space = text.find(' ');
    if (space == text.npos || text.find(' ', space + 1) != text.npos) {
      return InvalidArgument("merges: need exactly one space in number " +
                             std::to_string(rank_count_));
    }
    LACUNA_RETURN_IF_ERROR(AddMerge(text.substr(0, space), text.substr(space + 1)));
  }
  return OkStatus();
}

Status Bpe::AddMerge(const std::string& left, const std::string& right) {
  const TokenId left_id = vocab_.Find(left);
  const TokenId right_id = vocab_.Find(right);
  const TokenId merged =
      right.size() < prefix_.size() ? kNoToken : vocab_.Find(left + right.substr(prefix_.size()));
  if (left_id == kNoToken || right_id == kNoToken || merged == kNoToken) {
    return InvalidArgument("merges: number " + std::to_string(rank_count_) +
                           " uses a token that is not in the vocabulary");
  }
  merges_.Add(left_id, right_id, {rank_count_++, merged});
  return OkStatus();
}

Status Bpe::Encode(std::span<const Piece> pieces, bool byte_level,
                   std::vector<TokenId>& ids) const {
  std::unique_ptr<Worker> worker = workers_.Borrow();
  if (!worker) worker = std::make_unique<Worker>(*this);
  std::optional<WordCache>& cache = worker->caches[byte_level];
  if (!cache) cache.emplace();
  for (const Piece& piece : pieces) {
    WordCache::Entry* entry = cache->Slot(piece.text);
    if (entry && entry->Holds(piece.text)) {
      ids.insert(ids.end(), entry->ids, entry->ids + entry->ids_count);
      continue;
    }
    std::string_view word = piece.text;
    if (byte_level) {
      worker->spelled.clear();
      AppendByteLevel(word, worker->spelled);
      word = worker->spelled;
    }
    LACUNA_RETURN_IF_ERROR(EncodeWord(word, *worker));
    ids.insert(ids.end(), worker->symbols.begin(), worker->symbols.end());
    if (entry) entry->Store(piece.text, worker->symbols);
  }
  workers_.Return(std::move(worker));
  return OkStatus();
}

Status Bpe::EncodeWord(std::string_view word, Worker& worker) const {
  worker.symbols.clear();
  if (ignore_merges_) {
    if (const TokenId id = vocab_.Find(word); id != kNoToken) {
      worker.symbols.push_back(id);
      return OkStatus();
    }
  }
  LACUNA_RETURN_IF_ERROR(AppendSymbols(word, worker.symbols));
  worker.merger.Run(worker.symbols);
  return OkStatus();
}

TokenId Bpe::FindSymbol(std::string_view symbol, bool is_first, bool is_last) const {
  const bool add_prefix = !is_first && !prefix_.empty();
  const bool add_suffix = is_last && !suffix_.empty();
  if (!add_prefix && !add_suffix) {
    return symbol.size() == 1 ? ascii_ids_[static_cast<unsigned char>(symbol[0])]
                              : vocab_.Find(symbol);
  }
  std::string text = add_prefix ? prefix_ : "";
  text.append(symbol);
  if (add_suffix) text.append(suffix_);
  return vocab_.Find(text);
}

bool Bpe::AppendBytes(std::string_view symbol, std::vector<TokenId>& symbols) const {
  if (byte_ids_.empty()) return false;
  const size_t begin = symbols.size();
  for (const char byte : symbol) {
    const TokenId id = byte_ids_[static_cast<uint8_t>(byte)];
    if (id == kNoToken) {
      symbols.resize(begin);
      return false;
    }
    symbols.push_back(id);
  }
  return true;
}

// One symbol for each character; unknown ones become bytes, the unknown token or nothing.
Status Bpe::AppendSymbols(std::string_view word, std::vector<TokenId>& symbols) const {
  bool unk_waits = false;  // Hugging Face adds the unknown token only before the next known one
  for (size_t pos = 0; pos < word.size();) {
    const size_t bytes = DecodeUtf8(word.data() + pos).bytes;
    const std::string_view symbol = word.substr(pos, bytes);
    const TokenId id = FindSymbol(symbol, pos == 0, pos + bytes == word.size());
    pos += bytes;
    if (id == kNoToken && AppendBytes(symbol, symbols)) continue;
    if (unk_waits && (id != kNoToken || !fuse_unk_)) {
      symbols.push_back(unk_id_);
      unk_waits = false;
    }
    if (id != kNoToken) {
      symbols.push_back(id);
    } else if (unk_is_missing_) {
      return InvalidArgument("the text holds a character that the vocabulary lacks");
    } else {
      unk_waits = unk_id_ != kNoToken;
    }
  }
  if (unk_waits) symbols.push_back(unk_id_);
  return OkStatus();
}

}  // namespace

Result<std::unique_ptr<TokenModel>> MakeBpe(const Json& json) {
  auto bpe = std::make_unique<Bpe>();
  LACUNA_RETURN_IF_ERROR(bpe->Load(json));
  return std::unique_ptr<TokenModel>(std::move(bpe));
}

}  // namespace lacuna::server
