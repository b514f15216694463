#include "kernels/cpu/range_product.h"

#include <cstring>
#include <utility>

namespace lacuna::kernels::cpu {

static_assert(kFoldColumns == kPanelColumns);

Status RangeProduct::Prepare(const RangeSlice& slice, int64_t stride,
                             std::vector<QueryPanel> panels) {
  panels_ = std::move(panels);
  stride_ = stride;
  units_ = slice.Keys().units();
  row_words_ = units_ * stride;
  key_rows_ = CeilDiv(slice.rows.end, stride);
  strip_rows_ = std::max<int64_t>(kStripTokens / stride, kFoldRows);
  strips_ = CeilDiv(key_rows_, strip_rows_);
  head_panels_.assign(static_cast<size_t>(slice.args.pool.kv_heads) + 1, 0);
  for (const QueryPanel& panel : panels_) {
    ++head_panels_[static_cast<size_t>(panel.q_head / slice.group()) + 1];
  }
  for (size_t i = 1; i < head_panels_.size(); ++i) head_panels_[i] += head_panels_[i - 1];
  // The AMX kernel reads whole tiles of k, the padding zero.
  const int64_t padded =
      RoundUp(row_words_, slice.args.pool.dtype == DType::kBF16 ? kKPadding / 2 : kKPadding);
  panel_words_ = padded * kPanelColumns;
  tile_bytes_ = 32 * padded * 4;
  const int64_t workers = slice.pool.threads();
  LACUNA_RETURN_IF_ERROR(queries_.Fit(static_cast<int64_t>(panels_.size()) * panel_words_));
  LACUNA_RETURN_IF_ERROR(keys_.Fit(workers * strip_rows_ * row_words_));
  LACUNA_RETURN_IF_ERROR(logits_.Fit(workers * kFoldRows * kFoldColumns));
  LACUNA_RETURN_IF_ERROR(tiles_.Fit(workers * tile_bytes_));
  slice.pool.ParallelFor(static_cast<int64_t>(panels_.size()),
                         [&](int64_t index, int) { PackPanel(slice, index); });
  return OkStatus();
}

void RangeProduct::PackPanel(const RangeSlice& slice, int64_t index) const {
  const QueryPanel& panel = panels_[static_cast<size_t>(index)];
  uint32_t* to = queries_.data() + index * panel_words_;
  std::memset(to, 0, static_cast<size_t>(4 * panel_words_));
  for (int64_t column = 0; column < panel.columns; ++column) {
    for (int64_t r = 0; r < stride_; ++r) {
      const int64_t position = (panel.first_row + column + 1) * stride_ - 1 - r;
      if (position < slice.rows.first || position >= slice.rows.end) continue;
      const std::byte* from = slice.Query(position, panel.q_head);
      for (int64_t unit = 0; unit < units_; ++unit) {
        std::memcpy(to + (unit * stride_ + r) * kPanelColumns + column, from + 4 * unit, 4);
      }
    }
  }
}

}  // namespace lacuna::kernels::cpu
