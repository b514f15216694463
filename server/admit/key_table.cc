#include "server/admit/key_table.h"

#include <openssl/crypto.h>
#include <openssl/sha.h>

#include <algorithm>
#include <string>

namespace lacuna::server {
namespace {

constexpr std::string_view kDigestPrefix = "sha256:";
constexpr size_t kKeyBytesMin = 16;
constexpr size_t kKeyBytesMax = 512;

std::optional<uint8_t> HexValue(char c) {
  if (c >= '0' && c <= '9') return static_cast<uint8_t>(c - '0');
  if (c >= 'a' && c <= 'f') return static_cast<uint8_t>(c - 'a' + 10);
  if (c >= 'A' && c <= 'F') return static_cast<uint8_t>(c - 'A' + 10);
  return std::nullopt;
}

std::optional<Digest> ParseDigest(std::string_view hex) {
  Digest digest{};
  if (hex.size() != 2 * digest.size()) return std::nullopt;
  for (size_t i = 0; i < digest.size(); ++i) {
    const auto high = HexValue(hex[2 * i]);
    const auto low = HexValue(hex[2 * i + 1]);
    if (!high || !low) return std::nullopt;
    digest[i] = static_cast<uint8_t>(*high << 4 | *low);
  }
  return digest;
}

std::string_view Trim(std::string_view line) {
  const size_t begin = line.find_first_not_of(" \t\r");
  if (begin == std::string_view::npos) return {};
  return line.substr(begin, line.find_last_not_of(" \t\r") - begin + 1);
}

Result<Digest> ParseLine(std::string_view line, int number) {
  const std::string where = "line " + std::to_string(number) + ": ";
  if (line.starts_with(kDigestPrefix)) {
    const auto digest = ParseDigest(line.substr(kDigestPrefix.size()));
    if (!digest) return InvalidArgument(where + "need 64 hex digits after sha256:");
    return *digest;
  }
  const bool printable = std::ranges::all_of(line, [](char c) { return c > ' ' && c < 127; });
  if (!printable || line.size() < kKeyBytesMin || line.size() > kKeyBytesMax) {
    return InvalidArgument(where + "a key needs 16 to 512 printable characters without spaces");
  }
  return Sha256(line);
}

}  // namespace

Digest Sha256(std::string_view text) {
  Digest digest{};
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), digest.data());
  return digest;
}

Result<KeyTable> KeyTable::Parse(std::string_view text) {
  KeyTable table;
  int number = 0;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = Trim(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
    ++number;
    if (line.empty() || line.front() == '#') continue;
    LACUNA_ASSIGN_OR_RETURN(const Digest digest, ParseLine(line, number));
    table.digests_.push_back(digest);
  }
  if (table.digests_.empty()) return InvalidArgument("holds no key");
  return table;
}

std::optional<Digest> KeyTable::Find(std::string_view key) const {
  const Digest digest = Sha256(key);
  bool found = false;
  for (const Digest& known : digests_) {
    found |= CRYPTO_memcmp(known.data(), digest.data(), digest.size()) == 0;
  }
  return found ? std::optional(digest) : std::nullopt;
}

}  // namespace lacuna::server
