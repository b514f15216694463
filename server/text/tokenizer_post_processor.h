// PostProcessor: the special tokens put around an encoded text (begin-of-text and the like).
//
// Immutable after load; any thread.
#pragma once

#include <vector>

#include "kernels/core/ids.h"
#include "kernels/core/status.h"
#include "server/text/tokenizer_json.h"

namespace lacuna::server {

class PostProcessor final {
 public:
  // `json` may be null: nothing is added. ByteLevel, which only moves offsets, adds nothing either.
  // Names an unknown type in its error.
  static Result<PostProcessor> FromJson(const Json& json);

  std::vector<TokenId> Apply(std::vector<TokenId> ids) const;

 private:
  struct Template {
    std::vector<TokenId> before;
    std::vector<TokenId> after;
  };
  Status Parse(const Json& json, int depth);
  Status ParseTemplate(const Json& json);

  std::vector<Template> templates_;  // applied in order, each around the result of the last
};

}  // namespace lacuna::server
