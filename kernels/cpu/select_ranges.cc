#include "kernels/cpu/select_ranges.h"

#include <algorithm>
#include <limits>
#include <string>

#include "kernels/cpu/attention_tile.h"
#include "kernels/cpu/range_writer.h"

namespace lacuna::kernels::cpu {
namespace {

constexpr int64_t kSliceTokens = 2048;  // or a cell

// One slice: estimates and chooses, and leaves what RangeWriter reads in the scratch.
class SliceSelector final {
 public:
  SliceSelector(const RangeSlice& slice, SelectRangesScratch& scratch)
      : slice_(slice), scratch_(scratch) {}

  Status Run() {
    const bool pooled = Any(HeadMode::kPooled), probed = Any(HeadMode::kProbe);
    const bool maps = slice_.args.path.estimate == EstimateKind::kProbePooled;
    if (pooled || (probed && maps)) {
      LACUNA_RETURN_IF_ERROR(
          scratch_.kept.Fit(slice_.q_heads() * slice_.query_blocks() * RowWords()));
      std::fill_n(scratch_.kept.data(), slice_.q_heads() * slice_.query_blocks() * RowWords(),
                  uint64_t{0});
      LACUNA_RETURN_IF_ERROR(EstimateBlocks());
    }
    if (pooled) ChooseBlocks(HeadMode::kPooled);
    if (!probed) return OkStatus();
    LACUNA_RETURN_IF_ERROR(scratch_.probe.Run(slice_, scratch_.product));
    ChooseCells();
    return OkStatus();
  }

 private:
  const PrefillPath& path() const { return slice_.args.path; }
  const PrefillDials& dials() const { return slice_.dials(); }
  const PrefillHead& head(int64_t q_head) const { return slice_.args.heads[q_head]; }
  int64_t RowWords() const { return CeilDiv(slice_.key_blocks(), 64); }
  int64_t Blocks(int64_t tokens) const { return CeilDiv(tokens, slice_.block()); }
  bool Any(HeadMode mode) const { return std::ranges::count(slice_.modes, mode) > 0; }
  bool Bands() const {
    return path().select != PrefillSelectKind::kVerticalSlash && path().pool == PrefillPool::kBands;
  }

  Status EstimateBlocks() {
    const bool patterns = path().select == PrefillSelectKind::kVerticalSlash;
    if (!patterns && path().pool == PrefillPool::kAntidiagonal) {
      return scratch_.antidiagonal.Run(slice_, scratch_.product, &scratch_.scores);
    }
    LACUNA_RETURN_IF_ERROR(scratch_.means.Prepare(slice_));
    if (!Bands()) {
      return scratch_.means.Map(slice_, BlockMeans::Band::kAll, &scratch_.scores);
    }
    LACUNA_RETURN_IF_ERROR(scratch_.means.Map(slice_, BlockMeans::Band::kLow, &scratch_.scores));
    return scratch_.means.Map(slice_, BlockMeans::Band::kHigh, &scratch_.second_scores);
  }

  std::span<const float> ScoresOf(const BlockScores& scores, int64_t q_head, int64_t row) const {
    return {scores.Row(q_head, row), static_cast<size_t>(slice_.first_block() + row + 1)};
  }

  // Forced blocks of a row, and the counts of top_p.
  ChoiceRule RowRule(int64_t row) const {
    const Span rows = slice_.BlockRows(row);
    ChoiceRule rule{.forced_head = Blocks(dials().sink_tokens), .inclusive = path().inclusive};
    if (LocalTokens(dials(), rows.end - 1) > 0) {
      rule.forced_tail = LocalBegin(dials(), rows.first) / slice_.block();
    }
    rule.count_min = Blocks(dials().min_tokens);
    if (dials().max_tokens > 0) rule.count_max = Blocks(dials().max_tokens);
    return rule;
  }

