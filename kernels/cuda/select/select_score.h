// The stages of scoring, each a kernel or none, and the groups of rows that go through them.
// Private to select_*.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/core/status.h"
#include "kernels/cuda/select/select_keys.h"

namespace lacuna::kernels::cuda {

// select_units.cu. Fills call.turned: 1 for rows that choose anew, because they are told to or
// because their queries have turned from those of their last choice; those are kept instead.
Status RefreshQueries(const SelectKeysCall& call, cudaStream_t stream);

inline constexpr int kScoreWarps = 4;
inline constexpr int kScoreStages = 3;

// How the scoring kernels see a call.
struct ScoreShape final {
  int32_t vectors = 1;    // of an entry
  int32_t width = 0;      // channels of a vector
  int32_t row_bytes = 0;  // of a vector
  int32_t chunk_tokens = 1024;
  int32_t page_shift = 0;    // a page has 1 << page_shift entries
  int32_t unit_entries = 1;  // entries of a unit
  // Unit scores come straight from the kernel: no softmax, no heads of other owners, and heads that
  // choose by themselves have units within one tile of 16 entries. Else raw scores.
  bool direct = false;
  bool fast = false;  // ScoreFast; direct then
  // Tensor cores.
  int32_t bits = 16;         // of a code; 16: bf16, or keys
  int32_t steps = 0;         // of 64 bytes of a vector
  int32_t parts = 1;         // columns of a head: 1, 2 or 4
  int32_t column_tiles = 1;  // of 8 columns
  int32_t stage_tiles = 1;   // of 16 entries
  int32_t stage_bytes = 0;   // of one warp
  int32_t shared_bytes = 0;
  bool tensor_cores = false;  // else one thread per entry, raw scores only
};
// select_score.cc
ScoreShape ScoreShapeOf(const SelectKeysCall& call, const DeviceTraits& traits);

// To call.units (direct) or call.scores. select_score_fast.cu: codes of shapes that have kernels of
// their own; select_score_codes.cu, _wide.cu: tensor cores, where
// vectors are multiples of 16 bytes; _any.cu: any.
Status ScoreFast(const SelectKeysCall& call, const ScoreShape& shape, cudaStream_t stream);
Status ScoreCodes(const SelectKeysCall& call, const ScoreShape& shape, cudaStream_t stream);
Status ScoreWide(const SelectKeysCall& call, const ScoreShape& shape, cudaStream_t stream);
Status ScoreAny(const SelectKeysCall& call, const ScoreShape& shape, cudaStream_t stream);

// select_units.cu. From raw scores to unit scores: softmax, thresholds, heads, units.
inline constexpr int kSumEntries = 4096;  // of one of call.chunk_sums
Status ReduceScores(const SelectKeysCall& call, cudaStream_t stream);

// select_keys.cc. Rows that fit the workspace together, and all of the above for them.
struct SelectGroup final {
  SelectKeysCall call;
  ScoreShape shape;
  Workspace rest;  // of ChooseKeys
};
Status FirstGroup(const SelectKeysArgs& args, const DeviceTraits& traits,
                  const Workspace& workspace, SelectGroup* group);
Status ScoreUnits(const SelectGroup& group, cudaStream_t stream);

}  // namespace lacuna::kernels::cuda
