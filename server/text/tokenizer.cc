#include "server/text/tokenizer.h"

#include <algorithm>
#include <utility>

#include "server/text/decoder.h"
#include "server/text/normalizer.h"
#include "server/text/pre_tokenizer.h"
#include "server/text/tokenizer_added.h"
#include "server/text/tokenizer_json.h"
#include "server/text/tokenizer_model.h"
#include "server/text/tokenizer_post_processor.h"
#include "server/text/unicode.h"

namespace lacuna::server {

struct TokenizerParts {
  std::unique_ptr<Normalizer> normalizer;  // null: none
  std::unique_ptr<PreTokenizer> pre_tokenizer;
  std::unique_ptr<TokenModel> model;
  std::unique_ptr<Decoder> decoder;
  AddedTokens added;
  PostProcessor post_processor;
};

namespace {

constexpr size_t kTextBytesMax = size_t{1} << 30;

template <typename T>
Status Load(const char* section, Result<T> parsed, T& out) {
  if (!parsed.ok()) {
    return InvalidArgument("tokenizer.json: " + std::string(section) + ": " +
                           parsed.status().message());
  }
  out = std::move(parsed).value();
  return OkStatus();
}

// Encodes ordinary text, which holds no added token of the raw kind.
Status EncodeText(const TokenizerParts& parts, std::string_view text, bool at_start,
                  bool match_special, std::vector<TokenId>& ids) {
  std::string normalized;
  if (parts.normalizer) {
    normalized = text;
    LACUNA_RETURN_IF_ERROR(parts.normalizer->Apply(normalized));
    text = normalized;
  }
  std::vector<AddedTokens::Part> cut;
  parts.added.CutNormalized(text, match_special, cut);
  for (const AddedTokens::Part& part : cut) {
    if (part.id != kNoToken) {
      ids.push_back(part.id);
      continue;
    }
    PieceArena arena;
    Pieces pieces{{part.text, at_start && part.text.data() == text.data()}};
    LACUNA_RETURN_IF_ERROR(parts.pre_tokenizer->Apply(pieces, arena));
    LACUNA_RETURN_IF_ERROR(
        parts.model->Encode(pieces, parts.pre_tokenizer->EndsInByteLevel(), ids));
  }
  return OkStatus();
}

}  // namespace

Tokenizer::Tokenizer(std::unique_ptr<TokenizerParts> parts) : parts_(std::move(parts)) {}
Tokenizer::~Tokenizer() = default;

Result<std::unique_ptr<Tokenizer>> Tokenizer::FromJson(std::string_view tokenizer_json) {
  Json json;
  LACUNA_RETURN_IF_ERROR(Load("file", ParseJson(tokenizer_json), json));
  const auto section = [&json](const char* key) -> const Json& { return JsonMember(json, key); };
  auto parts = std::make_unique<TokenizerParts>();
  LACUNA_RETURN_IF_ERROR(
      Load("normalizer", Normalizer::FromJson(section("normalizer")), parts->normalizer));
  LACUNA_RETURN_IF_ERROR(Load("pre_tokenizer", PreTokenizer::FromJson(section("pre_tokenizer")),
                              parts->pre_tokenizer));
  LACUNA_RETURN_IF_ERROR(Load("model", TokenModel::FromJson(section("model")), parts->model));
  LACUNA_RETURN_IF_ERROR(Load("decoder", Decoder::FromJson(section("decoder")), parts->decoder));
  LACUNA_RETURN_IF_ERROR(Load("post_processor", PostProcessor::FromJson(section("post_processor")),
                              parts->post_processor));
  LACUNA_RETURN_IF_ERROR(Load("added_tokens",
                              AddedTokens::FromJson(section("added_tokens"), parts->model->vocab(),
                                                    parts->normalizer.get()),
                              parts->added));
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::move(parts)));
}

Result<std::vector<TokenId>> Tokenizer::Encode(std::string_view text, EncodeOptions options) const {
  if (text.size() > kTextBytesMax) return InvalidArgument("the text is longer than 1 GiB");
  if (!IsValidUtf8(text)) return InvalidArgument("the text is not valid UTF-8");
  std::vector<TokenId> ids;
  ids.reserve(text.size() / 4 + 8);
  std::vector<AddedTokens::Part> cut;
  parts_->added.CutRaw(text, options.match_special_tokens, cut);
  for (const AddedTokens::Part& part : cut) {
    if (part.id != kNoToken) {
      ids.push_back(part.id);
      continue;
    }
    LACUNA_RETURN_IF_ERROR(EncodeText(*parts_, part.text, part.text.data() == text.data(),
                                      options.match_special_tokens, ids));
  }
  if (options.add_special_tokens) ids = parts_->post_processor.Apply(std::move(ids));
  return ids;
}

std::string Tokenizer::Decode(std::span<const TokenId> ids, bool skip_special_tokens) const {
  const std::unique_ptr<DecodeStream> stream = NewDecodeStream();
  std::string text;
  for (const TokenId id : ids) {
    if (const auto token = TokenText(id, skip_special_tokens)) text.append(stream->Push(*token));
  }
  return text.append(stream->Flush());
}

std::string Tokenizer::TokenBytes(TokenId id) const {
  const auto token = TokenText(id, /*skip_special_tokens=*/false);
  return token ? parts_->decoder->TokenBytes(*token) : std::string();
}

std::optional<TokenId> Tokenizer::TokenToId(std::string_view token) const {
  TokenId id = parts_->added.Find(token);
  if (id == kNoToken) id = parts_->model->vocab().Find(token);
  return id == kNoToken ? std::nullopt : std::optional(id);
}

bool Tokenizer::IsSpecial(TokenId id) const { return parts_->added.IsSpecial(id); }

int64_t Tokenizer::vocab_size() const {
  return std::max(parts_->added.id_end(), parts_->model->vocab().id_end());
}

std::optional<std::string_view> Tokenizer::TokenText(TokenId id, bool skip_special_tokens) const {
  if (skip_special_tokens && IsSpecial(id)) return std::nullopt;
  const std::string_view added = parts_->added.Text(id);
  if (!added.empty()) return added;
  const Vocab& vocab = parts_->model->vocab();
  return vocab.Has(id) ? std::optional(vocab.Text(id)) : std::nullopt;
}

std::unique_ptr<DecodeStream> Tokenizer::NewDecodeStream() const {
  return parts_->decoder->NewStream();
}

}  // namespace lacuna::server
