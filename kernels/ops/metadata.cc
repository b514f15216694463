#include "kernels/ops/metadata.h"

#include "kernels/core/checked_math.h"

namespace lacuna::kernels {
namespace {

int64_t Bits(MetadataPrecision precision) {
  static constexpr int64_t kBits[] = {16, 8, 4, 2};
  return kBits[static_cast<int>(precision)];
}

constexpr int64_t kScaleBytes = 4;  // a bf16 scale and zero

}  // namespace

int64_t MetadataSpec::PageBytes(int64_t head_dim, int64_t page_tokens) const {
  if (!any()) return 0;
  const int64_t width = kind == MetadataKind::kLabels ? channels : head_dim;
  const int64_t vectors = kind == MetadataKind::kMinMax ? 2 : 1;
  const int64_t scale = precision == MetadataPrecision::kBf16 ? 0 : kScaleBytes;
  const int64_t entries = CeilDiv(page_tokens, sub_tokens);
  return entries * vectors * (CeilDiv(width * Bits(precision), 8) + scale);
}

}  // namespace lacuna::kernels
