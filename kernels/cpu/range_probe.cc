#include "kernels/cpu/range_probe.h"

#include <algorithm>
#include <cmath>

namespace lacuna::kernels::cpu {
namespace {

constexpr float kNothing = 1e30f;  // an lse that leaves no probability

}  // namespace

std::vector<Span> ProbeSpans(const PrefillPath& path, const PrefillDials& dials, Span rows) {
  const int64_t wanted = dials.probe_rows, cell_tokens = path.cell_tokens;
  const int64_t cell = rows.first / cell_tokens * cell_tokens;
  const int64_t count = ProbeRuns(path, dials);
  std::vector<Span> runs;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t begin = std::max(cell + i * cell_tokens / count, rows.first);
    const int64_t end = std::min(cell + (i + 1) * cell_tokens / count, rows.end);
    if (begin < end) runs.push_back({std::max(end - wanted, begin), end});
  }
  return runs;
}

std::vector<QueryPanel> RangeProbe::MakePanels(const RangeSlice& slice) {
  std::vector<QueryPanel> panels;
  owners_.clear();
  head_owners_.assign(static_cast<size_t>(slice.q_heads()), -1);
  for (int64_t head = 0; head < slice.q_heads(); ++head) {
    if (slice.modes[static_cast<size_t>(head)] != HeadMode::kProbe) continue;
    head_owners_[static_cast<size_t>(head)] = static_cast<int64_t>(owners_.size()) / slice.cells();
    for (int64_t cell = 0; cell < slice.cells(); ++cell) {
      const std::vector<Span> runs =
          ProbeSpans(slice.args.path, slice.dials(), slice.CellRows(cell));
      for (const Span& run : runs) {
        for (int64_t row = run.first; row < run.end; row += kFoldColumns) {
          panels.push_back({head, row,
                            static_cast<int32_t>(std::min<int64_t>(kFoldColumns, run.end - row)),
                            static_cast<int32_t>(owners_.size())});
        }
      }
      owners_.push_back({head, cell, {runs.front().first, runs.back().end}});
    }
  }
  return panels;
}

Status RangeProbe::Run(const RangeSlice& slice, RangeProduct& product) {
  std::vector<QueryPanel> panels = MakePanels(slice);
  if (panels.empty()) return OkStatus();
  const auto count = static_cast<int64_t>(panels.size());
  const auto owners = static_cast<int64_t>(owners_.size());
  LACUNA_RETURN_IF_ERROR(product.Prepare(slice, 1, std::move(panels)));
  keys_ = slice.rows.end;
  partial_ = product.strip_rows() + slice.cell_tokens() + kFoldColumns;
  LACUNA_RETURN_IF_ERROR(max_.Fit(count * product.tiles() * kFoldColumns));
  LACUNA_RETURN_IF_ERROR(sums_.Fit(count * product.tiles() * kFoldColumns));
  LACUNA_RETURN_IF_ERROR(lse_.Fit(count * kFoldColumns));
  LACUNA_RETURN_IF_ERROR(columns_.Fit(owners * keys_));
  LACUNA_RETURN_IF_ERROR(diagonals_.Fit(owners * keys_));
  LACUNA_RETURN_IF_ERROR(partials_.Fit(owners * product.strips() * partial_));
  FindSums(slice, product);
  Spread(slice, product);
  slice.pool.ParallelFor(owners, [&](int64_t owner, int) { MergeDiagonals(product, owner); });
  return OkStatus();
}

// First pass over the keys: each row's log2 of its sum of exponentials.
void RangeProbe::FindSums(const RangeSlice& slice, RangeProduct& product) {
  const RangeFolds& folds = RangeFoldsOf(slice.isa);
  const int64_t tiles = product.tiles();
  product.ForTiles(slice, slice.args.scale, [&](const RangeProduct::Tile& tile) {
    const int64_t at = (tile.panel * tiles + tile.index) * kFoldColumns;
    folds.sum(tile.fold, kFoldRows, max_.data() + at, sums_.data() + at);
  });
  const auto panels = static_cast<int64_t>(product.panels().size());
  slice.pool.ParallelFor(panels, [&](int64_t index, int) {
    const QueryPanel& panel = product.panels()[static_cast<size_t>(index)];
    const int64_t seen = CeilDiv(product.SeenRows(panel), kFoldRows);
    const float* max = max_.data() + index * tiles * kFoldColumns;
    const float* sums = sums_.data() + index * tiles * kFoldColumns;
    for (int64_t column = 0; column < kFoldColumns; ++column) {
      float top = kNoLogit;
      for (int64_t tile = 0; tile < seen; ++tile) {
        top = std::max(top, max[tile * kFoldColumns + column]);
      }
      float total = 0.0f;
      for (int64_t tile = 0; tile < seen; ++tile) {
        const int64_t at = tile * kFoldColumns + column;
        total += std::exp2(max[at] - top) * sums[at];
      }
      const bool real = column < panel.columns && total > 0.0f;
      lse_.data()[index * kFoldColumns + column] = real ? top + std::log2(total) : kNothing;
    }
  });
}

// Second pass: probabilities, summed along columns and diagonals. A strip of keys belongs to one
// worker; the diagonals of neighbouring strips overlap and are merged in order afterwards.
void RangeProbe::Spread(const RangeSlice& slice, RangeProduct& product) {
  const auto owners = static_cast<int64_t>(owners_.size());
  const int64_t strips = product.strips();
  slice.pool.ParallelFor(owners, [&](int64_t owner, int) {
    std::fill_n(columns_.data() + owner * keys_, keys_, 0.0f);
    std::fill_n(partials_.data() + owner * strips * partial_, strips * partial_, 0.0f);
  });
  const RangeFolds& folds = RangeFoldsOf(slice.isa);
  product.ForTiles(slice, slice.args.scale, [&](const RangeProduct::Tile& tile) {
    const QueryPanel& panel = product.panels()[static_cast<size_t>(tile.panel)];
    const Owner& owner = owners_[static_cast<size_t>(panel.owner)];
    float* partial = partials_.data() + (panel.owner * strips + tile.strip) * partial_;
    const int64_t distance = panel.first_row - tile.first_key;
    folds.spread(tile.fold, lse_.data() + tile.panel * kFoldColumns,
                 columns_.data() + panel.owner * keys_ + tile.first_key,
                 partial + distance - FirstDistance(product, owner, tile.strip));
  });
}

void RangeProbe::MergeDiagonals(const RangeProduct& product, int64_t owner) const {
  float* to = diagonals_.data() + owner * keys_;
  std::fill_n(to, keys_, 0.0f);
  for (int64_t strip = 0; strip < product.strips(); ++strip) {
    const float* from = partials_.data() + (owner * product.strips() + strip) * partial_;
    const int64_t first = FirstDistance(product, owners_[static_cast<size_t>(owner)], strip);
    const int64_t end = std::min(partial_, keys_ - first);
    for (int64_t i = std::max<int64_t>(-first, 0); i < end; ++i) to[first + i] += from[i];
  }
}

std::span<const float> RangeProbe::Columns(const RangeSlice& slice, int64_t q_head,
                                           int64_t cell) const {
  return {columns_.data() + OwnerOf(slice, q_head, cell) * keys_,
          static_cast<size_t>(slice.CellRows(cell).end)};
}

std::span<const float> RangeProbe::Diagonals(const RangeSlice& slice, int64_t q_head,
                                             int64_t cell) const {
  return {diagonals_.data() + OwnerOf(slice, q_head, cell) * keys_,
          static_cast<size_t>(slice.CellRows(cell).end)};
}

}  // namespace lacuna::kernels::cpu
