#include "server/text/unicode.h"

#define ONIG_ESCAPE_UCHAR_COLLISION  // its macro UChar would rename ICU's type
#include <oniguruma.h>
#include <unicode/uchar.h>

#include <array>
#include <cstring>
#include <memory>
#include <utility>

#include "kernels/core/check.h"

namespace lacuna::server {
namespace {

constexpr char32_t kCodePoints = 0x110000;

bool IsContinuation(uint8_t byte) { return (byte & 0xC0) == 0x80; }

// The bytes that may follow `lead` directly, which excludes overlong forms and surrogates.
bool IsSecond(uint8_t lead, uint8_t byte) {
  switch (lead) {
    case 0xE0:
      return byte >= 0xA0 && byte <= 0xBF;
    case 0xED:
      return byte >= 0x80 && byte <= 0x9F;
    case 0xF0:
      return byte >= 0x90 && byte <= 0xBF;
    case 0xF4:
      return byte >= 0x80 && byte <= 0x8F;
    default:
      return IsContinuation(byte);
  }
}

void MarkProperty(std::string name, uint8_t bit, uint8_t* table) {
  auto* begin = reinterpret_cast<OnigUChar*>(name.data());
  OnigEncodingType* encoding = ONIG_ENCODING_UTF8;
  const int ctype = encoding->property_name_to_ctype(encoding, begin, begin + name.size());
  LACUNA_CHECK(ctype >= 0);
  OnigCodePoint sb_out = 0;
  const OnigCodePoint* ranges = nullptr;  // count, then (first, last) pairs
  LACUNA_CHECK(encoding->get_ctype_code_range(ctype, &sb_out, &ranges) == 0);
  for (OnigCodePoint i = 0; i < ranges[0]; ++i) {
    for (OnigCodePoint c = ranges[1 + 2 * i]; c <= ranges[2 + 2 * i] && c < kCodePoints; ++c) {
      table[c] |= bit;
    }
  }
}

struct ByteLevelAlphabet {
  ByteLevelAlphabet() {
    bytes.fill(-1);
    char32_t next = 256;
    for (int byte = 0; byte < 256; ++byte) {
      const bool printable =
          (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
      const char32_t c = printable ? static_cast<char32_t>(byte) : next++;
      AppendUtf8(chars[byte], c);
      bytes[c] = static_cast<int16_t>(byte);
    }
  }
  std::array<std::string, 256> chars;
  std::array<int16_t, 512> bytes{};
};

const ByteLevelAlphabet& Alphabet() {
  static const ByteLevelAlphabet kAlphabet;
  return kAlphabet;
}

}  // namespace

Utf8Step NextUtf8(std::string_view text) {
  const auto at = [text](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t lead = at(0);
  if (lead < 0x80) return {Utf8Step::kValid, 1};
  if (lead < 0xC2 || lead > 0xF4) return {Utf8Step::kInvalid, 1};
  const uint8_t need = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  for (uint8_t i = 1; i < need; ++i) {
    if (i == text.size()) return {Utf8Step::kIncomplete, i};
    const bool good = i == 1 ? IsSecond(lead, at(i)) : IsContinuation(at(i));
    if (!good) return {Utf8Step::kInvalid, i};
  }
  return {Utf8Step::kValid, need};
}

bool IsAscii(std::string_view text) {
  uint64_t any = 0;
  size_t i = 0;
  for (; i + 8 <= text.size(); i += 8) {
    uint64_t word;
    std::memcpy(&word, text.data() + i, 8);
    any |= word;
  }
  for (; i < text.size(); ++i) any |= static_cast<uint8_t>(text[i]);
  return (any & 0x8080808080808080) == 0;
}

bool IsValidUtf8(std::string_view text) {
  while (!text.empty()) {
    if (text.size() >= 32 && IsAscii(text.substr(0, 32))) {
      text.remove_prefix(32);
      continue;
    }
    const Utf8Step step = NextUtf8(text);
    if (step.kind != Utf8Step::kValid) return false;
    text.remove_prefix(step.bytes);
  }
  return true;
}

void AppendUtf8(std::string& out, char32_t c) {
  const auto put = [&out](char32_t byte) { out.push_back(static_cast<char>(byte)); };
  if (c < 0x80) return put(c);
  if (c < 0x800) {
    put(0xC0 | c >> 6);
  } else {
    if (c < 0x10000) {
      put(0xE0 | c >> 12);
    } else {
      put(0xF0 | c >> 18);
      put(0x80 | (c >> 12 & 0x3F));
    }
    put(0x80 | (c >> 6 & 0x3F));
  }
  put(0x80 | (c & 0x3F));
}

uint32_t LastCodePointBytes(std::string_view text) {
  uint32_t bytes = 1;
  while (bytes < text.size() && IsContinuation(static_cast<uint8_t>(text[text.size() - bytes]))) {
    ++bytes;
  }
  return bytes;
}

void Utf8Assembler::Push(std::string_view bytes, std::string& out) {
  std::string joined;
  if (!pending_.empty()) {
    joined = std::exchange(pending_, {}).append(bytes);
    bytes = joined;
  }
  while (!bytes.empty()) {
    const Utf8Step step = NextUtf8(bytes);
    if (step.kind == Utf8Step::kIncomplete) {
      pending_ = bytes;
      return;
    }
    out.append(step.kind == Utf8Step::kValid ? bytes.substr(0, step.bytes) : kReplacementUtf8);
    bytes.remove_prefix(step.bytes);
  }
}

void Utf8Assembler::Flush(std::string& out) {
  if (!pending_.empty()) out.append(kReplacementUtf8);
  pending_.clear();
}

const uint8_t* RegexClassTable() {
  static const std::unique_ptr<const uint8_t[]> kTable = [] {
    auto table = std::make_unique<uint8_t[]>(kCodePoints);
    OnigEncoding encodings[] = {ONIG_ENCODING_UTF8};
    onig_initialize(encodings, 1);
    MarkProperty("L", kLetter, table.get());
    MarkProperty("N", kNumber, table.get());
    MarkProperty("Space", kSpace, table.get());
    return table;
  }();
  return kTable.get();
}

bool IsWordChar(char32_t c) {
  if (c < 0x80) return (c | 0x20) - 'a' < 26 || c - '0' < 10 || c == '_';
  const auto code = static_cast<UChar32>(c);
  const uint32_t mask = U_GC_M_MASK | U_GC_ND_MASK | U_GC_PC_MASK;
  return u_hasBinaryProperty(code, UCHAR_ALPHABETIC) || (U_GET_GC_MASK(code) & mask) != 0 ||
         u_hasBinaryProperty(code, UCHAR_JOIN_CONTROL);
}

bool IsWhiteSpace(char32_t c) {
  if (c < 0x80) return c == ' ' || c - 9 < 5;
  return u_hasBinaryProperty(static_cast<UChar32>(c), UCHAR_WHITE_SPACE);
}

bool IsNumeric(char32_t c) {
  if (c < 0x80) return c - '0' < 10;
  return (U_GET_GC_MASK(static_cast<UChar32>(c)) & U_GC_N_MASK) != 0;
}

bool IsPunctuation(char32_t c) {
  if (c < 0x80) return c > ' ' && c < 0x7F && !IsWordChar(c) ? true : c == '_';
  return (U_GET_GC_MASK(static_cast<UChar32>(c)) & U_GC_P_MASK) != 0;
}

bool IsMark(char32_t c) { return (U_GET_GC_MASK(static_cast<UChar32>(c)) & U_GC_M_MASK) != 0; }

std::string_view ByteLevelChar(uint8_t byte) { return Alphabet().chars[byte]; }

int ByteLevelByte(char32_t c) { return c < 512 ? Alphabet().bytes[c] : -1; }

void AppendByteLevel(std::string_view bytes, std::string& out) {
  for (const char byte : bytes) out.append(ByteLevelChar(static_cast<uint8_t>(byte)));
}

}  // namespace lacuna::server
