// KvConfig: sizes of the KV cache; fixed at start, known before the first request. SEAM.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/core/field_table.h"

namespace lacuna::kvcache {

struct KvConfig final {
  int64_t page_tokens = 64;
  int64_t pool_bytes = 0;  // 0: enough for running_max / 4 sequences of full context, 1 GiB at most
  bool prefix_cache = true;
};

inline const std::vector<Field<KvConfig>>& KvFields() {
  static const std::vector<Field<KvConfig>> kFields = {
      {"page_tokens", "Tokens in one KV page: 16 or 64.", &KvConfig::page_tokens, 16, 64},
      {"pool_bytes",
       "Bytes of all KV page pools together; 0 sizes them from the model, 1 GiB at most.",
       &KvConfig::pool_bytes, 0},
      {"prefix_cache", "Keep the full pages of finished prompts and reuse them for equal prefixes.",
       &KvConfig::prefix_cache},
  };
  return kFields;
}

}  // namespace lacuna::kvcache
