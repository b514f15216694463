// Detokenizer: token ids of one choice -> text, as they come.
//
// Owned by one choice of one response; one thread. Every piece is whole code points, and
// concat(Push...) + Flush equals Tokenizer::Decode of all ids: what a later token may still change
// (a part of a code point, a run of byte tokens, a trailing space to strip) is held back.
#pragma once

#include <memory>
#include <string>

#include "kernels/core/ids.h"
#include "server/text/tokenizer.h"

namespace lacuna::server {

class Detokenizer final {
 public:
  // `tokenizer` must outlive this object.
  Detokenizer(const Tokenizer& tokenizer, bool skip_special_tokens);
  ~Detokenizer();
  Detokenizer(Detokenizer&&) noexcept;

  // The text that this token made final, perhaps empty. Amortised O(bytes of the token).
  std::string Push(TokenId id);
  // What was held back. Push must not follow.
  std::string Flush();

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_tokens_;
  std::unique_ptr<DecodeStream> stream_;
};

}  // namespace lacuna::server
