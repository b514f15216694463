#include "kernels/ops/checker.h"
#include "kernels/ops/checks.h"

namespace lacuna::kernels {

Status Check(const AppendMetadataArgs& args, DType) {
  Checker check("AppendMetadata");
  check.Tensor("slots", args.slots, {DType::kI32}, {kAnyDim});
  return check.Take();
}

Status Check(const SelectKeysArgs& args, DType act) {
  Checker check("SelectKeys");
  check.Tensor("q", args.q, {act}, {kAnyDim, kAnyDim, kAnyDim});
  return check.Take();
}

}  // namespace lacuna::kernels
