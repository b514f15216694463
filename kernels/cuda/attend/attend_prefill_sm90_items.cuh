// Work items of the Hopper prefill kernel (sm_90a).
//
// An item has two halves of up to 64 query rows, one per consumer warpgroup: consecutive query
// tiles of one head, or, for chunks of at most 64 rows, one tile of two heads that share a kv head.
#pragma once

#include <cstdint>

#include "kernels/cuda/attend/attend_prefill_sm90.h"

namespace lacuna::kernels::cuda {

inline constexpr int kHalfRows = KeyRanges::kQueryTileTokens;

// One half of an item, as the consumers read it. A negative first_row ends the kernel.
struct alignas(16) HalfItem final {
  int32_t first_row = 0;
  int32_t rows = 0;
  int32_t first_position = 0;
  int32_t head = 0;
};

// The item `index`, seen by `half`; also the chunk, the kv head and the query tile.
struct ItemPlace final {
  HalfItem half;
  int32_t chunk = 0;
  int32_t kv_head = 0;
  int32_t query_tile = 0;  // of 64 rows
  int32_t query_tiles = 0;
};

__host__ __device__ inline bool PairsHeads(const PrefillChunk& chunk, int group) {
  return chunk.rows <= kHalfRows && group % 2 == 0;
}

__device__ inline ItemPlace FindItem(const PrefillParams& params, int index, int half) {
  const int per_section = params.section_heads * params.items_per_head;
  const int section = index / per_section;
  int rest = index - section * per_section;
  int at = params.chunks - 1;
  while (params.entries[at].first_item * params.section_heads > rest) --at;
  const PrefillChunkEntry& entry = params.entries[at];
  rest -= entry.first_item * params.section_heads;
  const bool pairs = PairsHeads(entry.chunk, params.group);
  const int per_kv_head = pairs ? params.group / 2 : params.group;
  const int per_tile = params.section_heads * per_kv_head;
  const int blocks = (entry.chunk.rows + 2 * kHalfRows - 1) / (2 * kHalfRows);
  const int block = blocks - 1 - rest / per_tile;
  rest %= per_tile;
  ItemPlace place;
  place.chunk = entry.index;
  place.kv_head = section * params.section_heads + rest / per_kv_head;
  const int in_group = rest % per_kv_head;
  place.half.head = place.kv_head * params.group + (pairs ? 2 * in_group + half : in_group);
  place.query_tile = pairs ? 0 : 2 * block + half;
  place.query_tiles = (entry.chunk.rows + kHalfRows - 1) / kHalfRows;
  const int offset = place.query_tile * kHalfRows;
  place.half.rows = max(0, min(kHalfRows, entry.chunk.rows - offset));
  place.half.first_row = entry.chunk.first_row + offset;
  place.half.first_position = entry.chunk.first_position + offset;
  return place;
}

// Which keys the queries of an item may see. Read anew where it is needed: the walker has no
// registers to keep it.
__device__ inline StaticShape ShapeOf(const PrefillParams& params, int chunk, int kv_head) {
  return params.shapes == nullptr ? params.shape : params.shapes[chunk * params.kv_heads + kv_head];
}

}  // namespace lacuna::kernels::cuda
