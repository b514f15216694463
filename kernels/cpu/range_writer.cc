#include "kernels/cpu/range_writer.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <limits>

namespace lacuna::kernels::cpu {
namespace {

constexpr int64_t kTileTokens = KeyRanges::kQueryTileTokens;
constexpr int64_t kStatTokens = 64;
static_assert(kStatTokens == 4 * kRangeGroupTokens && 64 % (kStatTokens / kRangeGroupTokens) == 0);

// Groups of 16 keys, all keys in tokens and clipped to [0, end).
class GroupMap final {
 public:
  GroupMap(std::vector<uint64_t>* words, int64_t end)
      : end_(end), groups_(CeilDiv(end, kRangeGroupTokens)) {
    words->assign(static_cast<size_t>(CeilDiv(groups_, 64)), 0);
    words_ = *words;
    set_ = UnitSet(words_);
  }

  void Add(int64_t begin, int64_t end) {
    set_.AddRun(std::max<int64_t>(begin, 0) / kRangeGroupTokens,
                CeilDiv(std::min(end, end_), kRangeGroupTokens));
  }
  void AddGroups(std::span<const uint64_t> groups) {
    const size_t words = std::min(words_.size(), groups.size());
    for (size_t i = 0; i < words; ++i) words_[i] |= groups[i];
    if (groups_ % 64 != 0) words_.back() &= ~uint64_t{0} >> (64 - groups_ % 64);
  }
  // Gives every maximal run to fn(begin, end).
  template <typename Fn>
  void ForRuns(Fn&& fn) const {
    for (int64_t at = set_.Next(0, groups_, true); at < groups_;) {
      const int64_t end = set_.Next(at, groups_, false);
      fn(at * kRangeGroupTokens, end * kRangeGroupTokens);
      at = set_.Next(end, groups_, true);
    }
  }
  // Blocks of 64 keys with any group.
  int64_t Blocks() const {
    int64_t count = 0;
    for (uint64_t word : words_) {
      word |= word >> 2;
      word |= word >> 1;
      count += std::popcount(word & 0x1111111111111111u);
    }
    return count;
  }

