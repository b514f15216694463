// What SelectRanges keeps: blocks of rows or maps of scores, columns and distances of probes.
#include <cstdint>

#include "kernels/core/checked_math.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ranges/range_choice.cuh"
#include "kernels/cuda/ranges/range_choice_row.cuh"
#include "kernels/cuda/ranges/range_kernels.h"

namespace lacuna::kernels::cuda {
namespace {

constexpr int kRowThreads = 128;
constexpr int kMapThreads = 512;
constexpr int kMapHeld = 64;  // entries of a map that a thread keeps: 32 rows of 1024 blocks
constexpr int kCellThreads = 1024;
constexpr int kCellBlocksMax = kCellTokensMax / 64;

struct ScoredItem final {
  float score = 0.0f;
  uint32_t id = 0;
  bool forced = false;
};

// Units of one row.
struct RowItems final {
  using Item = ScoredItem;
  const float* scores;
  int32_t units;
  ChoiceRule rule;
  __device__ int64_t count() const { return units; }
  __device__ bool Get(int64_t at, Item* item) const {
    *item = {scores[at], static_cast<uint32_t>(at), rule.Forces(at)};
    return true;
  }
};

// Causal blocks of all rows of a cell; equal scores: the smaller unit, then the smaller row.
struct MapItems final {
  using Item = ScoredItem;
  const float* scores;  // [rows][stride]
  int32_t rows, stride, first_block;
  int32_t shift;            // log2 of the places of a row, of which the last are empty
  const ChoiceRule* rules;  // [rows], for what is forced
  __device__ int64_t count() const { return int64_t{rows} << shift; }
  __device__ bool Get(int64_t at, Item* item) const {
    const int row = static_cast<int>(at >> shift), unit = static_cast<int>(at) - (row << shift);
    if (unit > first_block + row) return false;
    *item = {scores[int64_t{row} * stride + unit], static_cast<uint32_t>(unit * rows + row),
             rules[row].Forces(unit)};
    return true;
  }
};

__device__ int64_t Blocks(const RangeWork& work, int64_t tokens) {
  return (tokens + work.path.block_tokens - 1) / work.path.block_tokens;
}

// Forced blocks of a row of the slice, and the counts and the mass of top_p.
__device__ ChoiceRule RowRule(const RangeWork& work, int q_head, int row) {
  const RangeSpan rows = BlockRows(work, row);
  ChoiceRule rule{.forced_head = Blocks(work, work.dials.sink_tokens),
                  .inclusive = work.path.inclusive};
  if (LocalTokens(work.dials, rows.end - 1) > 0) {
    rule.forced_tail = LocalBegin(work.dials, rows.first) / work.path.block_tokens;
  }
  rule.count_min = Blocks(work, work.dials.min_tokens);
  if (work.dials.max_tokens > 0) rule.count_max = Blocks(work, work.dials.max_tokens);
  rule.mass_share = static_cast<double>(work.heads[q_head].p);
  return rule;
}

__device__ ChoiceRule RuleOfRow(const RangeWork& work, int q_head, int row) {
  ChoiceRule rule = RowRule(work, q_head, row);
  if (work.path.select == PrefillSelectKind::kVerticalSlash) {
    rule.mass_share = -1.0;
    rule.count_max = work.heads[q_head].pattern.a;
  } else if (work.path.select == PrefillSelectKind::kTopK) {
    const auto keys = static_cast<double>(BlockRows(work, row).end);
    const int64_t tokens =
        work.dials.budget_tokens + static_cast<int64_t>(work.dials.fraction * keys);
    rule.mass_share = -1.0;
    rule.count_max = std::max<int64_t>(Blocks(work, tokens), 1);
  }
  return rule;
}

// Of all rows of a cell; limits count per row.
__device__ ChoiceRule RuleOfMap(const RangeWork& work, int q_head, int row, int rows) {
  ChoiceRule rule = RowRule(work, q_head, row);
  if (work.path.select == PrefillSelectKind::kCover) {  // the limits are those of columns
    rule.count_min = 0;
    rule.count_max = kNoLimit;
  } else {
    rule.count_min *= rows;
    if (work.dials.max_tokens > 0) rule.count_max *= rows;
  }
  return rule;
}

// Whether the head's tiles in a cell of the slice read `kept`.
__device__ bool ReadsBlocks(const RangeWork& work, int head, int cell) {
  const HeadMode mode = ModeOf(work, work.QHead(head));
  if (mode != HeadMode::kProbe) return mode == HeadMode::kPooled;
  return work.path.estimate == EstimateKind::kProbePooled &&
         work.reads_map[int64_t{head} * work.chunk_cells + work.CellOffset() + cell] != 0;
}

__device__ const float* ScoresOf(const RangeWork& work, int map, int head, int row) {
  return work.scores +
         ((int64_t{map} * work.head_count() + head) * work.blocks + row) * work.key_blocks;
}
__device__ uint32_t* KeptOf(const RangeWork& work, int head, int row) {
  return work.kept +
         (int64_t{head} * work.chunk_blocks + work.BlockOffset() + row) * work.block_words;
}

// Writes the marks of units [0, units), by all threads; keeps(unit) says which.
template <int kThreads, typename Keeps>
__device__ void WriteMarks(uint32_t* words, int count, int64_t units, Keeps&& keeps) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
#pragma unroll 4
  for (int word = static_cast<int>(threadIdx.x) / 32; word < count; word += kThreads / 32) {
    const int64_t unit = int64_t{word} * 32 + lane;
    const uint32_t marks = __ballot_sync(~0u, unit < units && keeps(unit));
    if (lane == 0) words[word] = marks;
  }
}

template <typename Items>
__device__ bool KeepsItem(const Items& items, const ChoiceCut& cut, int64_t at) {
  typename Items::Item item;
  return items.Get(at, &item) && (item.forced || cut.Keeps(RankOf(item.score), item.id));
}

// Whether the blocks of a row of the slice are chosen.
__device__ bool ChoosesRow(const RangeWork& work, int head, int row) {
  const int cell = BlockRows(work, row).first / work.path.cell_tokens - work.first_cell();
  return ReadsBlocks(work, head, cell);
}

__global__ void __launch_bounds__(kRowThreads)
    ChooseRowsKernel(const __grid_constant__ RangeWork work) {
  __shared__ ChoiceShared shared;
  LetNextStart();
  WaitForPrevious();
  const int row = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
  if (!ChoosesRow(work, head, row)) return;
  const int units = work.first_block() + row + 1;
  const ChoiceRule rule = RuleOfRow(work, work.QHead(head), row);
  Chooser<kRowThreads> chooser(shared);
  const RowItems items{ScoresOf(work, 0, head, row), units, rule};
  const ChoiceCut cut = chooser.Cut(items, rule);
  uint32_t* kept = KeptOf(work, head, row);
  if (!work.bands()) {
    WriteMarks<kRowThreads>(kept, work.block_words, units,
                            [&](int64_t unit) { return KeepsItem(items, cut, unit); });
    return;
  }
  const RowItems high{ScoresOf(work, 1, head, row), units, rule};
  const ChoiceCut high_cut = chooser.Cut(high, rule);
  WriteMarks<kRowThreads>(kept, work.block_words, units, [&](int64_t unit) {
    return KeepsItem(items, cut, unit) || KeepsItem(high, high_cut, unit);
  });
}

// The same of up to 32 * kEach key blocks; a warp has a row.
template <int kEach>
__global__ void __launch_bounds__(32)
    ChooseShortRowsKernel(const __grid_constant__ RangeWork work) {
  LetNextStart();
  WaitForPrevious();
  const int row = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
  if (!ChoosesRow(work, head, row)) return;
  const int units = work.first_block() + row + 1;
  const ChoiceRule rule = RuleOfRow(work, work.QHead(head), row);
  uint32_t marks = 0;
  for (int map = 0; map < (work.bands() ? 2 : 1); ++map) {
    marks |= RowChoice<kEach>(ScoresOf(work, map, head, row), units, rule).Kept();
  }
  uint32_t* kept = KeptOf(work, head, row);
  for (int word = 0; word < work.block_words; ++word) {
    const uint32_t keeps = __ballot_sync(~0u, (marks >> word & 1) != 0);
    if (threadIdx.x == 0) kept[word] = keeps;
  }
}

__global__ void __launch_bounds__(kMapThreads)
    ChooseMapsKernel(const __grid_constant__ RangeWork work) {
  __shared__ ChoiceShared shared;
  __shared__ ChoiceRule rules[kCellBlocksMax];
  LetNextStart();
  WaitForPrevious();
  const int cell = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
  if (!ReadsBlocks(work, head, cell)) return;
  const RangeSpan span = CellRows(work, cell);
  const int first = span.first / work.path.block_tokens;
  const int rows = (span.end - 1) / work.path.block_tokens + 1 - first;
  const int first_row = first - work.first_block();
  for (int row = static_cast<int>(threadIdx.x); row < rows; row += kMapThreads) {
    rules[row] = RuleOfMap(work, work.QHead(head), first_row + row, rows);
  }
  __syncthreads();
  Chooser<kMapThreads> chooser(shared);
  const auto items_of = [&](int map) {
    return MapItems{ScoresOf(work, map, head, first_row), rows, work.key_blocks, first,
                    32 - __clz(first + rows - 1),         rules};
  };
  const MapItems items = items_of(0), high = items_of(work.bands() ? 1 : 0);
  const ChoiceCut cut = chooser.Cut<kMapHeld>(items, rules[0]);
  const ChoiceCut high_cut = work.bands() ? chooser.Cut<kMapHeld>(high, rules[0]) : cut;
  // The rows' marks lie one after another.
  const int row_units = work.block_words * 32;
  WriteMarks<kMapThreads>(KeptOf(work, head, first_row), rows * work.block_words,
                          int64_t{rows} * row_units, [&](int64_t mark) {
                            const auto row = static_cast<int>(mark / row_units);
                            const auto unit = static_cast<int>(mark) - row * row_units;
                            if (unit >= first + rows) return false;
                            const int64_t at = (int64_t{row} << items.shift) + unit;
                            return KeepsItem(items, cut, at) ||
                                   (work.bands() && KeepsItem(high, high_cut, at));
                          });
}

// The rule of a cell's blocks of columns or distances: by their mass (cover), of which heads that
// read a map take the least.
__device__ ChoiceRule RuleOfCell(const RangeWork& work, int q_head, int end, bool columns,
                                 bool reads_map) {
  const PrefillDials& dials = work.dials;
  const int64_t forced = columns ? dials.sink_tokens : LocalTokens(dials, end - 1);
  ChoiceRule rule{.forced_head = (forced + work.unit - 1) / work.unit};
  const PrefillHead& head = work.heads[q_head];
  rule.mass_share = -1.0;
  rule.count_min = Blocks(work, dials.min_tokens);
  if (reads_map) {
    rule.count_max = rule.count_min;
    return rule;
  }
  if (dials.max_tokens > 0) rule.count_max = Blocks(work, dials.max_tokens);
  rule.mass_share = static_cast<double>(head.p);
  return rule;
}

__global__ void __launch_bounds__(kCellThreads)
    ChooseCellsKernel(const __grid_constant__ RangeWork work) {
  __shared__ ChoiceShared shared;
  LetNextStart();
  WaitForPrevious();
  const int cell = static_cast<int>(blockIdx.x) / 2, head = static_cast<int>(blockIdx.y);
  const bool columns = blockIdx.x % 2 == 0;
  const int q_head = work.QHead(head);
  if (ModeOf(work, q_head) != HeadMode::kProbe) return;
  const int end = CellRows(work, cell).end;
  const int64_t chosen = int64_t{head} * work.chunk_cells + work.CellOffset() + cell;
  const bool reads_map =
      work.path.estimate == EstimateKind::kProbePooled && work.reads_map[chosen] != 0;
  const int64_t from = int64_t{head} * work.cells + cell;
  const int64_t lists = int64_t{work.head_count()} * work.cells;
  const float* sums = work.unit_sums + (columns ? from : lists + from) * work.key_blocks;
  const ChoiceRule rule = RuleOfCell(work, q_head, end, columns, reads_map);
  const RowItems items{sums, (end + work.unit - 1) / work.unit, rule};
  const ChoiceCut cut = Chooser<kCellThreads>(shared).Cut(items, rule);
  WriteMarks<kCellThreads>((columns ? work.columns : work.distances) + chosen * work.unit_words,
                           work.unit_words, items.units,
                           [&](int64_t unit) { return KeepsItem(items, cut, unit); });
}

}  // namespace

Status ChooseRangeBlocks(const RangeWork& work, cudaStream_t stream) {
  const auto heads = static_cast<unsigned>(work.head_count());
  if (work.path.scope == ScopeKind::kMap) {
    return Launch(ChooseMapsKernel, dim3(static_cast<unsigned>(work.cells), heads),
                  dim3(kMapThreads), 0, stream, work);
  }
  const dim3 grid(static_cast<unsigned>(work.blocks), heads);
  if (work.block_words > 32) {
    return Launch(ChooseRowsKernel, grid, dim3(kRowThreads), 0, stream, work);
  }
  const auto kernel = work.block_words <= 8    ? ChooseShortRowsKernel<8>
                      : work.block_words <= 16 ? ChooseShortRowsKernel<16>
                                               : ChooseShortRowsKernel<32>;
  return Launch(kernel, grid, dim3(32), 0, stream, work);
}

Status ChooseRangeCells(const RangeWork& work, cudaStream_t stream) {
  return Launch(
      ChooseCellsKernel,
      dim3(static_cast<unsigned>(2 * work.cells), static_cast<unsigned>(work.head_count())),
      dim3(kCellThreads), 0, stream, work);
}

}  // namespace lacuna::kernels::cuda
