// What must be known about SelectRanges before it runs: where a prompt may be cut into chunks, and
// how much room its lists need. Pure functions; any thread.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numeric>

#include "kernels/core/checked_math.h"
#include "kernels/ops/select_ranges.h"

namespace lacuna::kernels {

// Rows [k * cell_tokens, (k + 1) * cell_tokens) of a prompt share one probe, one map and one
// measure of energies; powers of two between these, of what is no probe the least.
inline constexpr int32_t kCellTokensMin = 1024, kCellTokensMax = 8192;
// Rows of a cell's probe at most, those of each of its runs rounded up to kProbePieceRows.
inline constexpr int32_t kProbeRowsMax = 1024, kProbePieceRows = 64;

inline bool Probes(const PrefillPath& path) {
  return path.estimate == EstimateKind::kProbe || path.estimate == EstimateKind::kProbePooled;
}
// Runs of a cell's probe: one, or as many tails as make probe_fraction of the cell.
inline int64_t ProbeRuns(const PrefillPath& path, const PrefillDials& dials) {
  if (path.probe_place == ProbePlace::kLast) return 1;
  const double tails = std::round(double{dials.probe_fraction} * path.cell_tokens /
                                  static_cast<double>(std::max(dials.probe_rows, 1)));
  return std::max<int64_t>(static_cast<int64_t>(tails), 1);
}
inline bool ProbeFits(const PrefillPath& path, const PrefillDials& dials) {
  return ProbeRuns(path, dials) * RoundUp(dials.probe_rows, int64_t{kProbePieceRows}) <=
         kProbeRowsMax;
}

// Chunks that begin at multiples of this, and end there or at the prompt's end, get the ranges (and
// with a correction the outputs) of any other such cut, bit for bit.
inline int64_t PrefillGrainTokens(const PrefillPath& path, const PrefillDials& dials) {
  const bool cells =
      Probes(path) || (path.estimate == EstimateKind::kPooled &&
                       (path.scope == ScopeKind::kMap || path.pool == PrefillPool::kBands));
  const int64_t rows =
      cells ? int64_t{path.cell_tokens}
            : std::lcm(int64_t{path.block_tokens}, int64_t{KeyRanges::kQueryTileTokens});
  if (path.correct == PrefillCorrectKind::kNone) return rows;
  return std::lcm(rows, int64_t{std::max(dials.correct_stride_rows, 1)});
}

// Ranges of one list at most, for chunks that end at `context_tokens` or before: RangeArrays.stride
// must be no less.
inline int64_t RangesMax(const PrefillPath& path, int64_t context_tokens) {
  const int64_t runs = CeilDiv(CeilDiv(context_tokens, 16), 2);  // every other run of 16 keys
  const int64_t blocks = CeilDiv(context_tokens, std::max<int64_t>(path.block_tokens, 1));
  switch (path.select) {
    case PrefillSelectKind::kVerticalSlash:
      return std::max<int64_t>(runs, 2);
    case PrefillSelectKind::kCover:  // blocks, and bands of distances between them
      return std::max<int64_t>(std::min(runs, blocks + 1), 2);
    case PrefillSelectKind::kTopK:
    case PrefillSelectKind::kTopP:
      return std::max<int64_t>(CeilDiv(blocks, 2), 2);
    case PrefillSelectKind::kAll:
    case PrefillSelectKind::kNone:
      break;
  }
  return 2;
}

}  // namespace lacuna::kernels
