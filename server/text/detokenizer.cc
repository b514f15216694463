#include "server/text/detokenizer.h"

#include "server/text/decoder.h"

namespace lacuna::server {

Detokenizer::Detokenizer(const Tokenizer& tokenizer, bool skip_special_tokens)
    : tokenizer_(&tokenizer),
      skip_special_tokens_(skip_special_tokens),
      stream_(tokenizer.NewDecodeStream()) {}
Detokenizer::~Detokenizer() = default;
Detokenizer::Detokenizer(Detokenizer&&) noexcept = default;

std::string Detokenizer::Push(TokenId id) {
  const auto token = tokenizer_->TokenText(id, skip_special_tokens_);
  return token ? stream_->Push(*token) : std::string();
}

std::string Detokenizer::Flush() { return stream_->Flush(); }

}  // namespace lacuna::server
