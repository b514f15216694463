// What the checks of several ops share beyond Checker. Private to kernels/ops; no state, any
// thread.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/core/checked_math.h"
#include "kernels/ops/attention.h"
#include "kernels/ops/checker.h"

namespace lacuna::kernels {

// A device answers a misaligned access with an error that no later call survives.
template <typename T>
bool Aligned(const T* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % alignof(T) == 0;
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
