// SelectRanges: which keys each tile of prompt queries reads in one layer: estimate, select, force.
// SEAM.
//
// Blocks, tiles and probes count absolute positions: the chunk [first, first + rows) of a prompt
// gets what the same rows would get from any other cut at multiples of PrefillGrainTokens
// (range_limits.h). The choice of a block of queries knows the keys up to the block's end; that of
// a probe or a map, those up to the end of its cell of cell_tokens rows. Words: docs/profiles.md.
#pragma once

#include <cstdint>
#include <span>
#include <type_traits>

#include "kernels/core/tensor_view.h"
#include "kernels/ops/attention.h"
#include "kernels/ops/kv_pool.h"
#include "kernels/ops/selection.h"
#include "kernels/ops/sparse_kinds.h"

namespace lacuna::kernels {

struct PrefillPath final {
  EstimateKind estimate = EstimateKind::kNone;
  ProbePlace probe_place = ProbePlace::kLast;
  PrefillPool pool = PrefillPool::kMean;
  PrefillSelectKind select = PrefillSelectKind::kAll;
  ScopeKind scope = ScopeKind::kRow;
  bool inclusive = true;
  PrefillCorrectKind correct = PrefillCorrectKind::kNone;
  int32_t block_tokens = 128;
  int32_t stride_tokens = 16;
  int32_t cell_tokens = 1024;  // rows that share a probe, a map or a measure of energies
  bool operator==(const PrefillPath&) const = default;
};

struct PrefillDials final {
  int32_t dense_below_tokens = 0;
  int32_t probe_rows = 64;
  float probe_fraction = 0;
  int32_t low_channels = 0, high_channels = 0;  // bands: even counts, each half of rotary pairs
  float js_threshold = 0;
  int32_t budget_tokens = 0;
  double fraction = 0;
  int32_t min_tokens = 0, max_tokens = 0;
  int32_t sink_tokens = 0, local_tokens = 0;
  double local_fraction = 0;
  int32_t last_rows = 0;
  int32_t correct_stride_rows = 64, correct_last_rows = 128;
  bool operator==(const PrefillDials&) const = default;
};
static_assert(std::is_trivially_copyable_v<PrefillPath> &&
              std::is_trivially_copyable_v<PrefillDials>);

// kVerticalSlash: `a` columns, `b` diagonals; kAShape: `a` first tokens, `b` newest; kBlocks: the
// `a` best blocks of each row. What a head without an entry does is the profile's word (kProfile).
enum class PatternKind : uint8_t { kProfile, kVerticalSlash, kAShape, kBlocks };
struct HeadPattern final {
  PatternKind kind = PatternKind::kProfile;
  int32_t a = 0, b = 0;
  bool operator==(const HeadPattern&) const = default;
};

// One query head's prefill in a sparse layer.
struct PrefillHead final {
  HeadPattern pattern;  // never kProfile when the path selects vertical_slash
  float p = 1;          // cover, top_p
  bool operator==(const PrefillHead&) const = default;
};

// How one query head gets its ranges: everything, what is forced, sink and window, what a probe
// chose, or blocks by their pooled scores.
enum class HeadMode : uint8_t { kDense, kForced, kAShape, kProbe, kPooled };
constexpr HeadMode ModeOf(const PrefillPath& path, const HeadPattern& pattern, bool has_window) {
  if (has_window) return HeadMode::kDense;
  switch (path.select) {
    case PrefillSelectKind::kAll:
      return HeadMode::kDense;
    case PrefillSelectKind::kNone:
      return HeadMode::kForced;
    case PrefillSelectKind::kCover:
      return HeadMode::kProbe;
    case PrefillSelectKind::kTopK:
    case PrefillSelectKind::kTopP:
      return HeadMode::kPooled;
    case PrefillSelectKind::kVerticalSlash:
      break;
  }
  switch (pattern.kind) {
    case PatternKind::kAShape:
      return HeadMode::kAShape;
    case PatternKind::kBlocks:
      return HeadMode::kPooled;
    case PatternKind::kProfile:
      return HeadMode::kForced;
    case PatternKind::kVerticalSlash:
      break;
  }
  return HeadMode::kProbe;
}

// What a chunk is a part of.
struct RangeChunk final {
  PrefillChunk chunk;
  int32_t prompt_tokens = 0;  // of the whole prompt: its last rows may be dense
  PrefillDials dials;
};

// Added up over layers: causal (query tile, key block of 64) pairs, and those that are read.
struct RangeStats final {
  int64_t blocks_considered = 0;
  int64_t blocks_selected = 0;
};

// Room for ranges: list l is the entries [l * stride, ends[l]) of `begin` and `end`; begins[l] =
// l * stride is written too. Lists stand as KeyRanges says.
struct RangeArrays final {
  int32_t* begin = nullptr;
  int32_t* end = nullptr;
  int64_t* begins = nullptr;
  int64_t* ends = nullptr;
  int64_t stride = 0;
  const int64_t* chunk_offsets = nullptr;  // [chunks], device memory

  KeyRanges Ranges() const { return {begin, end, begins, ends, chunk_offsets}; }
};

struct SelectRangesArgs final {
  TensorView q;                        // [tokens, q_heads, head_dim] act, rotated
  KvPool pool;                         // the chunks' own keys are appended
  std::span<const RangeChunk> chunks;  // host memory
  PageLists lists;                     // one per chunk: all pages up to its last token
  PrefillPath path;
  const PrefillHead* heads = nullptr;  // [q_heads]
  // [chunks, kv_heads], or null. A head with a window gets one range, of everything: its shape does
  // the rest.
  const StaticShape* shapes = nullptr;
  float scale = 1.0f;
  RangeArrays out;
  RangeStats* stats = nullptr;  // [chunks, q_heads], or null
};

}  // namespace lacuna::kernels
