// The checkers of AppendMetadata and SelectKeys.
#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "kernels/ops/check_parts.h"
#include "kernels/ops/checker.h"
#include "kernels/ops/checks.h"

namespace lacuna::kernels {
namespace {

bool IsUnit(int32_t tokens) { return tokens == 1 || tokens == 16 || tokens == 64; }

void CheckMetadata(Checker& check, std::string_view name, const MetadataPool& metadata,
                   const KvPool& keys) {
  const MetadataSpec& spec = metadata.spec;
  check.Require(spec.any(), name, "a kind of metadata");
  check.Require(IsUnit(spec.sub_tokens), name, "sub_tokens 1, 16 or 64");
  const bool single = spec.kind == MetadataKind::kLabels || spec.kind == MetadataKind::kLowBit;
  check.Require(!single || spec.sub_tokens == 1, name, "sub_tokens 1 with labels and lowbit");
  const bool mean = spec.kind == MetadataKind::kMean;
  check.Require(!mean || (spec.window_tokens >= spec.sub_tokens && spec.window_tokens <= 64), name,
                "window_tokens from sub_tokens to 64");
  // A mean reaches back into one page.
  check.Require(!mean || spec.window_tokens <= keys.page_tokens + spec.sub_tokens, name,
                "window_tokens of a page and sub_tokens at most");
  if (spec.kind == MetadataKind::kLabels) {
    check.Require(spec.channels > 0 && spec.channels <= metadata.head_dim, name,
                  "channels from 1 to head_dim");
    check.Require(metadata.channels != nullptr, name, "the lists of channels");
  }
  check.Require(metadata.pages == keys.pages && metadata.kv_heads == keys.kv_heads &&
                    metadata.head_dim == keys.head_dim && metadata.page_tokens == keys.page_tokens,
                name, "pages, heads, head_dim and page_tokens of the keys");
  check.Require(metadata.pages == 0 || metadata.data != nullptr, name, "memory");
}

// `path` and the metadata that it reads; combinations are kvcache/sparse/checker.h's.
void CheckPath(Checker& check, const SelectKeysArgs& args) {
  const DecodePath& path = args.path;
  check.Require(IsUnit(path.unit_tokens) && IsUnit(path.refine_unit_tokens), "path",
                "units of 1, 16 or 64 tokens");
  const bool chooses = path.select != SelectKind::kAll && path.select != SelectKind::kNone;
  check.Require(!chooses || path.score != ScoreKind::kNone, "path", "a score to select by");
  const bool bound = path.score == ScoreKind::kBound;
  const MetadataKind kind = path.metadata.kind;
  check.Require(!bound || kind == MetadataKind::kMinMax, "path", "minmax with score bound");
  const bool dot = path.score == ScoreKind::kDot;
  check.Require(!dot || (kind != MetadataKind::kNone && kind != MetadataKind::kMinMax), "path",
                "mean, labels or lowbit with score dot");
  check.Require(bound || dot || !path.metadata.any(), "path",
                "metadata only with score bound or dot");
  check.Require(path.reduce != ReduceKind::kRoundRobin || path.select == SelectKind::kTopK, "path",
                "top_k with reduce round_robin");
  check.Require(path.refine_reduce != ReduceKind::kRoundRobin, "path",
                "a refine_reduce that is not round_robin");
  if (path.metadata.any()) {
    check.Require(args.metadata.spec == path.metadata, "metadata", "what path.metadata says");
    CheckMetadata(check, "metadata", args.metadata, args.pool);
    check.Require(path.unit_tokens >= path.metadata.sub_tokens, "path",
                  "units of metadata.sub_tokens at least");
  }
  if (path.refine != RefineKind::kNone) {
    check.Require(path.refine_unit_tokens <= path.unit_tokens, "path",
                  "refine_unit_tokens of unit_tokens at most");
    if (path.refine_metadata.any()) {
      check.Require(path.refine_metadata.kind == MetadataKind::kLowBit, "path",
                    "lowbit, or no metadata, to refine by");
      check.Require(args.refine_metadata.spec == path.refine_metadata, "refine_metadata",
                    "what path.refine_metadata says");
      CheckMetadata(check, "refine_metadata", args.refine_metadata, args.pool);
    }
  }
  if (!chooses) return;
  const int64_t owners = path.owner == OwnerKind::kLayer ? 1 : args.pool.kv_heads;
  check.Require(
      args.choices.masks != nullptr && args.choices.owners == owners && args.choices.pages_max >= 0,
      "choices", "masks of one owner per kv head, or of the layer");
  check.Require(path.refresh != RefreshKind::kCosine || args.choices.queries != nullptr, "choices",
                "queries to compare with");
  check.Require(!path.head_thresholds || args.thresholds != nullptr, "thresholds",
                "a threshold per query head");
}

}  // namespace

Status Check(const AppendMetadataArgs& args, DType act) {
  Checker check("AppendMetadata");
  CheckPool(check, args.keys, act, "keys");
  if (!check.Tensor("slots", args.slots, {DType::kI32}, {kAnyDim})) return check.Take();
  const int64_t tokens = args.slots.dim(0);
  check.Require(args.slots.contiguous(), "slots", "a contiguous vector");
  check.OptionalTensor("previous_pages", args.previous_pages, {DType::kI32}, {tokens});
  check.Require(args.previous_pages.rank() == 0 || args.previous_pages.contiguous(),
                "previous_pages", "a contiguous vector");
  CheckMetadata(check, "metadata", args.metadata, args.keys);
  const MetadataSpec& spec = args.metadata.spec;
  const bool reaches =
      spec.kind == MetadataKind::kMean &&
      spec.window_tokens > std::min<int64_t>(spec.sub_tokens, args.keys.page_tokens);
  check.Require(!reaches || tokens == 0 || args.previous_pages.rank() == 1, "previous_pages",
                "the pages before, for a mean that reaches back");
  return check.Take();
}

Status Check(const SelectKeysArgs& args, DType act) {
  Checker check("SelectKeys");
  CheckPool(check, args.pool, act);
  if (!check.Tensor("q", args.q, {act}, {kAnyDim, kAnyDim, args.pool.head_dim})) {
    return check.Take();
  }
  const int64_t rows = args.q.dim(0), q_heads = args.q.dim(1);
  check.Require(q_heads > 0 && args.pool.kv_heads > 0 && q_heads % args.pool.kv_heads == 0, "q",
                "query heads that are a multiple of the kv heads");
  check.Tensor("positions", args.positions, {DType::kI32}, {rows});
  check.Require(args.positions.rank() != 1 || args.positions.contiguous(), "positions",
                "a contiguous vector");
  check.Require(args.pages.lists == rows, "pages", "one list per row");
  check.Require(rows == 0 || (args.pages.begins != nullptr && args.pages.ends != nullptr), "pages",
                "begins and ends");
  check.Require(rows == 0 || args.rows != nullptr, "rows", "one per row");
  check.Require(std::isfinite(args.scale), "scale", "a finite number");
  const SelectedLists& out = args.out;
  check.Require(
      rows == 0 || (out.pages != nullptr && out.logical != nullptr && out.masks != nullptr &&
                    out.begins != nullptr && out.ends != nullptr && out.stride > 0),
      "out", "room for lists with masks");
  check.OptionalTensor("dropped_lse", args.dropped_lse, {DType::kF32}, {rows, q_heads});
  check.Require(args.path.correct == DecodeCorrectKind::kNone || args.dropped_lse.rank() == 2,
                "dropped_lse", "a tensor with correct denominator");
  if (check.ok()) CheckPath(check, args);
  return check.Take();
}

}  // namespace lacuna::kernels
