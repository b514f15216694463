// The seam between SelectKeys (select_keys.cc) and its arithmetic, one translation unit per
// instruction set. Plain data and function pointers only, as attention_tile.h says. Any thread.
#pragma once

#include <cstddef>
#include <cstdint>

namespace lacuna::kernels::cpu {

// Scores of the entries of some pages of one kv head against the queries of its heads:
//   scores[h * stride + e] = scale * sum over vectors v of q[v, h] . vector(e, v)
// Entries of the last pages that hold nothing yet are scored like the others. With `best` only the
// best score of each page is kept, over its entries and all heads.
struct ScoreJob final {
  const std::byte* const* slabs;  // [pages]
  int64_t pages;
  // MetadataLayout; of keys: entries = page_tokens, one vector of head_dim channels.
  int32_t entries, vectors, width, bits;
  int64_t row_bytes, vector_bytes, scales_at, zeros_at;
  int64_t read_bytes;  // of a slab, to fetch ahead; 0: keys, which the processor sees coming
  int32_t heads;
  const float* q;  // [vectors, heads, width]
  // [vectors, heads, width / 2] of q in bf16, channel by channel, where that loses nothing; or
  // null.
  const uint32_t* q_pairs;
  const float* q_sums;  // [vectors, heads]: sums over the channels; null: no scales
  float scale;
  float* scores;   // room for a multiple of 4 entries
  int64_t stride;  // from head to head
  float* best;     // [pages] instead of scores, or null; not with score_vectors
  int64_t count;   // with `best`: entries that hold something
};

// out[e] = max, mean or sum over rows r of f(rows[r][e] - shifts[r]) - offsets[r]; f is exp or
// nothing.
struct ReduceJob final {
  enum Kind : int32_t { kMax, kMean, kSum };
  const float* const* rows;
  const float* shifts;
  const float* offsets;
  int32_t count;
  Kind kind;
  bool exponential;
  int64_t entries;
  float* out;
};

struct SelectKernels final {
  void (*score_vectors)(const ScoreJob& job);  // each vector in one piece
  void (*score_lanes)(const ScoreJob& job);    // a row per channel; bits 32: keys in f32
  void (*score_pairs)(const ScoreJob& job);    // keys in bf16, pairs of channels interleaved
  // *max of values, *sum of exp(value - *max); count >= 1.
  void (*max_sum)(const float* values, int64_t count, float* max, float* sum);
  void (*reduce)(const ReduceJob& job);
};

extern const SelectKernels kSelectScalar, kSelectAvx2, kSelectAvx512, kSelectAvx512Bf16;

}  // namespace lacuna::kernels::cpu
