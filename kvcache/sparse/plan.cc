#include "kvcache/sparse/plan.h"

#include "kernels/core/checked_math.h"

namespace lacuna::kvcache {
namespace {

int64_t Bits(MetadataPrecision precision) {
  static constexpr int64_t kBits[] = {16, 8, 4, 2};
  return kBits[static_cast<int>(precision)];
}

constexpr int64_t kScaleBytes = 4;  // a bf16 scale and zero

bool Equal(const kernels::StaticShape& a, const kernels::StaticShape& b) {
  return a.window_tokens == b.window_tokens && a.sink_tokens == b.sink_tokens;
}

}  // namespace

bool HeadPlan::operator==(const HeadPlan& other) const {
  return role == other.role && Equal(prefill, other.prefill) && Equal(decode, other.decode);
}

int64_t MetadataSpec::PageBytes(const AttentionShape& shape) const {
  if (!any()) return 0;
  const int64_t width = kind == MetadataKind::kLabels ? channels : shape.head_dim;
  const int64_t vectors = kind == MetadataKind::kMinMax ? 2 : 1;
  const int64_t scale = precision == MetadataPrecision::kBf16 ? 0 : kScaleBytes;
  const int64_t entries = CeilDiv(shape.page_tokens, sub_tokens);
  return entries * vectors * (CeilDiv(width * Bits(precision), 8) + scale);
}

}  // namespace lacuna::kvcache
