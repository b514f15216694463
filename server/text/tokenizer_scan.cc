#include "server/text/tokenizer_scan.h"

#include <cstdint>

#include "server/text/unicode.h"

namespace lacuna::server {
namespace {

// Reads code points with their regex classes.
class Cursor final {
 public:
  explicit Cursor(std::string_view text) : text_(text), classes_(RegexClassTable()) {}

  struct Char {
    char32_t value = 0;
    uint32_t bytes = 0;  // 0 at the end of the text
    uint8_t bits = 0;    // RegexClass
    bool IsLetter() const { return bits & kLetter; }
    bool IsNumber() const { return bits & kNumber; }
    bool IsSpace() const { return bits & kSpace; }
    bool IsOther() const { return bytes != 0 && bits == 0; }
    bool IsNewline() const { return bytes != 0 && (value == '\r' || value == '\n'); }
  };
  Char At(size_t pos) const {
    if (pos >= text_.size()) return {};
    const CodePoint c = DecodeUtf8(text_.data() + pos);
    return {c.value, c.bytes, classes_[c.value]};
  }
  // The end of the run of characters with the class `bit` (0: none of the classes).
  size_t RunEnd(size_t pos, uint8_t bit) const {
    for (Char c = At(pos); c.bytes != 0 && (bit ? (c.bits & bit) != 0 : c.bits == 0); c = At(pos)) {
      pos += c.bytes;
    }
    return pos;
  }

 private:
  std::string_view text_;
  const uint8_t* classes_;
};

// Length of the English contraction at `pos`, whose first byte is an apostrophe; 0 if none.
size_t ContractionBytes(const Cursor& cursor, size_t pos, bool ignore_case) {
  const Cursor::Char first = cursor.At(pos + 1);
  const auto lower = [ignore_case](char32_t c) -> char32_t {
    if (!ignore_case) return c;
    if (c == 0x17F) return U's';  // long s, the one non-ASCII character that folds into the set
    return c - 'A' < 26 ? c + 32 : c;
  };
  const char32_t a = lower(first.value);
  if (a == 's' || a == 't' || a == 'm' || a == 'd') return 1 + first.bytes;
  const Cursor::Char second = cursor.At(pos + 1 + first.bytes);
  const char32_t b = lower(second.value);
  const bool two = (a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l');
  return two ? 1 + first.bytes + second.bytes : 0;
}

// \s+(?!\S)|\s+ for the run [begin, end): leaves the last space to the word after it.
size_t SpaceEnd(std::string_view text, size_t begin, size_t end) {
  if (end == text.size()) return end;
  const size_t last = end - LastCodePointBytes(text.substr(begin, end - begin));
  return last == begin ? end : last;
}

size_t ScanGpt2(std::string_view text, size_t begin) {
  const Cursor cursor(text);
  Cursor::Char c = cursor.At(begin);
  if (c.value == '\'') {
    if (const size_t bytes = ContractionBytes(cursor, begin, false)) return begin + bytes;
  }
  size_t pos = begin;
  if (c.value == ' ') {
    const Cursor::Char next = cursor.At(begin + 1);
    if (next.bytes != 0 && !next.IsSpace()) {
      c = next;
      ++pos;
    }
  }
  if (!c.IsSpace()) return cursor.RunEnd(pos, c.bits & (kLetter | kNumber));
  return SpaceEnd(text, begin, cursor.RunEnd(begin, kSpace));
}

template <int kDigitsMax>
size_t ScanCl100k(std::string_view text, size_t begin) {
  const Cursor cursor(text);
  const Cursor::Char c = cursor.At(begin);
  if (c.value == '\'') {
    if (const size_t bytes = ContractionBytes(cursor, begin, true)) return begin + bytes;
  }
  if (c.IsLetter()) return cursor.RunEnd(begin, kLetter);
  if (c.IsNumber()) {
    size_t pos = begin + c.bytes;
    for (int i = 1; i < kDigitsMax; ++i) {
      const Cursor::Char next = cursor.At(pos);
      if (!next.IsNumber()) break;
      pos += next.bytes;
    }
    return pos;
  }
  const Cursor::Char next = cursor.At(begin + c.bytes);
  if (!c.IsNewline() && next.IsLetter()) return cursor.RunEnd(begin + c.bytes, kLetter);
  if (c.IsOther() || (c.value == ' ' && next.IsOther())) {
    size_t pos = cursor.RunEnd(begin + c.bytes, 0);
    while (cursor.At(pos).IsNewline()) ++pos;
    return pos;
  }
  size_t line_end = 0;  // after the last newline of the run
  size_t pos = begin;
  for (Cursor::Char s = c; s.IsSpace(); s = cursor.At(pos)) {
    pos += s.bytes;
    if (s.IsNewline()) line_end = pos;
  }
  return line_end != 0 ? line_end : SpaceEnd(text, begin, pos);
}

}  // namespace

std::optional<SplitScanner> FindSplitScanner(std::string_view pattern) {
  if (pattern == kGpt2Pattern) return ScanGpt2;
  if (pattern == kLlama3Pattern) return ScanCl100k<3>;
  if (pattern == kQwen2Pattern) return ScanCl100k<1>;
  return std::nullopt;
}

}  // namespace lacuna::server
