// tokenizer.json from a stranger: load it, then encode and decode a little. A load error is fine; a
// crash, a hang or a stream that differs from Decode is not.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "kernels/core/check.h"
#include "server/text/detokenizer.h"
#include "server/text/tokenizer.h"

using lacuna::TokenId;
using lacuna::server::Detokenizer;
using lacuna::server::Tokenizer;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto tokenizer =
      Tokenizer::FromJson(std::string_view(reinterpret_cast<const char*>(data), size));
  if (!tokenizer.ok()) return 0;
  for (const std::string_view text : {"", " a b<s> 12 it's\r\n\n caf\u00e9 \u4e2d\u3000\U0001F600",
                                      "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}) {
    const auto ids = (*tokenizer)->Encode(text, {.add_special_tokens = true});
    if (!ids.ok()) continue;
    Detokenizer stream(**tokenizer, false);
    std::string streamed;
    for (const TokenId id : *ids) {
      streamed += stream.Push(id);
      (*tokenizer)->TokenBytes(id);
    }
    streamed += stream.Flush();
    LACUNA_CHECK(streamed == (*tokenizer)->Decode(*ids, false));
  }
  return 0;
}
