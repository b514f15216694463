#include "kernels/ops/checker.h"
#include "kernels/ops/checks.h"

namespace lacuna::kernels {

Status Check(const SelectRangesArgs& args, DType act) {
  Checker check("SelectRanges");
  check.Tensor("q", args.q, {act}, {kAnyDim, kAnyDim, kAnyDim});
  return check.Take();
}

Status Check(const CorrectPrefillArgs& args, DType act) {
  Checker check("CorrectPrefill");
  check.Tensor("out", args.out, {act}, {kAnyDim, kAnyDim, kAnyDim});
  return check.Take();
}

Status Check(const CompareAttentionArgs& args, DType act) {
  Checker check("CompareAttention");
  check.Tensor("sparse", args.sparse, {act}, {kAnyDim, kAnyDim, kAnyDim});
  return check.Take();
}

}  // namespace lacuna::kernels