  int64_t BudgetBlocks(int64_t q_head, int64_t row) const {
    if (path().select == PrefillSelectKind::kVerticalSlash) return head(q_head).pattern.a;
    const auto keys = static_cast<double>(slice_.BlockRows(row).end);
    const int64_t tokens = dials().budget_tokens + static_cast<int64_t>(dials().fraction * keys);
    return std::max<int64_t>(Blocks(tokens), 1);
  }

  static double Mass(std::span<const std::span<const float>> rows, float p) {
    if (p >= 1.0f) return std::numeric_limits<double>::infinity();
    double total = 0;
    for (const std::span<const float> row : rows) {
      for (const float score : row) total += double{score};
    }
    return total * double{p};
  }

  void ChooseRow(const BlockScores& scores, int64_t q_head, int64_t row,
                 std::vector<uint64_t>* order) {
    UnitSet kept = KeptBlocks(slice_, scratch_, q_head, row);
    const std::span<const float> blocks = ScoresOf(scores, q_head, row);
    ChoiceRule rule = RowRule(row);
    if (path().select == PrefillSelectKind::kTopK ||
        path().select == PrefillSelectKind::kVerticalSlash) {
      rule.count_max = BudgetBlocks(q_head, row);
      KeepCount(blocks, rule, order, &kept);
    } else {
      rule.mass = Mass({&blocks, 1}, head(q_head).p);
      KeepMass(blocks, rule, order, &kept);
    }
  }

  // All rows of one cell at once; limits count per row.
  void ChooseMap(const BlockScores& scores, int64_t q_head, int64_t cell,
                 std::vector<uint64_t>* order) {
    const Span rows = slice_.CellRows(cell);
    std::vector<std::span<const float>> blocks;
    std::vector<ChoiceRule> rules;
    std::vector<UnitSet> kept;
    for (int64_t row = rows.first / slice_.block() - slice_.first_block();
         row < Blocks(rows.end) - slice_.first_block(); ++row) {
      blocks.push_back(ScoresOf(scores, q_head, row));
      rules.push_back(RowRule(row));
      kept.push_back(KeptBlocks(slice_, scratch_, q_head, row));
    }
    rules[0].mass = Mass(blocks, head(q_head).p);
    const auto count = static_cast<int64_t>(rules.size());
    if (path().select == PrefillSelectKind::kCover) {  // the limits are those of columns
      rules[0].count_min = 0;
      rules[0].count_max = ChoiceRule{}.count_max;
    } else {
      rules[0].count_min *= count;
      if (dials().max_tokens > 0) rules[0].count_max *= count;
    }
    KeepMapMass(blocks, rules, order, kept);
  }

  void ChooseBlocks(HeadMode mode) {
    const bool map = path().scope == ScopeKind::kMap;
    slice_.pool.ParallelFor(slice_.q_heads() * slice_.cells(), [&](int64_t task, int worker) {
      const int64_t q_head = task / slice_.cells(), cell = task % slice_.cells();
      if (slice_.modes[static_cast<size_t>(q_head)] != mode) return;
      std::vector<uint64_t>* order = &scratch_.workers[static_cast<size_t>(worker)].order;
      for (const BlockScores* scores : {&scratch_.scores, &scratch_.second_scores}) {
        if (scores == &scratch_.second_scores && !Bands()) continue;
        if (map) {
          ChooseMap(*scores, q_head, cell, order);
          continue;
        }
        const Span rows = slice_.CellRows(cell);
        for (int64_t row = rows.first / slice_.block() - slice_.first_block();
             row < Blocks(rows.end) - slice_.first_block(); ++row) {
          ChooseRow(*scores, q_head, row, order);
        }
      }
    });
  }

