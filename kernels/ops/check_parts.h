// What the checks of several ops share beyond Checker. Private to kernels/ops; no state, any
// thread.
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <string_view>

#include "kernels/core/checked_math.h"
#include "kernels/ops/attention.h"
#include "kernels/ops/checker.h"

namespace lacuna::kernels {

// A device answers a misaligned access with an error that no later call survives.
template <typename T>
bool Aligned(const T* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % alignof(T) == 0;
}

inline void CheckPool(Checker& check, const KvPool& pool, DType act,
                      std::string_view name = "pool") {
  check.Require(pool.dtype == act, name, "the dtype of the activations");
  check.Require(pool.page_tokens == 16 || pool.page_tokens == 64, name, "page_tokens 16 or 64");
  check.Require(pool.kv_heads > 0, name, "at least one kv head");
  check.Require(pool.head_dim > 0 && pool.head_dim % 2 == 0, name, "an even head_dim");
  check.Require(pool.pages >= 0 && pool.pages <= std::numeric_limits<int32_t>::max() / 64, name,
                "pages whose slots fit 32 bits");
  check.Require(pool.pages == 0 || pool.data != nullptr, name, "memory");
}

// Every chunk lies inside `rows` rows, and its positions fit.
inline void CheckChunks(Checker& check, std::span<const PrefillChunk> chunks, int64_t rows) {
  for (const PrefillChunk& chunk : chunks) {
    const auto end_row = CheckedAdd(chunk.first_row, chunk.rows);
    const auto end_position = CheckedAdd(chunk.first_position, chunk.rows);
    check.Require(chunk.first_row >= 0 && chunk.rows >= 0 && chunk.first_position >= 0 &&
                      end_row.has_value() && *end_row <= rows && end_position.has_value(),
                  "chunks", "rows inside the tensors");
  }
}

}  // namespace lacuna::kernels
