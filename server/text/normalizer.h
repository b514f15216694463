// Normalizer: rewrites a stretch of input before it is cut into pieces.
//
// Immutable after load; any thread. Maps valid UTF-8 to valid UTF-8.
#pragma once

#include <memory>
#include <string>

#include "kernels/core/status.h"
#include "server/text/tokenizer_json.h"

namespace lacuna::server {

class Normalizer {
 public:
  // `json` may be null: the result is a null pointer. Names an unknown type in its error.
  static Result<std::unique_ptr<Normalizer>> FromJson(const Json& json);
  virtual ~Normalizer() = default;

  // Rewrites `text` in place.
  virtual Status Apply(std::string& text) const = 0;
};

// sentencepiece's "precompiled_charsmap", base64 as in the file. In normalizer_charsmap.cc.
Result<std::unique_ptr<Normalizer>> MakeCharsmapNormalizer(const std::string& base64);

}  // namespace lacuna::server