  void ChooseCells() {
    scratch_.cells.resize(static_cast<size_t>(slice_.q_heads() * slice_.cells()));
    slice_.pool.ParallelFor(slice_.q_heads() * slice_.cells(), [&](int64_t task, int worker) {
      const int64_t q_head = task / slice_.cells(), cell = task % slice_.cells();
      if (slice_.modes[static_cast<size_t>(q_head)] != HeadMode::kProbe) return;
      SelectRangesScratch::CellChoice& choice = scratch_.cells[static_cast<size_t>(task)];
      SelectRangesScratch::Worker& own = scratch_.workers[static_cast<size_t>(worker)];
      const Span rows = slice_.CellRows(cell);
      choice.groups.assign(static_cast<size_t>(CeilDiv(rows.end, 64 * kRangeGroupTokens)), 0);
      choice.distances.clear();
      choice.reads_map = path().estimate == EstimateKind::kProbePooled && FitsMap(q_head, cell);
      if (choice.reads_map) ChooseProbedMap(q_head, cell, &own.order);
      const auto local = LocalTokens(dials(), rows.end - 1);
      Keep(scratch_.probe.Columns(slice_, q_head, cell), q_head, head(q_head).pattern.a,
           dials().sink_tokens, choice.reads_map, &own);
      ForKept(rows.end, &own, [&](int64_t begin, int64_t end) {
        UnitSet(choice.groups).AddRun(begin / kRangeGroupTokens, CeilDiv(end, kRangeGroupTokens));
      });
      Keep(scratch_.probe.Diagonals(slice_, q_head, cell), q_head, head(q_head).pattern.b, local,
           choice.reads_map, &own);
      ForKept(rows.end, &own, [&](int64_t begin, int64_t end) {
        choice.distances.push_back({begin, end});
      });
    });
  }

  // Tokens of a unit of columns and of distances.
  int64_t Unit() const {
    return path().select == PrefillSelectKind::kVerticalSlash ? 1 : slice_.block();
  }

  // Marks in own->words the units kept of `sums`: `count` single ones (vertical_slash), or blocks
  // by their mass (cover), of which heads that read a map take the least.
  void Keep(std::span<const float> sums, int64_t q_head, int64_t count, int64_t forced_tokens,
            bool reads_map, SelectRangesScratch::Worker* own) {
    own->words.assign(CeilDiv(static_cast<int64_t>(sums.size()), 64), 0);
    UnitSet kept{own->words};
    ChoiceRule rule{.forced_head = CeilDiv(forced_tokens, Unit())};
    if (Unit() == 1) {
      rule.count_max = count;
      return KeepCount(sums, rule, &own->order, &kept);
    }
    PoolBlocks(sums, &own->sums);
    const std::span<const float> blocks = own->sums;
    rule.count_min = Blocks(dials().min_tokens);
    if (reads_map) {
      rule.count_max = rule.count_min;
      return KeepCount(blocks, rule, &own->order, &kept);
    }
    if (dials().max_tokens > 0) rule.count_max = Blocks(dials().max_tokens);
    rule.mass = Mass({&blocks, 1}, head(q_head).p);
    KeepMass(blocks, rule, &own->order, &kept);
  }

  // Gives each run of kept units to fn, in tokens below `end`.
  template <typename Fn>
  void ForKept(int64_t end, SelectRangesScratch::Worker* own, Fn&& fn) const {
    const UnitSet kept{own->words};
    const int64_t units = CeilDiv(end, Unit());
    for (int64_t at = kept.Next(0, units, true); at < units;) {
      const int64_t stop = kept.Next(at, units, false);
      fn(at * Unit(), std::min(stop * Unit(), end));
      at = kept.Next(stop, units, true);
    }
  }

  void PoolBlocks(std::span<const float> sums, std::vector<float>* blocks) const {
    blocks->assign(static_cast<size_t>(Blocks(static_cast<int64_t>(sums.size()))), 0.0f);
    for (size_t i = 0; i < sums.size(); ++i) {
      (*blocks)[i / static_cast<size_t>(slice_.block())] += sums[i];
    }
  }

