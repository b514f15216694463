// KvConfig: sizes of the KV cache; fixed at start, known before the first request. SEAM.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/core/field_table.h"

namespace lacuna::kvcache {

struct KvConfig final {
  int64_t page_tokens = 64;
  // 0: on the CPU enough for running_max / 4 sequences of full context, 1 GiB at most; on a device
  // memory_share of what weights and workspaces leave.
  int64_t pool_bytes = 0;
  double memory_share = 0.9;
  bool prefix_cache = true;
};

inline const std::vector<Field<KvConfig>>& KvFields() {
  static const std::vector<Field<KvConfig>> kFields = {
      {"page_tokens", "Tokens in one KV page: 16 or 64.", &KvConfig::page_tokens, 16, 64},
      {"pool_bytes",
       "Bytes of all KV page pools together; 0 sizes them: on the CPU from the model, 1 GiB at "
       "most, on a GPU by memory_share.",
       &KvConfig::pool_bytes, 0},
      {"memory_share", "Share of the GPU memory left by weights and workspaces that pages take.",
       &KvConfig::memory_share, 0.01, 1.0},
      {"prefix_cache", "Keep the full pages of finished prompts and reuse them for equal prefixes.",
       &KvConfig::prefix_cache},
  };
  return kFields;
}

}  // namespace lacuna::kvcache
