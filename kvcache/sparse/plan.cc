#include "kvcache/sparse/plan.h"

#include <algorithm>

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

std::vector<Residency> ResidencyOf(const SparsePlan& plan) {
  std::vector<Residency> groups(1);
  for (int32_t layer = 0; layer < plan.shape.layers; ++layer) {
    for (int32_t kv_head = 0; kv_head < plan.shape.kv_heads; ++kv_head) {
      const HeadPlan& head = plan.head(layer, kv_head);
      const bool streams = head.role == HeadRole::kStreaming;
      const auto found = std::ranges::find_if(groups, [&](const Residency& group) {
        return streams ? group.window_tokens == head.decode.window_tokens &&
                             group.prefill_window_tokens == head.prefill.window_tokens &&
                             group.sink_tokens == head.decode.sink_tokens
                       : group.window_tokens == 0;
      });
      if (found != groups.end()) {
        found->heads.push_back({layer, kv_head});
      } else {
        groups.push_back({.sink_tokens = head.decode.sink_tokens,
                          .window_tokens = head.decode.window_tokens,
                          .prefill_window_tokens = head.prefill.window_tokens,
                          .heads = {{layer, kv_head}}});
      }
    }
  }
  return groups;
}

double MetadataBytesPerToken(const SparsePlan& plan) {
  int64_t bytes = 0;  // of one page
  for (int32_t layer = 0; layer < plan.shape.layers; ++layer) {
    const LayerPlan& one = plan.layers[static_cast<size_t>(layer)];
    for (int32_t kv_head = 0; kv_head < plan.shape.kv_heads; ++kv_head) {
      if (plan.head(layer, kv_head).role != HeadRole::kFull) continue;
      if (one.stores_metadata) bytes += plan.decode.metadata.PageBytes(plan.shape);
      if (one.stores_refine_metadata) bytes += plan.decode.refine_metadata.PageBytes(plan.shape);
    }
  }
  return static_cast<double>(bytes) / plan.shape.page_tokens;
}

}  // namespace lacuna::kvcache
