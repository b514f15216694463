// What the parts of attend_prefill_sm80.cu share: 128 query rows of one head a block, or 64, and
// key tiles of 64.
//
// Shared memory holds Q and a ring of key and value tiles (K0 V0 K1 V1 ...), all in the column
// stripes and the swizzle of kv_layout.cuh, so that cp.async moves slab bytes as they are and
// ldmatrix has no bank conflicts. A warp keeps its scores, probabilities and output in registers.
// Tiles are aligned to positions of the sequence and a masked key leaves a row exactly as it was,
// so the bits of a row do not depend on how rows are cut into chunks and blocks.
#pragma once

#include <cstdint>

#include "kernels/cuda/attend/chunk_table.h"
#include "kernels/cuda/attend/prefill_plan.cuh"
#include "kernels/cuda/kv_layout.cuh"
#include "kernels/ops/attention.h"

namespace lacuna::kernels::cuda::sm80 {

struct PrefillParams final {
  const void* q = nullptr;
  void* out = nullptr;
  float* lse = nullptr;
  int64_t q_row = 0, out_row = 0, lse_row = 0;  // strides, in elements
  const std::byte* pool = nullptr;
  int64_t slab_bytes = 0;
  int kv_heads = 0;
  int group = 0;  // query heads per kv head
  int page_tokens = 0;
  float exponent_scale = 0.0f;  // log2(e) times the scale, unless a soft cap has applied that
  AttentionParams params;
  const StaticShape* shapes = nullptr;  // [chunks, kv_heads], instead of that of `params`
  PageLists lists;
  KeyRanges ranges;  // begins is null where there are none
  ChunkTable table;
};

// How a block gets its tiles: by cp.async of all threads, by bulk copies (sm_90 and newer), or by
// cp.async into as little as there can be, for the 99 KB that a block of a GeForce has.
enum class Copies { kAsync, kBulk, kTight };

template <int kHeadDim, Copies kCopies>
struct Tiling final {
  static constexpr int kDim = kHeadDim;
  static constexpr bool kBulk = kCopies == Copies::kBulk;
  static constexpr int kRows = kCopies == Copies::kTight ? 64 : 128;
  static constexpr int kWarpRows = kDim > 128 ? 16 : 32;
  static constexpr int kWarps = kRows / kWarpRows;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kBlocksPerSm = kDim > 128 ? 1 : 2;
  static constexpr int kMmaRows = kWarpRows / 16;
  // Four slots hold two whole tiles, and one barrier a tile is enough. With three, two blocks of
  // D = 128 fit in the 164 KB of an A100. Two are the keys and the values, each of which come while
  // the others are used.
  static constexpr int kSlots = kBulk ? 4 : kCopies == Copies::kTight ? 2 : 3;
  static constexpr int kStripes = (kDim + kStripeColumns - 1) / kStripeColumns;
  static constexpr int kQBytes = kRows * kDim * 2;
  static constexpr int kSlotBytes = kKeyTile * kDim * 2;
  static constexpr int kPlanAt = kQBytes + kSlots * kSlotBytes;
  static constexpr int kBarriersAt = kPlanAt + static_cast<int>(sizeof(PlanStorage));
  static constexpr int kSharedBytes = kBarriersAt + (kBulk ? kSlots * 8 : 0);
};

// Columns of the stripe that holds a column.
template <int kDim>
constexpr int StripeWidth(int column) {
  const int rest = kDim - column / kStripeColumns * kStripeColumns;
  return rest < kStripeColumns ? rest : kStripeColumns;
}

// Byte offset, in a tile of kTileRows rows, of the 16-byte chunk `lane_chunk` (0 or 1) after
// 16-column step `step`, in row `row` of 8 consecutive rows that start at a multiple of 8.
template <int kDim, int kTileRows>
__device__ __forceinline__ uint32_t StepOffset(int step, int row, int lane_chunk) {
  const int width = StripeWidth<kDim>(step * 16);
  const int swizzle = width == 64 ? row & 7 : width == 32 ? (row >> 1) & 3 : (row >> 2) & 1;
  const int stripe = step * 16 / kStripeColumns;
  const int in_stripe = step - stripe * (kStripeColumns / 16);
  return static_cast<uint32_t>(stripe * kStripeColumns * kTileRows * 2 + row * width * 2 +
                               (((in_stripe * 2 + lane_chunk) ^ swizzle) << 4));
}

// What a warp knows of its rows.
struct WarpRows final {
  int first = 0;  // position of its first row
  int last = -1;  // of its last row inside the chunk; below `first` when it has none
};

// Whether every (row, key of the tile) is visible, or none.
enum class TileKind { kSkip, kFull, kMasked };
__device__ inline TileKind KindOf(const WarpRows& rows, int first_key, int groups,
                                  const StaticShape& shape) {
  const int last_key = first_key + kKeyTile - 1;
  if (groups == 0 || first_key > rows.last) return TileKind::kSkip;
  bool full = groups == 15 && last_key <= rows.first;
  if (shape.window_tokens > 0 && last_key >= shape.sink_tokens) {
    const bool sinks = first_key < shape.sink_tokens;
    if (!sinks && last_key <= rows.first - shape.window_tokens) return TileKind::kSkip;
    full &= first_key > rows.last - shape.window_tokens;
  }
  return full ? TileKind::kFull : TileKind::kMasked;
}

}  // namespace lacuna::kernels::cuda::sm80