 private:
  int64_t end_, groups_;
  std::span<uint64_t> words_;
  UnitSet set_;
};

StaticShape ShapeOf(const RangeSlice& slice, int64_t q_head) {
  if (slice.args.shapes == nullptr) return {};
  const int64_t kv_head = q_head / slice.group();
  return slice.args.shapes[static_cast<int64_t>(slice.chunk) * slice.args.pool.kv_heads + kv_head];
}

// Blocks of 64 keys that some query of the tile sees.
int64_t BlocksOfShape(const StaticShape& shape, Span tile) {
  const int64_t blocks = CeilDiv(tile.end, kStatTokens);
  if (shape.window_tokens == 0) return blocks;
  const int64_t from = std::max<int64_t>(tile.first - shape.window_tokens + 1, 0) / kStatTokens;
  const int64_t sinks = std::min(CeilDiv(int64_t{shape.sink_tokens}, kStatTokens), blocks);
  return blocks - from + std::min(sinks, from);
}

void AddForced(const RangeSlice& slice, Span tile, GroupMap* map) {
  map->Add(0, slice.dials().sink_tokens);
  if (LocalTokens(slice.dials(), tile.end - 1) == 0) return;
  map->Add(LocalBegin(slice.dials(), tile.first), tile.end);
}

void AddBlocks(const RangeSlice& slice, const SelectRangesScratch& scratch, int64_t q_head,
               Span tile, GroupMap* map) {
  for (int64_t block = tile.first / slice.block(); block * slice.block() < tile.end; ++block) {
    const UnitSet kept = KeptBlocks(slice, scratch, q_head, block - slice.first_block());
    for (int64_t at = kept.Next(0, block + 1, true); at <= block;) {
      const int64_t end = kept.Next(at, block + 1, false);
      map->Add(at * slice.block(), end * slice.block());
      at = kept.Next(end, block + 1, true);
    }
  }
}

void AddCells(const RangeSlice& slice, const SelectRangesScratch& scratch, int64_t q_head,
              Span tile, GroupMap* map) {
  const int64_t cell_tokens = slice.cell_tokens();
  for (int64_t cell = tile.first / cell_tokens; cell * cell_tokens < tile.end; ++cell) {
    const SelectRangesScratch::CellChoice& choice =
        scratch.cells[static_cast<size_t>(q_head * slice.cells() + cell - slice.first_cell())];
    map->AddGroups(choice.groups);
    for (const Span& distances : choice.distances) {
      if (distances.first >= tile.end) break;
      map->Add(tile.first - distances.end + 1, tile.end - distances.first);
    }
    if (choice.reads_map) AddBlocks(slice, scratch, q_head, tile, map);
  }
}

void FillMap(const RangeSlice& slice, const SelectRangesScratch& scratch, int64_t q_head, Span tile,
             GroupMap* map) {
  switch (slice.modes[static_cast<size_t>(q_head)]) {
    case HeadMode::kDense:
      map->Add(0, tile.end);
      break;
    case HeadMode::kAShape: {
      const HeadPattern& pattern = slice.args.heads[q_head].pattern;
      map->Add(0, pattern.a);
      if (pattern.b > 0) map->Add(tile.first - pattern.b + 1, tile.end);
      AddForced(slice, tile, map);
      break;
    }
    case HeadMode::kForced:
      AddForced(slice, tile, map);
      break;
    case HeadMode::kPooled:
      AddBlocks(slice, scratch, q_head, tile, map);
      break;
    case HeadMode::kProbe:
      AddCells(slice, scratch, q_head, tile, map);
      break;
  }
}

void AddStats(RangeStats* stats, int64_t considered, int64_t selected) {
  std::atomic_ref(stats->blocks_considered).fetch_add(considered, std::memory_order_relaxed);
  std::atomic_ref(stats->blocks_selected).fetch_add(selected, std::memory_order_relaxed);
}

}  // namespace

int64_t DenseFrom(const RangeSlice& slice) {
  const PrefillDials& dials = slice.dials();
  const int64_t prompt = slice.part().prompt_tokens;
  if (prompt < dials.dense_below_tokens) return 0;
  int64_t from = prompt - dials.last_rows;
  if (slice.args.path.correct != PrefillCorrectKind::kNone) {
    const int64_t stride = std::max(dials.correct_stride_rows, 1);
    from = std::min(from, prompt / stride * stride - dials.correct_last_rows);
  }
  return std::max<int64_t>(from, 0);
}

UnitSet KeptBlocks(const RangeSlice& slice, const SelectRangesScratch& scratch, int64_t q_head,
                   int64_t query_block) {
  const int64_t words = CeilDiv(slice.key_blocks(), 64);
  const int64_t row = q_head * slice.query_blocks() + query_block;
  return UnitSet({scratch.kept.data() + row * words, static_cast<size_t>(words)});
}

void WriteRanges(const RangeSlice& slice, SelectRangesScratch& scratch) {
  const PrefillChunk& chunk = slice.part().chunk;
  const RangeArrays& out = slice.args.out;
  const int64_t dense_from = DenseFrom(slice);
  const int64_t chunk_tiles = CeilDiv(chunk.rows, kTileTokens);
  const int64_t first_tile = (slice.rows.first - chunk.first_position) / kTileTokens;
  const int64_t tiles = CeilDiv(slice.rows.tokens(), kTileTokens);
  slice.pool.ParallelFor(slice.q_heads() * tiles, [&](int64_t task, int worker) {
    const int64_t q_head = task / tiles;
    const int64_t first = slice.rows.first + task % tiles * kTileTokens;
    const Span tile{first, std::min(first + kTileTokens, slice.rows.end)};
    const int64_t list =
        out.chunk_offsets[slice.chunk] + q_head * chunk_tiles + first_tile + task % tiles;
    const bool dense =
        slice.modes[static_cast<size_t>(q_head)] == HeadMode::kDense || tile.end > dense_from;
    int64_t at = list * out.stride;
    out.begins[list] = at;
    GroupMap map(&scratch.workers[static_cast<size_t>(worker)].words, tile.end);
    if (dense) {
      map.Add(0, tile.end);
    } else {
      FillMap(slice, scratch, q_head, tile, &map);
    }
    map.ForRuns([&](int64_t begin, int64_t end) {
      out.begin[at] = static_cast<int32_t>(begin);
      out.end[at++] = static_cast<int32_t>(end);
    });
    out.ends[list] = at;
    if (slice.args.stats == nullptr) return;
    AddStats(slice.args.stats + static_cast<int64_t>(slice.chunk) * slice.q_heads() + q_head,
             CeilDiv(tile.end, kStatTokens),
             dense ? BlocksOfShape(ShapeOf(slice, q_head), tile) : map.Blocks());
  });
}

}  // namespace lacuna::kernels::cpu
