// The kernel of attend_prefill_sm80.h: 128 query rows of one head a block, key tiles of 64.
//
// Shared memory holds Q and a ring of key and value tiles (K0 V0 K1 V1 ...), all in the column
// stripes and the swizzle of kv_layout.cuh, so that cp.async moves slab bytes as they are and
// ldmatrix has no bank conflicts. A warp keeps its scores, probabilities and output in registers.
// Tiles are aligned to positions of the sequence and a masked key leaves a row exactly as it was,
// so the bits of a row do not depend on how rows are cut into chunks and blocks.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cuda/chunk_table.h"
#include "kernels/cuda/kv_layout.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/prefill_plan.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/ops/attention.h"

#ifndef SM80_SLOTS
#define SM80_SLOTS 3
#define SM80_BLOCKS 2
#endif
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
  PageLists lists;
  KeyRanges ranges;  // begins is null where there are none
  ChunkTable table;
};

template <int kDim>
struct Tiling final {
  static constexpr int kRows = 128;
  static constexpr int kWarpRows = kDim > 128 ? 16 : 32;
  static constexpr int kWarps = kRows / kWarpRows;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kBlocksPerSm = kDim > 128 ? 1 : kDim > 64 ? 2 : SM80_BLOCKS;
  static constexpr int kMmaRows = kWarpRows / 16;
  static constexpr int kSlots = kDim > 128 ? 3 : SM80_SLOTS;
  static constexpr int kStripes = (kDim + kStripeColumns - 1) / kStripeColumns;
  static constexpr int kQBytes = kRows * kDim * 2;
  static constexpr int kSlotBytes = kKeyTile * kDim * 2;
  static constexpr int kSharedBytes =
      kQBytes + kSlots * kSlotBytes + static_cast<int>(sizeof(PlanStorage));
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

inline constexpr int kKeyColumns = kKeyTile / 8;
template <int kMmaRows>
using TileScores = float[kMmaRows][kKeyColumns][4];

// scores = Q K^T for the warp's rows and the keys of a tile.
template <typename T, int kDim>
__device__ __forceinline__ void Scores(uint32_t q, int warp_row, uint32_t k,
                                       TileScores<Tiling<kDim>::kMmaRows>& scores) {
  using Tile = Tiling<kDim>;
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int q_row = warp_row + (lane & 15);  // matrices 0, 1 of a load: the upper, lower 8 rows
  const int k_row = (lane & 7) + ((lane >> 4) << 3);
#pragma unroll
  for (int m = 0; m < Tile::kMmaRows; ++m) {
#pragma unroll
    for (int n = 0; n < kKeyColumns; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) scores[m][n][i] = 0.0f;
    }
  }
#pragma unroll
  for (int step = 0; step < kDim / 16; ++step) {
    const int row_bytes = StripeWidth<kDim>(step * 16) * 2;
    const uint32_t q_at = q + StepOffset<kDim, Tile::kRows>(step, q_row, lane >> 4);
    const uint32_t k_at = k + StepOffset<kDim, kKeyTile>(step, k_row, (lane >> 3) & 1);
    uint32_t a[Tile::kMmaRows][4];
#pragma unroll
    for (int m = 0; m < Tile::kMmaRows; ++m) {
      LoadMatrix4(a[m], q_at + static_cast<uint32_t>(m * 16 * row_bytes));
    }
#pragma unroll
    for (int n = 0; n < kKeyColumns; n += 2) {
      uint32_t b[4];
      LoadMatrix4(b, k_at + static_cast<uint32_t>(n * 8 * row_bytes));
#pragma unroll
      for (int m = 0; m < Tile::kMmaRows; ++m) {
        MmaM16N8K16<T>(scores[m][n], a[m], b[0], b[1]);
        MmaM16N8K16<T>(scores[m][n + 1], a[m], b[2], b[3]);
      }
    }
  }
}

