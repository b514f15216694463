// KeyedHash: SipHash-1-3 over token ids (Aumasson and Bernstein 2012), keyed per process so that a
// caller cannot aim at a collision. A hit is still compared token by token.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/core/ids.h"

namespace lacuna::kvcache {

struct HashKey final {
  uint64_t k0 = 0, k1 = 0;
};

// From the operating system's generator.
HashKey RandomHashKey();
// Hash of the page `tokens` after the prefix whose hash is `parent` (0: none) in `scope`.
uint64_t HashPage(const HashKey& key, CacheScope scope, uint64_t parent,
                  std::span<const TokenId> tokens);

}  // namespace lacuna::kvcache
