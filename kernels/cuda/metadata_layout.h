// MetadataLayout: where the numbers of one metadata slab lie on CUDA. A plain value, host and
// device.
//
// Vectors first, entry after entry: [entries][vectors][row_bytes], a vector's codes one after the
// other from the low bits of its first byte on. Behind them [entries][vectors] pairs of bf16, scale
// and zero, unless the codes are bf16 themselves: value = zero + scale * code. Vectors of kMinMax:
// 0 is the minimum, 1 the maximum. Scoring takes 16 bytes of a vector per thread, so rows that are
// multiples of 16 bytes are read without waste.
#pragma once

#ifdef __CUDACC__
#include <cuda_bf16.h>
#endif

#include <cstdint>

#include "kernels/ops/metadata.h"

#ifdef __CUDACC__
#define LACUNA_HOST_DEVICE __host__ __device__
#else
#define LACUNA_HOST_DEVICE
#endif

namespace lacuna::kernels::cuda {

struct MetadataLayout final {
  int32_t bits = 16;    // 16: bf16, no scales
  int32_t entries = 1;  // of a page
  int32_t entry_tokens = 16;
  int32_t vectors = 1;    // of an entry
  int32_t width = 0;      // channels of a vector
  int32_t row_bytes = 0;  // of a vector
  int32_t scales_at = 0;

  MetadataLayout() = default;
  MetadataLayout(const MetadataSpec& spec, int64_t head_dim, int64_t page_tokens) {
    constexpr int32_t kBits[] = {16, 8, 4, 2};
    bits = kBits[static_cast<int>(spec.precision)];
    entry_tokens = spec.sub_tokens < page_tokens ? spec.sub_tokens : static_cast<int>(page_tokens);
    entries = static_cast<int32_t>(page_tokens) / entry_tokens;
    vectors = spec.kind == MetadataKind::kMinMax ? 2 : 1;
    width = spec.kind == MetadataKind::kLabels ? spec.channels : static_cast<int32_t>(head_dim);
    row_bytes = (width * bits + 7) / 8;
    scales_at = (entries * vectors * row_bytes + 3) / 4 * 4;
  }

  LACUNA_HOST_DEVICE int32_t levels() const { return (1 << bits) - 1; }  // the largest code
  LACUNA_HOST_DEVICE int32_t VectorAt(int entry, int vector) const {
    return (entry * vectors + vector) * row_bytes;
  }
  LACUNA_HOST_DEVICE int32_t ScaleAt(int entry, int vector) const {
    return scales_at + 4 * (entry * vectors + vector);
  }
};

#ifdef __CUDACC__
// One number as it was stored.
__device__ inline float MetadataValue(const MetadataLayout& layout, const char* slab, int entry,
                                      int vector, int channel) {
  const char* row = slab + layout.VectorAt(entry, vector);
  if (layout.bits == 16) {
    return __bfloat162float(reinterpret_cast<const __nv_bfloat16*>(row)[channel]);
  }
  const int bit = channel * layout.bits;
  const int code = static_cast<uint8_t>(row[bit / 8]) >> bit % 8 & layout.levels();
  const auto* scale = reinterpret_cast<const __nv_bfloat16*>(slab + layout.ScaleAt(entry, vector));
  return __bfloat162float(scale[1]) + __bfloat162float(scale[0]) * static_cast<float>(code);
}
#endif

}  // namespace lacuna::kernels::cuda
