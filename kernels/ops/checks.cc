#include "kernels/ops/checks.h"

#include <cmath>
#include <cstdint>
#include <limits>

#include "kernels/ops/check_parts.h"
#include "kernels/ops/checker.h"

namespace lacuna::kernels {

Status Check(const EmbedArgs& args, DType) {
  Checker check("Embed");
  if (!check.Tensor("ids", args.ids, {DType::kI32}, {kAnyDim}) ||
      !check.Tensor("table", args.table, {DType::kF32, DType::kBF16, DType::kF16},
                    {kAnyDim, kAnyDim})) {
    return check.Take();
  }
  check.Require(args.ids.contiguous(), "ids", "a contiguous vector");
  check.Tensor("out", args.out, {DType::kF32}, {args.ids.dim(0), args.table.dim(1)});
  return check.Take();
}

Status Check(const RmsNormArgs& args, DType act) {
  Checker check("RmsNorm");
  const int rank = args.x.rank();
  if (!check.Require(rank == 2 || rank == 3, "x", "rank 2 or 3")) return check.Take();
  const int64_t rows = args.x.dim(0);
  const int64_t dim = args.x.dim(rank - 1);
  if (rank == 2) {
    check.Tensor("x", args.x, {DType::kF32, act}, {kAnyDim, kAnyDim});
    check.Tensor("out", args.out, {DType::kF32, act}, {rows, dim});
  } else {
    check.Tensor("x", args.x, {DType::kF32, act}, {kAnyDim, kAnyDim, kAnyDim});
    check.Tensor("out", args.out, {DType::kF32, act}, {rows, args.x.dim(1), dim});
  }
  check.Tensor("weight", args.weight, {DType::kF32}, {dim});
  check.Require(!args.accumulate || args.out.dtype() == DType::kF32, "out",
                "f32 to accumulate into");
  check.Require(std::isfinite(args.eps) && args.eps >= 0.0f, "eps", "a finite number >= 0");
  return check.Take();
}

Status Check(const MatmulArgs& args, DType act) {
  Checker check("Matmul");
  if (!check.Require(args.weight != nullptr, "weight", "a prepared matrix")) return check.Take();
  if (!check.Tensor("x", args.x, {act}, {kAnyDim, args.weight->columns()})) return check.Take();
  check.Tensor("out", args.out, {DType::kF32, act}, {args.x.dim(0), args.weight->rows()});
  check.OptionalTensor("bias", args.bias, {DType::kF32}, {args.weight->rows()});
  check.Require(!args.accumulate || args.out.dtype() == DType::kF32, "out",
                "f32 to accumulate into");
  return check.Take();
}

Status Check(const GatedActivationArgs& args, DType act) {
  Checker check("GatedActivation");
  if (!check.Tensor("out", args.out, {act}, {kAnyDim, kAnyDim})) return check.Take();
  check.Tensor("gate_up", args.gate_up, {act}, {args.out.dim(0), 2 * args.out.dim(1)});
  check.Require(args.activation == Activation::kSilu || args.activation == Activation::kGeluTanh,
                "activation", "silu or gelu_tanh");
  return check.Take();
}

Status Check(const GatherRowsArgs& args, DType) {
  Checker check("GatherRows");
  if (!check.Tensor("x", args.x, {DType::kF32}, {kAnyDim, kAnyDim}) ||
      !check.Tensor("rows", args.rows, {DType::kI32}, {kAnyDim})) {
    return check.Take();
  }
  check.Require(args.rows.contiguous(), "rows", "a contiguous vector");
  check.Tensor("out", args.out, {DType::kF32}, {args.rows.dim(0), args.x.dim(1)});
  return check.Take();
}

Status Check(const SoftcapArgs& args, DType) {
  Checker check("Softcap");
  check.Tensor("x", args.x, {DType::kF32}, {kAnyDim, kAnyDim});
  check.Require(std::isfinite(args.cap) && args.cap > 0.0f, "cap", "a finite number > 0");
  return check.Take();
}

namespace {

void CheckParams(Checker& check, const AttentionParams& params) {
  check.Require(std::isfinite(params.scale), "scale", "a finite number");
  check.Require(std::isfinite(params.softcap) && params.softcap >= 0.0f, "softcap",
                "a finite number >= 0");
  check.Require(params.shape.window_tokens >= 0 && params.shape.sink_tokens >= 0, "shape",
                "window and sink tokens >= 0");
}

void CheckLists(Checker& check, const PageLists& lists, int64_t need) {
  check.Require(lists.lists == need, "lists", "one list per row (and kv head) or chunk");
  check.Require(need == 0 || (lists.begins != nullptr && lists.ends != nullptr), "lists",
                "begins and ends");
  check.Require(Aligned(lists.begins) && Aligned(lists.ends) && Aligned(lists.pages) &&
                    Aligned(lists.logical) && Aligned(lists.masks),
                "lists", "arrays aligned to their elements");
}

void CheckShapes(Checker& check, const StaticShape* shapes) {
  check.Require(Aligned(shapes), "shapes", "an array aligned to its elements");
}

// q, out and lse, the same for both attentions.
void CheckQueries(Checker& check, const TensorView& q, const TensorView& out, const TensorView& lse,
                  const KvPool& pool, DType act) {
  if (!check.Tensor("q", q, {act}, {kAnyDim, kAnyDim, pool.head_dim})) return;
  check.Require(q.dim(1) > 0 && q.dim(1) % pool.kv_heads == 0, "q",
                "query heads that are a multiple of the kv heads");
  check.Tensor("out", out, {act}, {q.dim(0), q.dim(1), pool.head_dim});
  check.OptionalTensor("lse", lse, {DType::kF32}, {q.dim(0), q.dim(1)});
}

}  // namespace

Status Check(const AppendKvArgs& args, DType act) {
  Checker check("AppendKv");
  CheckPool(check, args.pool, act);
  if (!check.Tensor("k", args.k, {act}, {kAnyDim, args.pool.kv_heads, args.pool.head_dim})) {
    return check.Take();
  }
  check.Tensor("v", args.v, {act}, {args.k.dim(0), args.pool.kv_heads, args.pool.head_dim});
  check.Tensor("slots", args.slots, {DType::kI32}, {args.k.dim(0)});
  check.Require(args.slots.rank() != 1 || args.slots.contiguous(), "slots", "a contiguous vector");
  return check.Take();
}

Status Check(const RopeAppendArgs& args, DType act) {
  Checker check("RopeAppend");
  CheckPool(check, args.pool, act);
  const int64_t head_dim = args.pool.head_dim;
  if (!check.Tensor("q", args.q, {act}, {kAnyDim, kAnyDim, head_dim})) return check.Take();
  const int64_t tokens = args.q.dim(0);
  check.Tensor("k", args.k, {act}, {tokens, args.pool.kv_heads, head_dim});
  check.Tensor("v", args.v, {act}, {tokens, args.pool.kv_heads, head_dim});
  check.OptionalTensor("q_norm", args.q_norm, {DType::kF32}, {head_dim});
  check.OptionalTensor("k_norm", args.k_norm, {DType::kF32}, {head_dim});
  check.Require(std::isfinite(args.norm_eps) && args.norm_eps >= 0.0f, "norm_eps",
                "a finite number >= 0");
  if (!check.Tensor("positions", args.positions, {DType::kI32}, {tokens}) ||
      !check.Tensor("slots", args.slots, {DType::kI32}, {tokens}) ||
      !check.Tensor("cos_sin", args.cos_sin, {DType::kF32}, {kAnyDim, kAnyDim})) {
    return check.Take();
  }
  const int64_t rotary_dim = args.cos_sin.dim(1);
  check.Require(args.positions.contiguous(), "positions", "a contiguous vector");
  check.Require(args.slots.contiguous(), "slots", "a contiguous vector");
  check.Require(rotary_dim > 0 && rotary_dim % 2 == 0 && rotary_dim <= head_dim, "cos_sin",
                "an even rotary_dim, at least 2 and at most head_dim");
  return check.Take();
}

Status Check(const AttendDecodeArgs& args, DType act) {
  Checker check("AttendDecode");
  CheckPool(check, args.pool, act);
  CheckParams(check, args.params);
  CheckQueries(check, args.q, args.out, args.lse, args.pool, act);
  if (!check.ok()) return check.Take();
  const int64_t rows = args.q.dim(0);
  check.Tensor("positions", args.positions, {DType::kI32}, {rows});
  check.Require(args.positions.rank() != 1 || args.positions.contiguous(), "positions",
                "a contiguous vector");
  check.Require(args.lists_per_row == 1 || args.lists_per_row == args.pool.kv_heads,
                "lists_per_row", "1 or the number of kv heads");
  CheckLists(check, args.lists, rows * args.lists_per_row);
  CheckShapes(check, args.shapes);
  check.OptionalTensor("dropped_lse", args.dropped_lse, {DType::kF32}, {rows, args.q.dim(1)});
  return check.Take();
}

Status Check(const AttendPrefillArgs& args, DType act) {
  Checker check("AttendPrefill");
  CheckPool(check, args.pool, act);
  CheckParams(check, args.params);
  CheckQueries(check, args.q, args.out, args.lse, args.pool, act);
  if (!check.ok()) return check.Take();
  CheckChunks(check, args.chunks, args.q.dim(0));
  CheckLists(check, args.lists, static_cast<int64_t>(args.chunks.size()));
  CheckShapes(check, args.shapes);
  if (args.ranges != nullptr && !args.chunks.empty()) {
    check.Require(args.ranges->begins != nullptr && args.ranges->ends != nullptr &&
                      args.ranges->chunk_offsets != nullptr,
                  "ranges", "begins, ends and chunk_offsets");
  }
  return check.Take();
}

Status Check(const SampleArgs& args, DType) {
  Checker check("Sample");
  if (!check.Tensor("logits", args.logits, {DType::kF32}, {kAnyDim, kAnyDim})) return check.Take();
  if (args.logits.dim(0) == 0) return check.Take();
  check.Require(args.logits.dim(1) > 0 && args.logits.dim(1) <= std::numeric_limits<int32_t>::max(),
                "logits", "at least one token, ids that fit 32 bits");
  check.Require(args.rows != nullptr && Aligned(args.rows), "rows",
                "one for each row of logits, aligned");
  check.Require(args.results != nullptr && args.tokens != nullptr, "results", "memory");
  check.Require(
      Aligned(args.results) && Aligned(args.tokens) && Aligned(args.edits) && Aligned(args.mask),
      "results", "arrays aligned to their elements");
  return check.Take();
}

Status CheckWeight(const TensorView& weight) {
  Checker check("PrepareMatrix");
  check.Tensor("weight", weight, {DType::kF32, DType::kBF16, DType::kF16}, {kAnyDim, kAnyDim});
  check.Require(weight.rank() != 2 || !weight.empty(), "weight", "at least one row and column");
  return check.Take();
}

}  // namespace lacuna::kernels
