#include "kernels/ops/check_parts.h"
#include "kernels/ops/checks.h"

namespace lacuna::kernels {

Status Check(const CorrectPrefillArgs& args, DType act) {
  Checker check("CorrectPrefill");
  check.Require(
      args.kind == PrefillCorrectKind::kDelta || args.kind == PrefillCorrectKind::kOverwrite,
      "kind", "delta or overwrite");
  check.Require(args.stride_rows > 0, "stride_rows", "at least 1");
  if (!check.Tensor("out", args.out, {act}, {kAnyDim, kAnyDim, kAnyDim})) return check.Take();
  CheckChunks(check, args.chunks, args.out.dim(0));
  if (!check.ok()) return check.Take();
  int64_t dense_rows = 0;
  for (const PrefillChunk& chunk : args.chunks) {
    dense_rows += CorrectedRows(chunk, args.stride_rows);
  }
  check.Tensor("dense", args.dense, {act}, {dense_rows, args.out.dim(1), args.out.dim(2)});
  return check.Take();
}

Status Check(const CompareAttentionArgs& args, DType act) {
  Checker check("CompareAttention");
  if (!check.Tensor("sparse", args.sparse, {act}, {kAnyDim, kAnyDim, kAnyDim})) {
    return check.Take();
  }
  const int64_t rows = args.sparse.dim(0), heads = args.sparse.dim(1);
  check.Tensor("dense", args.dense, {act}, {rows, heads, args.sparse.dim(2)});
  check.Tensor("sparse_lse", args.sparse_lse, {DType::kF32}, {rows, heads});
  check.Tensor("dense_lse", args.dense_lse, {DType::kF32}, {rows, heads});
  check.Require(rows == 0 || (args.audits != nullptr && Aligned(args.audits)), "audits",
                "one for each row, aligned");
  check.Require(args.stride >= 1, "stride", "at least 1");
  return check.Take();
}

}  // namespace lacuna::kernels