// out += P V, P being the probabilities in `scores` rounded to T.
template <typename T, int kDim>
__device__ __forceinline__ void AddValues(uint32_t v,
                                          const TileScores<Tiling<kDim>::kMmaRows>& scores,
                                          float (&out)[Tiling<kDim>::kMmaRows][kDim / 8][4]) {
  using Tile = Tiling<kDim>;
  const int lane = static_cast<int>(threadIdx.x) & 31;
#pragma unroll
  for (int keys = 0; keys < kKeyTile / 16; ++keys) {
    uint32_t a[Tile::kMmaRows][4];
#pragma unroll
    for (int m = 0; m < Tile::kMmaRows; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* pair = &scores[m][2 * keys + i / 2][i % 2 * 2];
        a[m][i] = Pack<T>(pair[0], pair[1]);
      }
    }
#pragma unroll
    for (int step = 0; step < kDim / 16; ++step) {
      const int row_bytes = StripeWidth<kDim>(step * 16) * 2;
      uint32_t b[4];
      LoadMatrix4Transposed(b, v + StepOffset<kDim, kKeyTile>(step, lane & 15, lane >> 4) +
                                   static_cast<uint32_t>(keys * 16 * row_bytes));
#pragma unroll
      for (int m = 0; m < Tile::kMmaRows; ++m) {
        MmaM16N8K16<T>(out[m][2 * step], a[m], b[0], b[1]);
        MmaM16N8K16<T>(out[m][2 * step + 1], a[m], b[2], b[3]);
      }
    }
  }
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

template <int kMmaRows>
__device__ __forceinline__ void Mask(const WarpRows& rows, int first_key, int groups,
                                     const StaticShape& shape, TileScores<kMmaRows>& scores) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
#pragma unroll
  for (int m = 0; m < kMmaRows; ++m) {
#pragma unroll
    for (int n = 0; n < kKeyColumns; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int key = first_key + n * 8 + (lane & 3) * 2 + (i & 1);
        const int position = rows.first + m * 16 + (i >> 1) * 8 + (lane >> 2);
        const bool visible = key <= position && ((groups >> (n >> 1)) & 1) != 0 &&
                             (shape.window_tokens == 0 || key > position - shape.window_tokens ||
                              key < shape.sink_tokens);
        if (!visible) scores[m][n][i] = -INFINITY;
      }
    }
  }
}

// x -> cap * tanh(scale * x / cap), by tanh(y) = 1 - 2 / (1 + e^2y).
template <int kMmaRows>
__device__ __forceinline__ void CapScores(const AttentionParams& params,
                                          TileScores<kMmaRows>& scores) {
  const float inner = params.scale / params.softcap * 2.885390082f;  // 2 log2(e)
#pragma unroll
  for (int m = 0; m < kMmaRows; ++m) {
#pragma unroll
    for (int n = 0; n < kKeyColumns; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float e = Exp2(scores[m][n][i] * inner);
        scores[m][n][i] = params.softcap * (1.0f - __fdividef(2.0f, 1.0f + e));
      }
    }
  }
}

// Running softmax of the rows of a lane: row m * 16 + half * 8 + lane / 4. Maxima are of scores
// times the exponent scale. A row's four lanes agree on the maximum; each has the sum over its own
// columns.
inline constexpr float kNoMaximum = -1e30f;  // finite, so that differences of maxima are numbers
template <int kMmaRows>
struct Running final {
  float max[kMmaRows][2];
  float sum[kMmaRows][2];
};

// Scores become probabilities relative to the new maxima; `keep` is what older sums shrink by.
template <int kMmaRows>
__device__ __forceinline__ void Softmax(float exponent_scale, TileScores<kMmaRows>& scores,
                                        Running<kMmaRows>* running, float (&keep)[kMmaRows][2]) {
#pragma unroll
  for (int m = 0; m < kMmaRows; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float max = scores[m][0][2 * half];
#pragma unroll
      for (int n = 0; n < kKeyColumns; ++n) {
        max = fmaxf(max, fmaxf(scores[m][n][2 * half], scores[m][n][2 * half + 1]));
      }
      max = fmaxf(max, __shfl_xor_sync(~0u, max, 1));
      max = fmaxf(max, __shfl_xor_sync(~0u, max, 2));
      max = fmaxf(running->max[m][half], max * exponent_scale);
      keep[m][half] = Exp2(running->max[m][half] - max);
      running->max[m][half] = max;
      float even = 0.0f, odd = 0.0f;
#pragma unroll
      for (int n = 0; n < kKeyColumns; ++n) {
        float& low = scores[m][n][2 * half];
        float& high = scores[m][n][2 * half + 1];
        low = Exp2(fmaf(low, exponent_scale, -max));
        high = Exp2(fmaf(high, exponent_scale, -max));
        even += low;
        odd += high;
      }
      running->sum[m][half] = fmaf(running->sum[m][half], keep[m][half], even + odd);
    }
  }
}

