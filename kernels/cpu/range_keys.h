// Reads the keys of one sequence out of KV slabs (attention.h has their layout) for SelectRanges.
// Pure functions of the pool; any thread.
//
// A unit is what a slab keeps together of one key: a pair of bf16 channels or one f32 channel, four
// bytes in either case. Keys whose page is not listed read as zeros.
#pragma once

#include <cstdint>

#include "kernels/ops/kv_pool.h"
#include "kernels/ops/selection.h"

namespace lacuna::kernels::cpu {

struct KeySource final {
  const KvPool& pool;
  const PageLists& lists;
  int64_t list_begin, list_end;  // entries of `lists`
  int64_t tokens;                // keys at and after this position read as zeros

  int64_t units() const { return pool.head_dim * static_cast<int64_t>(DTypeBytes(pool.dtype)) / 4; }
  // Where token's page keeps unit 0 of it, or null; units are page_tokens words apart.
  const uint32_t* Find(int64_t token, int64_t kv_head) const;
};

// Rows of `stride` keys: rows[(t / stride)][unit][t % stride] for t in [first, end), both multiples
// of the stride.
void PackKeys(const KeySource& source, int64_t kv_head, int64_t first, int64_t end, int64_t stride,
              uint32_t* rows);

// means[channel * blocks + block], of the keys of each block in [first, end) that exist. The same
// bits for every page size.
void MeanKeys(const KeySource& source, int64_t kv_head, int64_t block_tokens, int64_t first,
              int64_t end, int64_t blocks, float* means);

}  // namespace lacuna::kernels::cpu
