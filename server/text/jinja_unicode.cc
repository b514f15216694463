#include "server/text/jinja_unicode.h"

#include <string.h>
#include <unicode/locid.h>
#include <unicode/uchar.h>
#include <unicode/unistr.h>

#include "server/text/unicode.h"

namespace lacuna::server::jinja {
namespace {

bool Among(char32_t code, const std::string* chars) {
  if (chars == nullptr) return IsSpace(code);
  for (size_t pos = 0; pos < chars->size();) {
    if (NextCodePoint(*chars, pos) == code) return true;
  }
  return false;
}

std::string Convert(std::string_view text, bool upper) {
  auto wide = icu::UnicodeString::fromUTF8(
      icu::StringPiece(text.data(), static_cast<int32_t>(text.size())));
  upper ? wide.toUpper(icu::Locale::getRoot()) : wide.toLower(icu::Locale::getRoot());
  std::string out;
  return wide.toUTF8String(out);
}

}  // namespace

char32_t NextCodePoint(std::string_view text, size_t& pos) {
  if (NextUtf8(text.substr(pos)).kind != Utf8Step::kValid) {
    return static_cast<unsigned char>(text[pos++]);
  }
  const CodePoint code = DecodeUtf8(text.data() + pos);
  pos += code.bytes;
  return code.value;
}

int64_t CodePointCount(std::string_view text) {
  int64_t count = 0;
  for (size_t pos = 0; pos < text.size(); ++count) NextCodePoint(text, pos);
  return count;
}

bool IsSpace(char32_t code) {
  return (code >= 0x09 && code <= 0x0D) || (code >= 0x1C && code <= 0x20) || code == 0x85 ||
         code == 0xA0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200A) || code == 0x2028 ||
         code == 0x2029 || code == 0x202F || code == 0x205F || code == 0x3000;
}

bool IsPrintable(char32_t code) {
  if (code == ' ') return true;
  constexpr uint32_t kHidden = U_GC_CC_MASK | U_GC_CF_MASK | U_GC_CS_MASK | U_GC_CO_MASK |
                               U_GC_CN_MASK | U_GC_ZL_MASK | U_GC_ZP_MASK | U_GC_ZS_MASK;
  return (U_GET_GC_MASK(static_cast<UChar32>(code)) & kHidden) == 0;
}

std::string_view StripLeft(std::string_view text, const std::string* chars) {
  size_t pos = 0;
  while (pos < text.size()) {
    size_t next = pos;
    if (!Among(NextCodePoint(text, next), chars)) break;
    pos = next;
  }
  return text.substr(pos);
}

std::string_view StripRight(std::string_view text, const std::string* chars) {
  while (!text.empty()) {
    size_t start = text.size() - 1;
    while (start > 0 && text.size() - start < 4 &&
           (static_cast<unsigned char>(text[start]) & 0xC0) == 0x80) {
      --start;
    }
    size_t end = start;
    char32_t code = NextCodePoint(text, end);
    if (end != text.size()) {  // a stray continuation byte
      start = text.size() - 1;
      code = static_cast<unsigned char>(text.back());
    }
    if (!Among(code, chars)) break;
    text = text.substr(0, start);
  }
  return text;
}

std::string ToUpper(std::string_view text) { return Convert(text, true); }
std::string ToLower(std::string_view text) { return Convert(text, false); }

std::string Capitalize(std::string_view text) {
  if (text.empty()) return {};
  size_t pos = 0;
  const char32_t first = NextCodePoint(text, pos);
  std::string out;
  AppendUtf8(out, static_cast<char32_t>(u_totitle(static_cast<UChar32>(first))));
  return out + ToLower(text.substr(pos));
}

std::string TitleCase(std::string_view text) {
  std::string out;
  bool inside = false;  // after a cased letter
  for (size_t pos = 0; pos < text.size();) {
    const auto code = static_cast<UChar32>(NextCodePoint(text, pos));
    const bool cased = u_hasBinaryProperty(code, UCHAR_CASED) != 0;
    AppendUtf8(out, static_cast<char32_t>(inside ? u_tolower(code) : u_totitle(code)));
    inside = cased;
  }
  return out;
}

size_t Find(std::string_view text, std::string_view needle, size_t from) {
  if (from > text.size()) return std::string_view::npos;
  // memmem is two-way search: string_view::find is quadratic on repetitive input.
  const void* hit = memmem(text.data() + from, text.size() - from, needle.data(), needle.size());
  if (hit == nullptr) return std::string_view::npos;
  return static_cast<size_t>(static_cast<const char*>(hit) - text.data());
}

}  // namespace lacuna::server::jinja
