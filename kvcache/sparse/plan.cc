#include "kvcache/sparse/plan.h"

namespace lacuna::kvcache {
namespace {

bool Equal(const kernels::StaticShape& a, const kernels::StaticShape& b) {
  return a.window_tokens == b.window_tokens && a.sink_tokens == b.sink_tokens;
}

}  // namespace

bool HeadPlan::operator==(const HeadPlan& other) const {
  return role == other.role && Equal(prefill, other.prefill) && Equal(decode, other.decode);
}

}  // namespace lacuna::kvcache
