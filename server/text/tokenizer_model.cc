#include "server/text/tokenizer_model.h"

#include <string>

namespace lacuna::server {

Result<std::unique_ptr<TokenModel>> TokenModel::FromJson(const Json& json) {
  // Old files leave the type out; only BPE has merges.
  const bool is_untyped_bpe =
      JsonMember(json, "type").is_null() && JsonMember(json, "merges").is_array();
  LACUNA_ASSIGN_OR_RETURN(const std::string type,
                          is_untyped_bpe ? Result<std::string>("BPE") : JsonType(json));
  if (type == "BPE") return MakeBpe(json);
  if (type == "Unigram") return MakeUnigram(json);
  return InvalidArgument("unknown type \"" + type + "\"");
}

std::vector<TokenId> ByteFallbackIds(const Vocab& vocab) {
  static constexpr std::string_view kHex = "0123456789ABCDEF";
  std::vector<TokenId> ids;
  for (size_t byte = 0; byte < 256; ++byte) {
    const char text[] = {'<', '0', 'x', kHex[byte >> 4], kHex[byte & 15], '>'};
    ids.push_back(vocab.Find({text, sizeof text}));
  }
  return ids;
}

}  // namespace lacuna::server