// Skipped when no row of the warp has a new maximum: times 1 changes nothing.
template <int kMmaRows, int kTiles>
__device__ __forceinline__ void Rescale(const float (&keep)[kMmaRows][2],
                                        float (&out)[kMmaRows][kTiles][4]) {
  bool same = true;
#pragma unroll
  for (int m = 0; m < kMmaRows; ++m) same &= keep[m][0] == 1.0f && keep[m][1] == 1.0f;
  if (__all_sync(~0u, same)) return;
#pragma unroll
  for (int m = 0; m < kMmaRows; ++m) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) out[m][n][i] *= keep[m][i >> 1];
    }
  }
}

// Copies 64 keys or values of a tile of the plan into a slot. A page of 64 is as wide as the tile,
// so its stripes are copied as they are; of pages of 16, each gives a quarter of each stripe.
template <int kDim, bool kSinglePage>
__device__ __forceinline__ void CopyPages(const PrefillParams& p, const PrefillPlan& plan,
                                          int index, int kv_head, int64_t offset, uint32_t slot) {
  using Tile = Tiling<kDim>;
  constexpr int kPageTokens = kSinglePage ? kKeyTile : kGroupKeys;
  const auto thread = static_cast<int>(threadIdx.x);
#pragma unroll
  for (int stripe = 0; stripe < Tile::kStripes; ++stripe) {
    const int pieces = StripeWidth<kDim>(stripe * kStripeColumns) * kPageTokens / 8;  // 16 bytes
    const int pages = kKeyTile / kPageTokens;
#pragma unroll
    for (int at = 0; at < pages * pieces; at += Tile::kThreads) {
      const int piece = at + thread;
      if (at + Tile::kThreads > pages * pieces && piece >= pages * pieces) break;
      const int in_tile = kSinglePage ? 0 : pieces >= Tile::kThreads ? at / pieces : piece / pieces;
      const int page = plan.Page<kSinglePage>(index, in_tile);
      const std::byte* stripe_data = p.pool +
                                     (int64_t{max(page, 0)} * p.kv_heads + kv_head) * p.slab_bytes +
                                     offset + stripe * kStripeColumns * kPageTokens * 2;
      AsyncCopy16(slot + static_cast<uint32_t>(stripe * kStripeColumns * kKeyTile * 2 + piece * 16),
                  stripe_data + (piece - in_tile * pieces) * 16, kSinglePage || page >= 0);
    }
  }
}

template <int kDim>
__device__ __forceinline__ void CopyTile(const PrefillParams& p, const PrefillPlan& plan, int index,
                                         int kv_head, bool values, uint32_t slot) {
  const int64_t offset = values ? p.slab_bytes / 2 : 0;
  if (plan.single()) {
    CopyPages<kDim, true>(p, plan, index, kv_head, offset, slot);
  } else {
    CopyPages<kDim, false>(p, plan, index, kv_head, offset, slot);
  }
}

// Queries of the block; rows outside the chunk become zeros.
template <typename T, int kDim>
__device__ void CopyQueries(const PrefillParams& p, const T* q, int rows, uint32_t to) {
  using Tile = Tiling<kDim>;
  constexpr int kChunks = kDim / 8;
  for (int piece = static_cast<int>(threadIdx.x); piece < Tile::kRows * kChunks;
       piece += Tile::kThreads) {
    const int row = piece / kChunks;
    const int column = (piece - row * kChunks) * 8;
    const T* from = q + (row < rows ? row : 0) * p.q_row + column;
    AsyncCopy16(to + static_cast<uint32_t>(KvElement(row, column, Tile::kRows, kDim)) * 2, from,
                row < rows);
  }
}

