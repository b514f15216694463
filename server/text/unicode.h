// Unicode helpers of server/text: UTF-8 steps, character classes and the byte-level alphabet.
//
// Pure functions and immutable tables; any thread. The classes \p{L}, \p{N} and \s come from
// Oniguruma's own tables, so that a hand-written scanner agrees with the regex it replaces; the
// others from ICU with the definitions of Rust's regex crate, which Hugging Face uses for them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace lacuna::server {

inline constexpr std::string_view kReplacementUtf8 = "\xEF\xBF\xBD";  // U+FFFD

struct Utf8Step {
  // kInvalid: `bytes` is the maximal subpart, which one U+FFFD replaces (Unicode 3.9, table 3-7).
  // kIncomplete: the whole rest of the text is the beginning of a valid sequence.
  enum Kind : uint8_t { kValid, kInvalid, kIncomplete } kind;
  uint8_t bytes;
};
// `text` must not be empty.
Utf8Step NextUtf8(std::string_view text);
bool IsValidUtf8(std::string_view text);
bool IsAscii(std::string_view text);
void AppendUtf8(std::string& out, char32_t code_point);

struct CodePoint {
  char32_t value;
  uint32_t bytes;
};
// The code point at `p`, which must be the first byte of valid UTF-8.
inline CodePoint DecodeUtf8(const char* p) {
  const auto at = [p](int i) { return static_cast<char32_t>(static_cast<uint8_t>(p[i])); };
  const char32_t lead = at(0);
  if (lead < 0x80) return {lead, 1};
  if (lead < 0xE0) return {(lead & 0x1F) << 6 | (at(1) & 0x3F), 2};
  if (lead < 0xF0) return {(lead & 0x0F) << 12 | (at(1) & 0x3F) << 6 | (at(2) & 0x3F), 3};
  return {(lead & 7) << 18 | (at(1) & 0x3F) << 12 | (at(2) & 0x3F) << 6 | (at(3) & 0x3F), 4};
}
// Bytes of the code point before `text`'s end; `text` is valid and not empty.
uint32_t LastCodePointBytes(std::string_view text);

// Bytes in any cut -> valid UTF-8, with the result of Rust's String::from_utf8_lossy.
class Utf8Assembler final {
 public:
  void Push(std::string_view bytes, std::string& out);
  void Flush(std::string& out);

 private:
  std::string pending_;  // at most 3 bytes between calls
};

enum RegexClass : uint8_t { kLetter = 1, kNumber = 2, kSpace = 4 };
// Oniguruma's \p{L}, \p{N} and \s for every code point, as RegexClass bits.
const uint8_t* RegexClassTable();

bool IsWordChar(char32_t c);     // \w of Rust's regex
bool IsWhiteSpace(char32_t c);   // char::is_whitespace
bool IsNumeric(char32_t c);      // char::is_numeric
bool IsPunctuation(char32_t c);  // ASCII punctuation or general category P
bool IsMark(char32_t c);         // general category M

// The printable character by which byte-level vocabularies write `byte` (GPT-2's alphabet).
std::string_view ByteLevelChar(uint8_t byte);
// The byte that `c` writes, or -1.
int ByteLevelByte(char32_t c);
void AppendByteLevel(std::string_view bytes, std::string& out);

}  // namespace lacuna::server
