// MetadataLayout: where the numbers of one metadata slab lie on the CPU. A plain value; any thread.
//
// Codes come first, in groups of 16: across entries where each key has its own entry (lanes: one
// row of `entries` codes per channel), else across the channels of a vector. A group of b-bit codes
// is 16 * b / 8 bytes: code i lies in byte i % bytes, from bit (i / bytes) * b on, so that a vector
// unit widens it without shuffles. Scales (bf16, [vectors, entries]) and zeros (the same) follow:
// value = zero + scale * code. Vectors of kMinMax: 0 is the minimum, 1 the maximum.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/core/checked_math.h"
#include "kernels/ops/metadata.h"

namespace lacuna::kernels::cpu {

struct MetadataLayout final {
  static constexpr int64_t kGroup = 16;

  int32_t bits = 16;    // 16: bf16, no scales
  int32_t entries = 1;  // of a page
  int32_t entry_tokens = 16;
  int32_t vectors = 1;  // of an entry
  int32_t width = 0;    // channels of a vector
  bool lanes = false;
  int64_t row_bytes = 0;     // lanes: codes of one channel; else of one vector
  int64_t vector_bytes = 0;  // from one vector to the next: lanes: all channels; else row_bytes
  int64_t scales_at = 0, zeros_at = 0;

  MetadataLayout() = default;
  MetadataLayout(const MetadataSpec& spec, int64_t head_dim, int64_t page_tokens) {
    static constexpr int32_t kBits[] = {16, 8, 4, 2};
    bits = kBits[static_cast<int>(spec.precision)];
    entry_tokens = static_cast<int32_t>(std::min<int64_t>(spec.sub_tokens, page_tokens));
    entries = static_cast<int32_t>(page_tokens / entry_tokens);
    vectors = spec.kind == MetadataKind::kMinMax ? 2 : 1;
    width = static_cast<int32_t>(spec.kind == MetadataKind::kLabels ? spec.channels : head_dim);
    lanes = entry_tokens == 1;
    row_bytes = CeilDiv((lanes ? entries : width) * bits, int64_t{8});
    vector_bytes = lanes ? width * row_bytes : row_bytes;
    scales_at = entries * vectors * CeilDiv(width * bits, int64_t{8});
    zeros_at = scales_at + entries * vectors * 2;
  }

  int64_t bytes() const { return bits == 16 ? scales_at : zeros_at + 2 * entries * vectors; }
  int32_t levels() const { return (1 << bits) - 1; }  // the largest code
  // The row of one channel (lanes), or the vector of one entry.
  int64_t VectorAt(int64_t entry, int64_t vector) const {
    return (entry * vectors + vector) * row_bytes;
  }
  int64_t ChannelAt(int64_t channel, int64_t vector) const {
    return vector * vector_bytes + channel * row_bytes;
  }
  int64_t ScaleAt(int64_t entry, int64_t vector) const {
    return scales_at + 2 * (vector * entries + entry);
  }
  int64_t ZeroAt(int64_t entry, int64_t vector) const {
    return zeros_at + 2 * (vector * entries + entry);
  }
};

}  // namespace lacuna::kernels::cpu
