// RangeProduct: logits of compressed queries against compressed keys, as tiles for the folds.
// Memory is kept from call to call; engine thread, work over the pool.
//
// With stride S, query row R stands for the positions [R * S, (R + 1) * S) in reverse and key row J
// for [J * S, ...) in order, so that their product sums the antidiagonal of an S x S tile of QK^T
// (XAttention, Xu et al. 2025); with S = 1 it is QK^T. Row R sees the key rows J <= R.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/core/status.h"
#include "kernels/cpu/matmul_kernels.h"
#include "kernels/cpu/range_fold.h"
#include "kernels/cpu/range_slice.h"

namespace lacuna::kernels::cpu {

// Up to kFoldColumns consecutive query rows of one head.
struct QueryPanel final {
  int64_t q_head;
  int64_t first_row;  // R of column 0
  int32_t columns;
  int32_t owner;  // the caller's
};

class RangeProduct final {
 public:
  struct Tile final {
    FoldTile fold;
    int64_t panel;
    int64_t strip;
    int64_t index;      // of the tile: key rows [index * kFoldRows, ...)
    int64_t first_key;  // row
  };

  // Packs the queries of `panels`, ascending by head. Rows outside the slice count as zeros.
  Status Prepare(const RangeSlice& slice, int64_t stride, std::vector<QueryPanel> panels);

  const std::vector<QueryPanel>& panels() const { return panels_; }
  int64_t strips() const { return strips_; }
  int64_t tiles() const { return CeilDiv(key_rows_, kFoldRows); }
  int64_t strip_rows() const { return strip_rows_; }
  int64_t key_rows() const { return key_rows_; }

  // Key rows that some column of the panel sees.
  int64_t SeenRows(const QueryPanel& panel) const {
    return std::min(key_rows_, panel.first_row + panel.columns);
  }

  // Calls fn(tile) for every panel and every tile that one of its columns sees, in log2 units of
  // `scale` times the product; those of one panel and strip ascending and on one worker.
  template <typename Fn>
  void ForTiles(const RangeSlice& slice, float scale, Fn&& fn);

 private:
  static constexpr int64_t kStripTokens = 2048;

  void PackPanel(const RangeSlice& slice, int64_t index) const;

  std::vector<QueryPanel> panels_;
  std::vector<int64_t> head_panels_;  // [kv_heads + 1]
  int64_t stride_ = 1, units_ = 0, row_words_ = 0, panel_words_ = 0;
  int64_t key_rows_ = 0, strip_rows_ = 0, strips_ = 0;
  AlignedArray<uint32_t> queries_;  // [panels][row_words rounded up][kPanelColumns]
  AlignedArray<uint32_t> keys_;     // [workers][strip_rows][row_words]
  AlignedArray<float> logits_;      // [workers][kFoldRows][kFoldColumns]
  AlignedArray<std::byte> tiles_;   // [workers] of the AMX kernel
  int64_t tile_bytes_ = 0;
};

template <typename Fn>
void RangeProduct::ForTiles(const RangeSlice& slice, float scale, Fn&& fn) {
  const PanelKernels& kernels = PanelKernelsOf(slice.isa);
  const bool bf16 = slice.args.pool.dtype == DType::kBF16;
  const PanelKernel kernel = bf16 ? kernels.bf16 : kernels.f32;
  const KeySource source = slice.Keys();
  slice.pool.ParallelFor(strips_ * slice.args.pool.kv_heads, [&](int64_t task, int worker) {
    const int64_t strip = task / slice.args.pool.kv_heads;
    const int64_t kv_head = task % slice.args.pool.kv_heads;
    const int64_t first = strip * strip_rows_;
    const int64_t end = std::min(first + strip_rows_, key_rows_);
    uint32_t* keys = keys_.data() + worker * strip_rows_ * row_words_;
    float* logits = logits_.data() + worker * int64_t{kFoldRows} * kFoldColumns;
    bool packed = false;
    PanelArgs args{};
    args.x_stride = bf16 ? 2 * row_words_ : row_words_;
    args.k = args.x_stride;
    args.columns = kPanelColumns;
    args.out = logits;
    args.out_stride = kFoldColumns;
    args.alpha = scale * 1.44269504088896341f;
    args.scratch = tiles_.data() + worker * tile_bytes_;
    const auto heads = static_cast<size_t>(kv_head);
    for (int64_t index = head_panels_[heads]; index < head_panels_[heads + 1]; ++index) {
      const QueryPanel& panel = panels_[static_cast<size_t>(index)];
      const int64_t seen = std::min(end, SeenRows(panel));
      if (first < seen && !packed) {
        PackKeys(source, kv_head, first * stride_, end * stride_, stride_, keys);
        packed = true;
      }
      args.panel = queries_.data() + index * panel_words_;
      for (int64_t row = first; row < seen; row += kFoldRows) {
        args.x = keys + (row - first) * row_words_;
        args.rows = std::min<int64_t>(kFoldRows, seen - row);
        kernel(args);
        fn(Tile{.fold = {logits, static_cast<int32_t>(args.rows),
                         static_cast<int32_t>(panel.first_row - row)},
                .panel = index,
                .strip = strip,
                .index = row / kFoldRows,
                .first_key = row});
      }
    }
  });
}

}  // namespace lacuna::kernels::cpu