// Divides by the sums and writes the warp's rows, through its own part of the memory of Q.
template <typename T, int kDim>
__device__ void Finish(const PrefillParams& p, int64_t first_row, int rows, int warp, int head,
                       const Running<Tiling<kDim>::kMmaRows>& running,
                       const float (&out)[Tiling<kDim>::kMmaRows][kDim / 8][4], T* stage) {
  using Tile = Tiling<kDim>;
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int warp_row = warp * Tile::kWarpRows;
#pragma unroll
  for (int m = 0; m < Tile::kMmaRows; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = warp_row + m * 16 + half * 8 + (lane >> 2);
      float sum = running.sum[m][half];
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      const float max = running.max[m][half];
      float factor = sum > 0.0f ? 1.0f / sum : 0.0f;
      if (p.params.sink_logits != nullptr && sum > 0.0f) {
        const float sink = p.params.sink_logits[head] * 1.442695041f;
        const float top = fmaxf(max, sink);
        factor = exp2f(max - top) / fmaf(sum, exp2f(max - top), exp2f(sink - top));
      }
      if (p.lse != nullptr && (lane & 3) == 0 && row < rows) {
        p.lse[(first_row + row) * p.lse_row + head] =
            sum > 0.0f ? (max + log2f(sum)) * 0.6931471806f : -INFINITY;
      }
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        const uint32_t pair =
            Pack<T>(out[m][n][2 * half] * factor, out[m][n][2 * half + 1] * factor);
        const int column = n * 8 + (lane & 3) * 2;
        *reinterpret_cast<uint32_t*>(stage + KvElement(row, column, Tile::kRows, kDim)) = pair;
      }
    }
  }
  __syncwarp();
  constexpr int kChunks = kDim / 8;
  T* to = static_cast<T*>(p.out) + first_row * p.out_row + int64_t{head} * kDim;
  for (int piece = lane; piece < Tile::kWarpRows * kChunks; piece += 32) {
    const int row = warp_row + piece / kChunks;
    const int column = piece % kChunks * 8;
    if (row >= rows) break;
    *reinterpret_cast<uint4*>(to + row * p.out_row + column) =
        *reinterpret_cast<const uint4*>(stage + KvElement(row, column, Tile::kRows, kDim));
  }
}

// What a block computes, from its indices: heads run fastest, and late rows first, since with a
// causal mask they have the most keys.
__device__ inline PlanRows RowsOfBlock(const PrefillParams& p, const ChunkTable::Entry& entry,
                                       int tile, int head) {
  PlanRows rows;
  const int query = tile * 128;
  rows.first_position = entry.chunk.first_position + query;
  rows.rows = min(128, entry.chunk.rows - query);
  rows.list_begin = p.lists.begins[entry.index];
  rows.list_end = p.lists.ends[entry.index];
  if (p.ranges.begins == nullptr) return rows;
  constexpr int kQueries = KeyRanges::kQueryTileTokens;
  const int64_t tiles = (entry.chunk.rows - 1) / kQueries + 1;
  const int64_t list = p.ranges.chunk_offsets[entry.index] + head * tiles + query / kQueries;
  for (int half = 0; half < 2 && half * kQueries < rows.rows; ++half) {
    rows.range_first[half] = p.ranges.begins[list + half];
    rows.range_end[half] = p.ranges.ends[list + half];
  }
  return rows;
}

