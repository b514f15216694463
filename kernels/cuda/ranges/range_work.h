// RangeWork: what the kernels of SelectRanges know of the rows that they work on together, and
// where their scratch lies. Passed to them by value; select_ranges.cc fills it in.
//
// Words: a chunk's query heads go in slices (a few kv heads, or some members of one's group), the
// rows of a chunk in slices of whole cells (PrefillPath::cell_tokens). Heads are counted within the
// slice: head = kv head in the slice * members + member. Query blocks and cells of what is chosen
// are counted from the chunk's first, those of scores from the slice's first.
//
// The product (range_scores.cu) is of packed rows. With stride S, row R stands for the positions
// [R * S, (R + 1) * S) in reverse and key row J for [J * S, ...) in order, so that their product
// sums an antidiagonal of an S x S tile of QK^T (XAttention, Xu et al. 2025). Of a probe S is 1 and
// the rows are those of ProbePosition. A row sees the key rows up to visible[row].
//
// Where single columns and distances are chosen (spreads()), the runs of a probe are padded to
// pieces of 64 rows, and packed rows and keys stand in the orders of PieceRow and ChunkKey.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels/cuda/ranges/range_order.h"
#include "kernels/ops/range_limits.h"
#include "kernels/ops/select_ranges.h"

namespace lacuna::kernels::cuda {

inline constexpr int kRangeTileRows = 128;      // rows and key rows of a packed tile
inline constexpr int kRangeTileColumns = 64;    // its inner elements
inline constexpr int kRangeStripTokens = 2048;  // keys whose diagonals one block sums
// Distances between a strip and the rows of a piece: entry i is distance
// piece's first position - strip's first key - (kRangeStripTokens - 1) + i.
inline constexpr int kRangePartials = kRangeStripTokens + kRangePieceRows;

// Below every logit; finite, so that a difference of two is 0 and not NaN. The lse of no row.
inline constexpr float kNoLogit = -1e30f, kNoRow = 1e30f;

struct RangeProduct final {
  int32_t stride = 1;
  int32_t steps = 0;      // of kRangeTileColumns inner elements, the last padded with zeros
  int32_t rows = 0;       // of one head
  int32_t row_tiles = 0;  // of the members of one kv head, whose rows follow each other
  int32_t key_tiles = 0;  // even
  int32_t first_row = 0;  // antidiagonal: R of row 0
  int32_t runs = 1;       // of a cell's probe
  int32_t run_rows = 0;   // kept free for one run
  int32_t sum_shift = 0;  // log2 of the key rows of a block
};

struct RangeWork final {
  const void* q = nullptr;
  int64_t q_row = 0, q_head = 0;  // strides, in elements
  bool q_aligned = false;         // to 16 bytes, all its rows and heads
  const std::byte* pool = nullptr;
  int64_t slab_bytes = 0;
  int32_t kv_heads = 0, head_dim = 0, page_tokens = 0;
  PageLists lists;
  int64_t chunk_index = 0;
  PrefillPath path;
  PrefillDials dials;
  const PrefillHead* heads = nullptr;
  const StaticShape* shapes = nullptr;  // of the chunk: [kv_heads], or null
  float scale = 1.0f;
  float logit_factor = 1.0f;  // makes logits in units of log2 of the product
  PrefillChunk chunk;
  int32_t dense_from = 0;  // first position whose query attends densely
  int32_t keys = 0;        // keys at and after this position read as zeros
  RangeArrays out;
  RangeStats* stats = nullptr;  // of the chunk: [q_heads], or null

  int32_t group = 1;                                     // query heads of a kv head
  int32_t first_kv = 0, kvs = 0;                         // of the slice
  int32_t first_member = 0, members = 0;                 // of each group
  int32_t first = 0, end = 0;                            // positions of the slice's rows
  int32_t blocks = 0, cells = 0;                         // that the slice touches
  int32_t chunk_blocks = 0, chunk_cells = 0;             // that the estimated rows touch
  int32_t key_blocks = 0;                                // up to `keys`
  int32_t unit = 1, unit_words = 0, block_words = 0;     // tokens of a unit; words of marks
  int32_t sums_stride = 0, keys_stride = 0, strips = 0;  // of a row of sums; of keys; of partials
  RangeProduct product;

