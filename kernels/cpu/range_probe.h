// RangeProbe: true attention of a few query rows of each cell, summed along columns and diagonals
// (MInference, Jiang et al. 2024). Memory is kept from call to call; engine thread, work over the
// pool.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/core/status.h"
#include "kernels/cpu/range_product.h"
#include "kernels/cpu/range_slice.h"

namespace lacuna::kernels::cpu {

// Rows of the probe of a cell whose rows are `rows`. kLast: its last probe_rows. kTails: the cell
// is cut into as many runs as make the tails probe_fraction of it, each run's last probe_rows.
std::vector<Span> ProbeSpans(const PrefillPath& path, const PrefillDials& dials, Span rows);

class RangeProbe final {
 public:
  Status Run(const RangeSlice& slice, RangeProduct& product);

  // The sums of (head, cell), of heads with HeadMode::kProbe: entry j is key j, or the distance j
  // between query and key.
  std::span<const float> Columns(const RangeSlice& slice, int64_t q_head, int64_t cell) const;
  std::span<const float> Diagonals(const RangeSlice& slice, int64_t q_head, int64_t cell) const;

 private:
  struct Owner final {
    int64_t q_head, cell;
    Span rows;  // of all its probes, from the first to the last
  };
  std::vector<QueryPanel> MakePanels(const RangeSlice& slice);
  void FindSums(const RangeSlice& slice, RangeProduct& product);
  void Spread(const RangeSlice& slice, RangeProduct& product);
  void MergeDiagonals(const RangeProduct& product, int64_t owner) const;
  // Distance of entry 0 of an owner's partial diagonals in one strip of keys.
  int64_t FirstDistance(const RangeProduct& product, const Owner& owner, int64_t strip) const {
    return owner.rows.first - (strip + 1) * product.strip_rows() + 1;
  }
  int64_t OwnerOf(const RangeSlice& slice, int64_t q_head, int64_t cell) const {
    return head_owners_[static_cast<size_t>(q_head)] * slice.cells() + cell;
  }

  std::vector<Owner> owners_;
  std::vector<int64_t> head_owners_;  // [q_heads], in cells; -1: none
  int64_t keys_ = 0, partial_ = 0;
  AlignedArray<float> max_, sums_;  // [panels][tiles][kFoldColumns]
  AlignedArray<float> lse_;         // [panels][kFoldColumns], log2
  AlignedArray<float> columns_;     // [owners][keys]
  AlignedArray<float> diagonals_;   // [owners][keys]
  AlignedArray<float> partials_;    // [owners][strips][partial]
};

}  // namespace lacuna::kernels::cpu