template <typename T, int kDim>
__global__ void __launch_bounds__(Tiling<kDim>::kThreads, Tiling<kDim>::kBlocksPerSm)
    PrefillKernel(const __grid_constant__ PrefillParams p) {
  using Tile = Tiling<kDim>;
  extern __shared__ __align__(1024) std::byte shared[];
  const uint32_t q_at = SharedAddress(shared);
  const uint32_t ring = q_at + Tile::kQBytes;
  auto* storage =
      reinterpret_cast<PlanStorage*>(shared + Tile::kQBytes + Tile::kSlots * Tile::kSlotBytes);
  LetNextStart();
  WaitForPrevious();

  const int head = static_cast<int>(blockIdx.x);
  const int kv_head = head / p.group;
  const int at = p.table.tiles - 1 - static_cast<int>(blockIdx.y);
  const ChunkTable::Entry& entry = p.table.Find(at);
  const int tile = at - entry.first_tile;
  const int64_t first_row = int64_t{entry.chunk.first_row} + tile * Tile::kRows;
  const int rows = min(Tile::kRows, entry.chunk.rows - tile * Tile::kRows);

  PrefillPlan plan(p.lists, p.ranges, p.page_tokens, storage);
  CopyQueries<T, kDim>(p, static_cast<const T*>(p.q) + first_row * p.q_row + int64_t{head} * kDim,
                       rows, q_at);
  AsyncCopyCommit();
  if (threadIdx.x == 0) plan.Begin(RowsOfBlock(p, entry, tile, head), p.params.shape);
  __syncthreads();

  const int warp = static_cast<int>(threadIdx.x) >> 5;
  const int warp_row = warp * Tile::kWarpRows;
  WarpRows warp_rows;
  warp_rows.first = entry.chunk.first_position + tile * Tile::kRows + warp_row;
  warp_rows.last = warp_rows.first + min(Tile::kWarpRows, rows - warp_row) - 1;
  if (rows <= warp_row) warp_rows.last = -1;
  const int group_shift = warp_row / KeyRanges::kQueryTileTokens * kGroups;

  float out[Tile::kMmaRows][kDim / 8][4] = {};
  Running<Tile::kMmaRows> running;
#pragma unroll
  for (int m = 0; m < Tile::kMmaRows; ++m) {
    for (int half = 0; half < 2; ++half) {
      running.max[m][half] = kNoMaximum;
      running.sum[m][half] = 0.0f;
    }
  }

  while (true) {
    const int tiles = plan.Next();
    if (tiles == 0) break;
    uint32_t fill = ring;  // slot of the next copy
    uint32_t take = ring;  // slot of the next use
    const auto advance = [&](uint32_t& slot) {
      slot += Tile::kSlotBytes;
      if (slot == ring + Tile::kSlots * Tile::kSlotBytes) slot = ring;
    };
    const auto copy = [&](int index, bool values) {
      if (index < tiles) CopyTile<kDim>(p, plan, index, kv_head, values, fill);
      AsyncCopyCommit();
      advance(fill);
    };
    copy(0, false);
    copy(0, true);
    for (int index = 0; index < tiles; ++index) {
      const int meta = plan.Meta(index);
      const int first_key = (meta >> 8) * kKeyTile;
      const int groups = (meta >> group_shift) & 15;
      const TileKind kind = KindOf(warp_rows, first_key, groups, p.params.shape);
      TileScores<Tile::kMmaRows> scores;
      if constexpr (Tile::kSlots == 4) {
        AsyncCopyWait<0>();
        __syncthreads();
        copy(index + 1, false);
        copy(index + 1, true);
      } else {
        AsyncCopyWait<1>();
        __syncthreads();  // the keys are there, and everybody is done with the slot to fill
        copy(index + 1, false);
      }
      if (kind != TileKind::kSkip) {
        Scores<T, kDim>(q_at, warp_row, take, scores);
        if (p.params.softcap > 0.0f) CapScores(p.params, scores);
        if (kind == TileKind::kMasked) {
          Mask(warp_rows, first_key, groups, p.params.shape, scores);
        }
        float keep[Tile::kMmaRows][2];
        Softmax(p.exponent_scale, scores, &running, keep);
        Rescale(keep, out);
      }
      advance(take);
      if constexpr (Tile::kSlots != 4) {
        AsyncCopyWait<1>();
        __syncthreads();
        copy(index + 1, true);
      }
      if (kind != TileKind::kSkip) AddValues<T, kDim>(take, scores, out);
      advance(take);
    }
  }
  AsyncCopyWait<0>();
  __syncthreads();
  Finish<T, kDim>(p, first_row, rows, warp, head, running, out, reinterpret_cast<T*>(shared));
}

}  // namespace lacuna::kernels::cuda::sm80
