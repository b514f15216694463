#include "kernels/cpu/range_pooled.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "kernels/cpu/attention_tile.h"

namespace lacuna::kernels::cpu {
namespace {

constexpr int64_t kMeanTaskBlocks = 16;

std::vector<int32_t> Channels(const RangeSlice& slice, BlockMeans::Band band) {
  const auto dim = static_cast<int32_t>(slice.args.pool.head_dim);
  std::vector<int32_t> all(static_cast<size_t>(dim));
  std::iota(all.begin(), all.end(), 0);
  if (band == BlockMeans::Band::kAll) return all;
  const bool low = band == BlockMeans::Band::kLow;
  const int32_t half = dim / 2;
  const int32_t count =
      std::clamp((low ? slice.dials().low_channels : slice.dials().high_channels) / 2, 1, half);
  std::vector<int32_t> channels;
  for (const int32_t begin : {low ? half - count : 0, low ? dim - count : half}) {
    channels.insert(channels.end(), all.begin() + begin, all.begin() + begin + count);
  }
  return channels;
}

}  // namespace

Status AntidiagonalMap::Run(const RangeSlice& slice, RangeProduct& product, BlockScores* scores) {
  const int64_t stride = slice.args.path.stride_tokens;
  const int64_t first_row = slice.rows.first / stride;
  const int64_t rows = CeilDiv(slice.rows.end, stride) - first_row;
  std::vector<QueryPanel> panels;
  std::vector<int64_t> head_panels(static_cast<size_t>(slice.q_heads()));
  for (int64_t head = 0; head < slice.q_heads(); ++head) {
    head_panels[static_cast<size_t>(head)] = static_cast<int64_t>(panels.size());
    if (slice.modes[static_cast<size_t>(head)] != HeadMode::kPooled) continue;
    for (int64_t row = 0; row < rows; row += kFoldColumns) {
      panels.push_back({head, first_row + row,
                        static_cast<int32_t>(std::min<int64_t>(kFoldColumns, rows - row)), 0});
    }
  }
  const auto count = static_cast<int64_t>(panels.size());
  LACUNA_RETURN_IF_ERROR(product.Prepare(slice, stride, std::move(panels)));
  sum_rows_ = slice.block() / stride;
  tiles_ = product.tiles();
  tile_blocks_ = kFoldRows / sum_rows_;
  blocks_ = tiles_ * tile_blocks_;
  LACUNA_RETURN_IF_ERROR(max_.Fit(count * tiles_ * kFoldColumns));
  LACUNA_RETURN_IF_ERROR(sums_.Fit(count * blocks_ * kFoldColumns));
  LACUNA_RETURN_IF_ERROR(scores->Fit(slice));
  const RangeFolds& folds = RangeFoldsOf(slice.isa);
  product.ForTiles(
      slice, slice.args.scale / static_cast<float>(stride), [&](const RangeProduct::Tile& tile) {
        const int64_t at = tile.panel * tiles_ + tile.index;
        folds.sum(tile.fold, static_cast<int32_t>(sum_rows_), max_.data() + at * kFoldColumns,
                  sums_.data() + at * tile_blocks_ * kFoldColumns);
      });
  slice.pool.ParallelFor(slice.q_heads() * slice.query_blocks(), [&](int64_t task, int) {
    const int64_t head = task / slice.query_blocks();
    if (slice.modes[static_cast<size_t>(head)] != HeadMode::kPooled) return;
    Combine(slice, product, head_panels[static_cast<size_t>(head)], task % slice.query_blocks(),
            scores->Row(head, task % slice.query_blocks()));
  });
  return OkStatus();
}

// Each tile has its own maximum: its sums count by 2^(maximum - that of the row) / the row's sum.
void AntidiagonalMap::Combine(const RangeSlice& slice, const RangeProduct& product,
                              int64_t first_panel, int64_t query_block, float* row) const {
  const int64_t stride = slice.args.path.stride_tokens;
  const Span positions = slice.BlockRows(query_block);
  const int64_t key_blocks = slice.first_block() + query_block + 1;
  std::fill_n(row, slice.key_blocks(), 0.0f);
  const int64_t slice_row = slice.rows.first / stride;
  const int64_t end = CeilDiv(positions.end, stride) - slice_row;
  for (int64_t at = positions.first / stride - slice_row; at < end;) {
    const int64_t panel = first_panel + at / kFoldColumns;
    const int64_t seen = product.SeenRows(product.panels()[static_cast<size_t>(panel)]);
    const int64_t tiles = CeilDiv(seen, kFoldRows);
    const int64_t begin = at % kFoldColumns;
    const int64_t stop = std::min<int64_t>(begin + end - at, kFoldColumns);
    at += stop - begin;
    float* max = max_.data() + panel * tiles_ * kFoldColumns;
    const float* sums = sums_.data() + panel * blocks_ * kFoldColumns;
    const auto tile_end = [&](int64_t tile) {
      return std::min((tile + 1) * tile_blocks_, CeilDiv(seen, sum_rows_));
    };
    for (int64_t column = begin; column < stop; ++column) {
      float top = kNoLogit;
      for (int64_t tile = 0; tile < tiles; ++tile) {
        top = std::max(top, max[tile * kFoldColumns + column]);
      }
      float total = 0.0f;
      for (int64_t tile = 0; tile < tiles; ++tile) {
        float& weight = max[tile * kFoldColumns + column];
        weight = std::exp2(weight - top);
        float sum = 0.0f;
        for (int64_t block = tile * tile_blocks_; block < tile_end(tile); ++block) {
          sum += sums[block * kFoldColumns + column];
        }
        total += weight * sum;
      }
      for (int64_t tile = 0; tile < tiles; ++tile) max[tile * kFoldColumns + column] /= total;
    }
    for (int64_t block = 0; block < key_blocks; ++block) {
      const float* weight = max + block / tile_blocks_ * kFoldColumns;
      float sum = row[block];
      for (int64_t column = begin; column < stop; ++column) {
        sum += weight[column] * sums[block * kFoldColumns + column];
      }
      row[block] = sum;
    }
  }
}

void LoadQuery(const RangeSlice& slice, int64_t position, int64_t q_head, float* to) {
  const std::byte* from = slice.Query(position, q_head);
  const int64_t dim = slice.args.pool.head_dim;
  if (slice.args.q.dtype() == DType::kF32) {
    std::memcpy(to, from, static_cast<size_t>(4 * dim));
    return;
  }
  for (int64_t i = 0; i < dim; ++i) {
    BF16 value;
    std::memcpy(&value, from + 2 * i, sizeof(value));
    to[i] = ToFloat(value);
  }
}

Status BlockMeans::Prepare(const RangeSlice& slice) {
  head_dim_ = slice.args.pool.head_dim;
  key_blocks_ = slice.key_blocks();
  query_blocks_ = slice.query_blocks();
  const int64_t kv_heads = slice.args.pool.kv_heads;
  LACUNA_RETURN_IF_ERROR(keys_.Fit(kv_heads * head_dim_ * key_blocks_));
  LACUNA_RETURN_IF_ERROR(queries_.Fit(slice.q_heads() * query_blocks_ * head_dim_));
  const KeySource source = slice.Keys();
  const int64_t runs = CeilDiv(key_blocks_, kMeanTaskBlocks);
  slice.pool.ParallelFor(kv_heads * runs, [&](int64_t task, int) {
    const int64_t first = task % runs * kMeanTaskBlocks;
    MeanKeys(source, task / runs, slice.block(), first,
             std::min(first + kMeanTaskBlocks, key_blocks_), key_blocks_,
             keys_.data() + task / runs * head_dim_ * key_blocks_);
  });
  slice.pool.ParallelFor(slice.q_heads() * query_blocks_, [&](int64_t task, int) {
    float* mean = queries_.data() + task * head_dim_;
    const Span rows = slice.BlockRows(task % query_blocks_);
    float query[kHeadDimMax];
    std::fill_n(mean, head_dim_, 0.0f);
    for (int64_t position = rows.first; position < rows.end; ++position) {
      LoadQuery(slice, position, task / query_blocks_, query);
      for (int64_t i = 0; i < head_dim_; ++i) mean[i] += query[i];
    }
    for (int64_t i = 0; i < head_dim_; ++i) mean[i] /= static_cast<float>(rows.tokens());
  });
  return OkStatus();
}

void BlockMeans::Row(int64_t kv_head, const float* query, std::span<const int32_t> channels,
                     float scale, int64_t blocks, float* out) const {
  const float* keys = keys_.data() + kv_head * head_dim_ * key_blocks_;
  std::fill_n(out, blocks, 0.0f);
  for (const int32_t channel : channels) {
    const float* key = keys + channel * key_blocks_;
    const float factor = query[channel] * scale;
    for (int64_t block = 0; block < blocks; ++block) out[block] += factor * key[block];
  }
  const float top = *std::max_element(out, out + blocks);
  float sum = 0.0f;
  for (int64_t block = 0; block < blocks; ++block) {
    out[block] = std::exp(out[block] - top);
    sum += out[block];
  }
  for (int64_t block = 0; block < blocks; ++block) out[block] /= sum;
}

double BlockMeans::Energy(const RangeSlice& slice, int64_t q_head, int64_t cell,
                          std::span<const int32_t> channels) const {
  const Span rows = slice.CellRows(cell);
  const int64_t first = rows.first / slice.block() - slice.first_block();
  const int64_t end = CeilDiv(rows.end, slice.block());
  double queries = 0, keys = 0;
  for (int64_t block = first; block < end - slice.first_block(); ++block) {
    const float* mean = Query(q_head, block);
    for (const int32_t channel : channels) queries += double{mean[channel]} * mean[channel];
  }
  const float* key = keys_.data() + q_head / slice.group() * head_dim_ * key_blocks_;
  for (const int32_t channel : channels) {
    for (int64_t block = 0; block < end; ++block) {
      const double mean = double{key[channel * key_blocks_ + block]};
      keys += mean * mean;
    }
  }
  const auto dims = static_cast<double>(channels.size());
  const auto query_count = static_cast<double>(end - slice.first_block() - first);
  return std::sqrt(queries / (dims * query_count)) *
         std::sqrt(keys / (dims * static_cast<double>(end)));
}

// Prism's temperature is sqrt(band / head_dim) * energy(band) / energy(all channels), and its
// logits are q . k / (sqrt(band) * temperature).
Status BlockMeans::Map(const RangeSlice& slice, Band band, BlockScores* scores) const {
  LACUNA_RETURN_IF_ERROR(scores->Fit(slice));
  const std::vector<int32_t> channels = Channels(slice, band);
  const std::vector<int32_t> all = Channels(slice, Band::kAll);
  slice.pool.ParallelFor(slice.q_heads() * slice.cells(), [&](int64_t task, int) {
    const int64_t head = task / slice.cells(), cell = task % slice.cells();
    const HeadMode mode = slice.modes[static_cast<size_t>(head)];
    if (mode != HeadMode::kPooled && mode != HeadMode::kProbe) return;
    double scale = double{slice.args.scale};
    if (band != Band::kAll) {
      const double of_band = Energy(slice, head, cell, channels);
      const double ratio = of_band > 0 ? of_band / Energy(slice, head, cell, all) : 1;
      scale *= static_cast<double>(head_dim_) / (static_cast<double>(channels.size()) * ratio);
    }
    const Span rows = slice.CellRows(cell);
    const int64_t end = CeilDiv(rows.end, slice.block()) - slice.first_block();
    for (int64_t block = rows.first / slice.block() - slice.first_block(); block < end; ++block) {
      float* row = scores->Row(head, block);
      const int64_t blocks = slice.first_block() + block + 1;
      Row(head / slice.group(), Query(head, block), channels, static_cast<float>(scale), blocks,
          row);
      std::fill(row + blocks, row + slice.key_blocks(), 0.0f);
    }
  });
  return OkStatus();
}

float BlockMeans::Divergence(const RangeSlice& slice, int64_t q_head, const float* query,
                             std::span<const float> probed) const {
  std::vector<float> pooled(probed.size());
  const std::vector<int32_t> all = Channels(slice, Band::kAll);
  Row(q_head / slice.group(), query, all, slice.args.scale, static_cast<int64_t>(probed.size()),
      pooled.data());
  double divergence = 0;
  for (size_t i = 0; i < probed.size(); ++i) {
    const double a = double{pooled[i]}, b = double{probed[i]}, middle = (a + b) / 2;
    if (a > 0) divergence += a * std::log(a / middle) / 2;
    if (b > 0) divergence += b * std::log(b / middle) / 2;
  }
  return static_cast<float>(std::sqrt(std::max(divergence, 0.0)));
}

}  // namespace lacuna::kernels::cpu
