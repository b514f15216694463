#include <bit>
#include <cmath>
#include <limits>
#include <string>

#include "kernels/ops/check_parts.h"
#include "kernels/ops/checker.h"
#include "kernels/ops/checks.h"
#include "kernels/ops/range_limits.h"

namespace lacuna::kernels {
namespace {

bool Estimates(const PrefillPath& path, EstimateKind a, EstimateKind b) {
  return path.estimate == a || path.estimate == b;
}

// Which estimates a selector can read, as kvcache/sparse/checker.cc says of profiles.
bool EstimateFits(const PrefillPath& path) {
  switch (path.select) {
    case PrefillSelectKind::kAll:
    case PrefillSelectKind::kNone:
      return path.estimate == EstimateKind::kNone;
    case PrefillSelectKind::kVerticalSlash:
      return path.estimate == EstimateKind::kProbe;
    case PrefillSelectKind::kCover:
      return Estimates(path, EstimateKind::kProbe, EstimateKind::kProbePooled);
    case PrefillSelectKind::kTopK:
    case PrefillSelectKind::kTopP:
      return path.estimate == EstimateKind::kPooled;
  }
  return false;
}

void CheckPath(Checker& check, const PrefillPath& path) {
  check.Require(EstimateFits(path), "path", "an estimate that the selector reads");
  check.Require(path.block_tokens == 64 || path.block_tokens == 128, "path",
                "block_tokens 64 or 128");
  check.Require(path.pool != PrefillPool::kAntidiagonal ||
                    (path.stride_tokens > 0 && path.block_tokens % path.stride_tokens == 0),
                "path", "stride_tokens that divide block_tokens");
  check.Require(path.estimate != EstimateKind::kProbePooled || path.pool == PrefillPool::kMean,
                "path", "the pool mean beside a probe");
  check.Require(path.cell_tokens >= kCellTokensMin && path.cell_tokens <= kCellTokensMax &&
                    std::has_single_bit(static_cast<uint32_t>(path.cell_tokens)) &&
                    (Probes(path) || path.cell_tokens == kCellTokensMin),
                "path", "cell_tokens 1024, or of a probe 1024, 2048, 4096 or 8192");
}

bool IsShare(double value) { return value >= 0 && value <= 1; }

void CheckDials(Checker& check, const PrefillPath& path, const PrefillDials& dials) {
  check.Require(dials.probe_rows > 0 && IsShare(double{dials.probe_fraction}), "dials",
                "probe_rows of at least 1, probe_fraction from 0 to 1");
  check.Require(ProbeFits(path, dials), "dials", "probes of at most 1024 rows of a cell");
  check.Require(IsShare(dials.fraction) && IsShare(dials.local_fraction), "dials",
                "shares from 0 to 1");
  check.Require(dials.budget_tokens >= 0 && dials.min_tokens >= 0 && dials.max_tokens >= 0 &&
                    dials.sink_tokens >= 0 && dials.local_tokens >= 0 && dials.last_rows >= 0 &&
                    dials.dense_below_tokens >= 0 && dials.low_channels >= 0 &&
                    dials.high_channels >= 0 && dials.correct_last_rows >= 0,
                "dials", "counts >= 0");
  check.Require(dials.correct_stride_rows > 0, "dials", "correct_stride_rows of at least 1");
  check.Require(!std::isnan(dials.js_threshold), "dials", "a js_threshold that is a number");
}

void CheckRangeArrays(Checker& check, const RangeArrays& out) {
  check.Require(out.begin != nullptr && out.end != nullptr && out.begins != nullptr &&
                    out.ends != nullptr && out.chunk_offsets != nullptr,
                "out", "begin, end, begins, ends and chunk_offsets");
  check.Require(Aligned(out.begin) && Aligned(out.end) && Aligned(out.begins) &&
                    Aligned(out.ends) && Aligned(out.chunk_offsets),
                "out", "arrays aligned to their elements");
}

void CheckRangeChunks(Checker& check, const SelectRangesArgs& args) {
  int64_t context = 0, rows = 0;
  for (const RangeChunk& part : args.chunks) {
    CheckChunks(check, {&part.chunk, 1}, args.q.dim(0));
    CheckDials(check, args.path, part.dials);
    if (!check.ok()) return;
    const int64_t end = int64_t{part.chunk.first_position} + part.chunk.rows;
    check.Require(part.prompt_tokens >= end, "chunks", "prompt_tokens that reach its end");
    context = std::max(context, end);
    rows += part.chunk.rows;
  }
  if (rows == 0) return;
  CheckRangeArrays(check, args.out);
  check.Require(args.out.stride >= RangesMax(args.path, context), "out",
                "a stride of RangesMax at least");
}

}  // namespace

Status Check(const SelectRangesArgs& args, DType act) {
  Checker check("SelectRanges");
  const KvPool& pool = args.pool;
  CheckPool(check, pool, act);
  if (!check.ok() || !check.Tensor("q", args.q, {act}, {kAnyDim, kAnyDim, pool.head_dim})) {
    return check.Take();
  }
  check.Require(args.q.dim(1) > 0 && args.q.dim(1) % pool.kv_heads == 0, "q",
                "query heads that are a multiple of the kv heads");
  check.Require(std::isfinite(args.scale), "scale", "a finite number");
  CheckPath(check, args.path);
  check.Require(args.lists.lists == static_cast<int64_t>(args.chunks.size()), "lists",
                "one list per chunk");
  if (!check.ok() || args.chunks.empty()) return check.Take();
  const PageLists& lists = args.lists;
  check.Require(lists.begins != nullptr && lists.ends != nullptr, "lists", "begins and ends");
  check.Require(Aligned(lists.begins) && Aligned(lists.ends) && Aligned(lists.pages) &&
                    Aligned(lists.logical),
                "lists", "arrays aligned to their elements");
  check.Require(args.heads != nullptr && Aligned(args.heads), "heads", "one per query head");
  check.Require(Aligned(args.shapes), "shapes", "an array aligned to its elements");
  check.Require(Aligned(args.stats), "stats", "an array aligned to its elements");
  CheckRangeChunks(check, args);
  return check.Take();
}

}  // namespace lacuna::kernels