  // Chosen, for the whole chunk.
  uint32_t* kept = nullptr;       // [heads][chunk_blocks][block_words]
  uint32_t* columns = nullptr;    // [heads][chunk_cells][unit_words]
  uint32_t* distances = nullptr;  // [heads][chunk_cells][unit_words]
  int32_t* reads_map = nullptr;   // [heads][chunk_cells]: the tiles read the rows of `kept` too
  // Of a slice of heads.
  void* packed_keys = nullptr;  // [kvs][key_tiles][steps] tiles
  float* mean_keys = nullptr;   // [kvs][head_dim][key_blocks]
  // Of a slice of rows.
  void* packed_queries = nullptr;  // [kvs][row_tiles][steps] tiles
  int32_t* visible = nullptr;      // [rows]; -1: no such row
  float2* tile_sums = nullptr;     // [heads][rows][key_tiles]: maximum, sum of 2^(logit - maximum)
  float* block_sums = nullptr;     // [heads][rows][sums_stride], against the tile's maximum
  float* scores = nullptr;         // [maps][heads][blocks][key_blocks]
  float* mean_queries = nullptr;   // [heads][blocks][head_dim]
  float* lse = nullptr;            // [heads][rows], log2
  // Of spreads(), for each piece of a head's rows.
  float* partials = nullptr;     // [heads][pieces][strips][kRangePartials]
  float* column_sums = nullptr;  // [heads][pieces][keys_stride]
  // Of other probes. A row at position p splits each block of keys behind its key p % block: what
  // is up to there has the distance block p / block - key block, the rest one less.
  float2* part_sums = nullptr;  // [heads][rows][sums_stride], against the tile's maximum
  float* unit_sums = nullptr;   // [2][heads][cells][key_blocks]: columns, distances
  float* pooled = nullptr;      // [heads][cells][key_blocks]

  __host__ __device__ int32_t head_count() const { return kvs * members; }
  __host__ __device__ int32_t QHead(int head) const {
    return (first_kv + head / members) * group + first_member + head % members;
  }
  __host__ __device__ int32_t first_block() const { return first / path.block_tokens; }
  __host__ __device__ int32_t first_cell() const { return first / path.cell_tokens; }
  // Of the slice's first block and cell, counted from the chunk's.
  __host__ __device__ int32_t BlockOffset() const {
    return first_block() - chunk.first_position / path.block_tokens;
  }
  __host__ __device__ int32_t CellOffset() const {
    return first_cell() - chunk.first_position / path.cell_tokens;
  }
  __host__ __device__ bool bands() const {
    return path.pool == PrefillPool::kBands && path.estimate == EstimateKind::kPooled;
  }
  __host__ __device__ int32_t pieces() const { return product.rows / kRangePieceRows; }
  __host__ __device__ int32_t cell_pieces() const {
    return product.runs * product.run_rows / kRangePieceRows;
  }
  // A probe of which single columns and distances are chosen.
  __host__ __device__ bool spreads() const { return unit == 1 && !antidiagonal(); }
  // What the product is of: else of probes.
  __host__ __device__ bool antidiagonal() const {
    return path.pool == PrefillPool::kAntidiagonal && path.estimate == EstimateKind::kPooled;
  }
};

// Positions [first, end).
struct RangeSpan final {
  int32_t first = 0, end = 0;
  __host__ __device__ int32_t tokens() const { return end - first; }
};

#ifdef __CUDACC__
// The slice's rows of its block `index`, of its cell `index`.
__device__ inline RangeSpan UnitRows(const RangeWork& work, int index, int size) {
  const int begin = (work.first / size + index) * size;
  return {max(begin, work.first), min(begin + size, work.end)};
}
__device__ inline RangeSpan BlockRows(const RangeWork& work, int index) {
  return UnitRows(work, index, work.path.block_tokens);
}
__device__ inline RangeSpan CellRows(const RangeWork& work, int index) {
  return UnitRows(work, index, work.path.cell_tokens);
}

// Newest tokens that a query at `position` sees in any case.
__device__ inline int64_t LocalTokens(const PrefillDials& dials, int position) {
  const auto share = static_cast<int64_t>(dials.local_fraction * static_cast<double>(position));
  return std::max<int64_t>(dials.local_tokens, share);
}
// The oldest of them over rows [first, ...): later rows start no earlier.
__device__ inline int64_t LocalBegin(const PrefillDials& dials, int first) {
  return std::max<int64_t>(first - LocalTokens(dials, first) + 1, 0);
}

__device__ inline HeadMode ModeOf(const RangeWork& work, int q_head) {
  const bool has_window =
      work.shapes != nullptr && work.shapes[q_head / work.group].window_tokens > 0;
  return kernels::ModeOf(work.path, work.heads[q_head].pattern, has_window);
}
#endif

}  // namespace lacuna::kernels::cuda
