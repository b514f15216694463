// ChunkTable: prompt chunks cut into tiles of query rows, passed to prefill kernels by value.
//
// A kernel parameter, so that host memory is free for reuse as soon as the launch has returned. A
// call with more chunks than one table holds is several launches.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels/ops/attention.h"

namespace lacuna::kernels::cuda {

struct ChunkTable final {
  static constexpr int kChunksMax = 64;
  struct Entry final {
    PrefillChunk chunk;
    int32_t index = 0;       // of the chunk in AttendPrefillArgs
    int32_t first_tile = 0;  // tiles of the entries before
  };
  Entry entries[kChunksMax];
  int32_t count = 0;
  int32_t tiles = 0;

  // Takes non-empty chunks from `next` on until it is full; returns the first one not taken.
  size_t Fill(std::span<const PrefillChunk> chunks, size_t next, int tile_rows) {
    count = 0;
    tiles = 0;
    for (; next < chunks.size() && count < kChunksMax; ++next) {
      if (chunks[next].rows == 0) continue;
      entries[count++] = {chunks[next], static_cast<int32_t>(next), tiles};
      tiles += (chunks[next].rows - 1) / tile_rows + 1;
    }
    return next;
  }

#ifdef __CUDACC__
  __device__ const Entry& Find(int tile) const {
    int at = count - 1;
    while (entries[at].first_tile > tile) --at;
    return entries[at];
  }
#endif
};

}  // namespace lacuna::kernels::cuda