  // Whether a head's probe and its pooled map agree (FlexPrefill's query-aware heads).
  bool FitsMap(int64_t q_head, int64_t cell) {
    std::vector<float> probed;
    PoolBlocks(scratch_.probe.Columns(slice_, q_head, cell), &probed);
    float query[kHeadDimMax], mean[kHeadDimMax] = {};
    int64_t count = 0;
    for (const Span& run : ProbeSpans(path(), dials(), slice_.CellRows(cell))) {
      for (int64_t position = run.first; position < run.end; ++position, ++count) {
        LoadQuery(slice_, position, q_head, query);
        for (int64_t i = 0; i < slice_.args.pool.head_dim; ++i) mean[i] += query[i];
      }
    }
    const float share = 1.0f / static_cast<float>(count);
    for (float& value : mean) value *= share;
    for (float& value : probed) value *= share;
    return scratch_.means.Divergence(slice_, q_head, mean, probed) < dials().js_threshold;
  }

  void ChooseProbedMap(int64_t q_head, int64_t cell, std::vector<uint64_t>* order) {
    if (path().scope == ScopeKind::kMap) return ChooseMap(scratch_.scores, q_head, cell, order);
    const Span rows = slice_.CellRows(cell);
    for (int64_t row = rows.first / slice_.block() - slice_.first_block();
         row < Blocks(rows.end) - slice_.first_block(); ++row) {
      ChooseRow(scratch_.scores, q_head, row, order);
    }
  }

  const RangeSlice& slice_;
  SelectRangesScratch& scratch_;
};

Status RunSlice(RangeSlice& slice, SelectRangesScratch& scratch) {
  const SelectRangesArgs& args = slice.args;
  const bool dense = slice.rows.first >= DenseFrom(slice);
  bool estimates = false;
  for (int64_t head = 0; head < slice.q_heads(); ++head) {
    StaticShape shape;
    if (args.shapes != nullptr) {
      shape = args.shapes[static_cast<int64_t>(slice.chunk) * args.pool.kv_heads +
                          head / slice.group()];
    }
    const HeadMode mode =
        dense ? HeadMode::kDense
              : ModeOf(args.path, args.heads[head].pattern, shape.window_tokens > 0);
    estimates = estimates || mode == HeadMode::kPooled || mode == HeadMode::kProbe;
    slice.modes.push_back(mode);
  }
  if (estimates) LACUNA_RETURN_IF_ERROR(SliceSelector(slice, scratch).Run());
  WriteRanges(slice, scratch);
  return OkStatus();
}

Status CheckCpu(const SelectRangesArgs& args) {
  if (args.pool.head_dim > kHeadDimMax || args.pool.head_dim % 2 != 0) {
    return InvalidArgument("SelectRanges: head_dim " + std::to_string(args.pool.head_dim) +
                           " is no even number up to " + std::to_string(kHeadDimMax));
  }
  if (args.pool.dtype != DType::kF32 && args.pool.dtype != DType::kBF16) {
    return InvalidArgument("SelectRanges: the KV pool is neither f32 nor bf16");
  }
  return OkStatus();
}

}  // namespace

Status SelectRangesCpu(const SelectRangesArgs& args, Isa isa, ThreadPool& pool,
                       SelectRangesScratch& scratch) {
  LACUNA_RETURN_IF_ERROR(CheckCpu(args));
  for (size_t chunk = 0; chunk < args.chunks.size(); ++chunk) {
    const int64_t begin = args.chunks[chunk].chunk.first_position;
    const int64_t end = begin + args.chunks[chunk].chunk.rows;
    // Tiles of a chunk off the grid of tiles lie across cells: it goes as one.
    const bool aligned = begin % KeyRanges::kQueryTileTokens == 0;
    const int64_t slice_tokens = std::max<int64_t>(kSliceTokens, args.path.cell_tokens);
    for (int64_t first = begin; first < end;) {
      const int64_t next = aligned ? std::min((first / slice_tokens + 1) * slice_tokens, end) : end;
      RangeSlice slice{args, isa, pool, chunk, {first, next}, {}};
      LACUNA_RETURN_IF_ERROR(RunSlice(slice, scratch));
      first = next;
    }
  }
  return OkStatus();
}

}  // namespace lacuna::kernels::cpu
