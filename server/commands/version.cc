#include "server/commands/version.h"

#include <cstdio>

namespace lacuna::server {

std::string SystemFingerprint(std::string_view architecture, int64_t weight_bytes,
                              std::string_view backend) {
  std::string text = std::string(kVersion) + " ";
  text += std::string(architecture) + " " + std::to_string(weight_bytes) + " ";
  text += backend;
  uint64_t hash = 0xcbf29ce484222325u;  // FNV-1a
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  char digits[16];
  std::snprintf(digits, sizeof digits, "%012llx",
                static_cast<unsigned long long>(hash & 0xffffffffffffu));
  return std::string("fp_") + digits;
}

}  // namespace lacuna::server
