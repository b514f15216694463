// TextPattern: a {"String": ...} or {"Regex": ...} of tokenizer.json.
//
// Immutable after load; any thread. Regexes run in Oniguruma, the engine of Hugging Face, under
// limits on steps, stack and time, so that a hostile pattern or text ends in an error.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/core/status.h"
#include "server/text/tokenizer_json.h"
#include "server/text/tokenizer_scan.h"

namespace lacuna::server {

class TextPattern final {
 public:
  // `json` is the object {"String": text} or {"Regex": text}.
  static Result<TextPattern> FromJson(const Json& json);
  // `use_scanner` false sends also the well-known patterns through Oniguruma (for tests).
  static Result<TextPattern> FromRegex(std::string_view regex, bool use_scanner = true);
  static TextPattern FromLiteral(std::string text);

  struct Span {
    size_t begin;
    size_t end;
    bool is_match;
  };
  // Appends the cut of `text` (valid UTF-8, not empty) into matches and the gaps between them, in
  // order and without empty gaps; a match may be empty.
  Status Cut(std::string_view text, std::vector<Span>& spans) const;
  // The literal; empty for a regex.
  const std::string& literal() const { return literal_; }

 private:
  struct RegexFree {
    void operator()(void* regex) const;
  };
  Status CutByRegex(std::string_view text, std::vector<Span>& spans) const;

  std::string literal_;
  std::optional<SplitScanner> scanner_;
  std::unique_ptr<void, RegexFree> regex_;  // regex_t of Oniguruma
};

}  // namespace lacuna::server
