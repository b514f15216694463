// Block maps of pooled queries and keys for SelectRanges. Memory is kept from call to call; engine
// thread, work over the pool.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/core/status.h"
#include "kernels/cpu/range_product.h"
#include "kernels/cpu/range_slice.h"

namespace lacuna::kernels::cpu {

// Sums of antidiagonals, softmax over the strides that a row of strides sees, added up to blocks
// (XAttention).
class AntidiagonalMap final {
 public:
  Status Run(const RangeSlice& slice, RangeProduct& product, BlockScores* scores);

 private:
  void Combine(const RangeSlice& slice, const RangeProduct& product, int64_t first_panel,
               int64_t query_block, float* row) const;

  AlignedArray<float> max_;   // [panels][tiles][kFoldColumns]; weights of tiles in the end
  AlignedArray<float> sums_;  // [panels][blocks of whole tiles][kFoldColumns]
  int64_t tiles_ = 0, tile_blocks_ = 0, blocks_ = 0, sum_rows_ = 0;
};

// Means of the rows of query blocks and of the keys of key blocks.
class BlockMeans final {
 public:
  Status Prepare(const RangeSlice& slice);

  const float* Query(int64_t q_head, int64_t query_block) const {
    return queries_.data() + (q_head * query_blocks_ + query_block) * head_dim_;
  }
  // out[b] = softmax over b < blocks of scale * (query . mean key of b), over `channels`.
  void Row(int64_t kv_head, const float* query, std::span<const int32_t> channels, float scale,
           int64_t blocks, float* out) const;

  // The whole map, or that of one band of rotary frequencies, whose temperature makes up for the
  // energy that pooling takes from it (Prism, Wang et al. 2026). The low band's channels are the
  // last of each half, the high band's the first.
  enum class Band { kAll, kLow, kHigh };
  Status Map(const RangeSlice& slice, Band band, BlockScores* scores) const;

  // Square root of the Jensen-Shannon divergence, natural logarithm, between `probed` [blocks] and
  // the row of `query` (FlexPrefill, Lai et al. 2025).
  float Divergence(const RangeSlice& slice, int64_t q_head, const float* query,
                   std::span<const float> probed) const;

 private:
  // Of a head's queries in `cell` and of all keys up to its end: root mean square over `channels`.
  double Energy(const RangeSlice& slice, int64_t q_head, int64_t cell,
                std::span<const int32_t> channels) const;

  AlignedArray<float> keys_;     // [kv_heads][head_dim][key_blocks]
  AlignedArray<float> queries_;  // [q_heads][query_blocks][head_dim]
  int64_t head_dim_ = 0, key_blocks_ = 0, query_blocks_ = 0;
};

// One q row as floats.
void LoadQuery(const RangeSlice& slice, int64_t position, int64_t q_head, float* to);

}  // namespace lacuna::kernels::cpu
