// Splits a template into text and tokens, with Jinja's white-space control under the settings of
// Hugging Face transformers: trim_blocks, lstrip_blocks, and the last newline of the file dropped.
// A pure function of the source.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "kernels/core/status.h"

namespace lacuna::server::jinja {

// Brackets, blocks and operators inside each other.
inline constexpr int kParseDepthMax = 100;

enum class TokenKind {
  kText,
  kOutputBegin,
  kOutputEnd,
  kBlockBegin,
  kBlockEnd,
  kName,
  kString,   // text: the value, escapes resolved
  kInteger,  // text: decimal digits
  kFloat,
  kOperator,
  kEnd,
};

struct Token {
  TokenKind kind;
  std::string text;
  int line;
};

// The last token is kEnd. Errors (kInvalidArgument): "chat template: line 3: ...".
Result<std::vector<Token>> Tokenize(std::string_view source);

Status ErrorAt(int line, const std::string& what);

}  // namespace lacuna::server::jinja
