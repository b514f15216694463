// KeyTable: the accepted API keys, as SHA-256 digests only. Immutable; any thread.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "kernels/core/status.h"

namespace lacuna::server {

using Digest = std::array<uint8_t, 32>;

Digest Sha256(std::string_view text);

class KeyTable final {
 public:
  // The text of a key file: one key per line, plain (16 to 512 printable characters) or
  // "sha256:<64 hex digits>"; empty lines and lines that begin with '#' are ignored. Errors
  // (kInvalidArgument) name the line, never the key.
  static Result<KeyTable> Parse(std::string_view text);

  // Compares with every key in a time that does not depend on where they differ.
  std::optional<Digest> Find(std::string_view key) const;
  size_t size() const { return digests_.size(); }

 private:
  std::vector<Digest> digests_;
};

}  // namespace lacuna::server
