// sentencepiece's compiled character map: a Darts double array from byte strings to offsets into a
// pool of NUL-terminated replacements. Format: uint32 size of the array in bytes, the array, the
// pool (sentencepiece src/normalizer.cc). The rules of use are those of Hugging Face's
// spm_precompiled, which takes the *shortest* match of a grapheme.
#include <unicode/brkiter.h>
#include <unicode/utext.h>

#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "server/text/normalizer.h"
#include "server/text/unicode.h"

namespace lacuna::server {
namespace {

constexpr size_t kGraphemeBytesMax = 5;  // longer ones are mapped character by character

std::optional<std::string> DecodeBase64(std::string_view text) {
  std::string out;
  uint32_t bits = 0;
  int count = 0;
  while (text.ends_with('=')) text.remove_suffix(1);
  for (const char c : text) {
    static constexpr std::string_view kAlphabet =
        "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const size_t value = kAlphabet.find(c);
    if (value == kAlphabet.npos) return std::nullopt;
    bits = bits << 6 | static_cast<uint32_t>(value);
    count += 6;
    if (count >= 8) {
      count -= 8;
      out.push_back(static_cast<char>(bits >> count & 0xFF));
    }
  }
  return out;
}

class Charsmap final : public Normalizer {
 public:
  Charsmap(std::vector<uint32_t> units, std::string pool)
      : units_(std::move(units)), pool_(std::move(pool)) {}

  Status Apply(std::string& text) const override {
    if (text.size() > std::numeric_limits<int32_t>::max()) {
      return InvalidArgument("the text is too long");
    }
    std::string out;
    out.reserve(text.size());
    if (IsAscii(text)) {
      MapAscii(text, out);
    } else {
      LACUNA_RETURN_IF_ERROR(MapGraphemes(text, out));
    }
    text.swap(out);
    return OkStatus();
  }

 private:
  void MapAscii(std::string_view text, std::string& out) const {
    for (size_t pos = 0; pos < text.size();) {
      const size_t bytes = text.substr(pos).starts_with("\r\n") ? 2 : 1;
      Map(text.substr(pos, bytes), out);
      pos += bytes;
    }
  }

  Status MapGraphemes(std::string_view text, std::string& out) const {
    UErrorCode error = U_ZERO_ERROR;
    const std::unique_ptr<icu::BreakIterator> breaks(
        icu::BreakIterator::createCharacterInstance(icu::Locale::getRoot(), error));
    UText utext = UTEXT_INITIALIZER;
    utext_openUTF8(&utext, text.data(), static_cast<int64_t>(text.size()), &error);
    if (U_SUCCESS(error)) {
      breaks->setText(&utext, error);
      int32_t begin = breaks->first();
      for (int32_t end = breaks->next(); end != icu::BreakIterator::DONE; end = breaks->next()) {
        Map(text.substr(static_cast<size_t>(begin), static_cast<size_t>(end - begin)), out);
        begin = end;
      }
    }
    utext_close(&utext);
    return U_FAILURE(error) ? InternalError("ICU found no grapheme borders") : OkStatus();
  }

  void Map(std::string_view grapheme, std::string& out) const {
    if (grapheme.size() <= kGraphemeBytesMax) {
      if (const auto found = Find(grapheme)) {
        out.append(*found);
        return;
      }
    }
    while (!grapheme.empty()) {
      const std::string_view part = grapheme.substr(0, DecodeUtf8(grapheme.data()).bytes);
      out.append(Find(part).value_or(part));
      grapheme.remove_prefix(part.size());
    }
  }

  // The replacement of the shortest key that begins `text`. The unit's bits: 0-7 label, 8 has a
  // leaf, 9 widens the offset, 10-30 offset, 31 is a leaf whose lower bits are the value.
  std::optional<std::string_view> Find(std::string_view text) const {
    const auto offset = [](uint32_t unit) { return (unit >> 10) << ((unit & 1 << 9) >> 6); };
    size_t node = offset(units_[0]);
    for (const char c : text) {
      const auto byte = static_cast<uint8_t>(c);
      node ^= byte;
      if (byte == 0 || node >= units_.size()) return std::nullopt;
      const uint32_t unit = units_[node];
      if ((unit & 0x800000FF) != byte) return std::nullopt;
      node ^= offset(unit);
      if (unit >> 8 & 1) {
        if (node >= units_.size()) return std::nullopt;
        const size_t at = units_[node] & 0x7FFFFFFF;
        if (at >= pool_.size()) return std::nullopt;
        const std::string_view rest = std::string_view(pool_).substr(at);
        const std::string_view found = rest.substr(0, rest.find('\0'));
        // An offset into the middle of a character could break the text's UTF-8.
        return IsValidUtf8(found) ? std::optional(found) : std::nullopt;
      }
    }
    return std::nullopt;
  }

  const std::vector<uint32_t> units_;
  const std::string pool_;
};

}  // namespace

Result<std::unique_ptr<Normalizer>> MakeCharsmapNormalizer(const std::string& base64) {
  const std::optional<std::string> bytes = DecodeBase64(base64);
  uint32_t trie_bytes = 0;
  if (!bytes || bytes->size() < 8) return InvalidArgument("precompiled_charsmap: not base64");
  std::memcpy(&trie_bytes, bytes->data(), 4);
  if (trie_bytes < 4 || trie_bytes % 4 != 0 || trie_bytes > bytes->size() - 4) {
    return InvalidArgument("precompiled_charsmap: wrong size of the trie");
  }
  std::vector<uint32_t> units(trie_bytes / 4);
  std::memcpy(units.data(), bytes->data() + 4, trie_bytes);
  return std::unique_ptr<Normalizer>(new Charsmap(std::move(units), bytes->substr(4 + trie_bytes)));
}

}  // namespace lacuna::server
