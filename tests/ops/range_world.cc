#include "tests/ops/range_world.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/ops/range_limits.h"

namespace lacuna::kernels {
namespace {

constexpr int32_t kUntouched = -77;

}  // namespace

RangeWorld::RangeWorld(std::shared_ptr<Backend> backend, const BackendCase& which, RangeSpec spec,
                       float spread, uint32_t seed)
    : backend_(std::move(backend)), which_(which), spec_(std::move(spec)), random_(seed) {
  if (spec_.heads.empty()) {
    spec_.heads.assign(static_cast<size_t>(spec_.q_heads), {.pattern = {}, .p = spec_.p});
  }
  std::normal_distribution<float> normal;
  q_.resize(static_cast<size_t>(spec_.tokens * spec_.q_heads * spec_.head_dim));
  k_.resize(static_cast<size_t>(spec_.tokens * spec_.kv_heads * spec_.head_dim));
  for (float& x : q_) x = Rounded(spread * normal(random_), which_.precision);
  for (float& x : k_) x = Rounded(normal(random_), which_.precision);
  const int pages = spec_.tokens / spec_.page_tokens + 2;
  page_table_.resize(static_cast<size_t>(pages));
  std::iota(page_table_.begin(), page_table_.end(), 0);
  std::shuffle(page_table_.begin(), page_table_.end(), random_);
  pool_ = {nullptr, which_.precision, pages, spec_.kv_heads, spec_.head_dim, spec_.page_tokens};
  pool_memory_ = std::make_unique<TestMemory>(*backend_, static_cast<size_t>(pool_.Bytes()), 0xff);
}

void RangeWorld::ChangeKeysFrom(int token) {
  std::normal_distribution<float> normal(0.0f, 3.0f);
  for (size_t i = Index(token, 0, spec_.kv_heads, 0); i < k_.size(); ++i) {
    k_[i] = Rounded(normal(random_), which_.precision);
  }
}

void RangeWorld::Append() {
  const TestPlace place{backend_.get(), which_.aligned};
  TestTensor k(place, which_.precision, spec_.tokens, spec_.kv_heads * spec_.head_dim);
  std::vector<int32_t> slots;
  for (int token = 0; token < spec_.tokens; ++token) {
    for (int i = 0; i < spec_.kv_heads * spec_.head_dim; ++i) {
      k.set(token, i, k_[Index(token, 0, spec_.kv_heads, i)]);
    }
    slots.push_back(page_table_[static_cast<size_t>(token / spec_.page_tokens)] *
                        spec_.page_tokens +
                    token % spec_.page_tokens);
  }
  TestArray<int32_t> slot_memory(*backend_, slots);
  Stream stream;
  pool_.data = pool_memory_->device();
  ASSERT_EQ(AppendKv(*backend_,
                     {k.view3(spec_.kv_heads), k.view3(spec_.kv_heads),
                      TensorView(slot_memory.device(), DType::kI32, {spec_.tokens}), pool_},
                     stream),
            OkStatus());
}

RangeLists RangeWorld::Run(const std::vector<int>& cuts, bool one_call) {
  Append();
  stats_.assign(static_cast<size_t>(spec_.q_heads), {});
  RangeLists lists;
  std::vector<Chunk> chunks;
  for (size_t i = 0; i + 1 < cuts.size(); ++i) {
    chunks.emplace_back(cuts[i], cuts[i + 1]);
    if (one_call) continue;
    RunCall(chunks, &lists);
    chunks.clear();
  }
  if (one_call) RunCall(chunks, &lists);
  return lists;
}

// The chunks' rows stand in q in reverse order of the chunks, after one row that nobody owns.
void RangeWorld::RunCall(const std::vector<Chunk>& chunks, RangeLists* lists) {
  const TestPlace place{backend_.get(), which_.aligned};
  int rows = 1, end = 0;
  for (const auto& [first, last] : chunks) {
    rows += last - first;
    end = std::max(end, last);
  }
  const int columns = spec_.q_heads * spec_.head_dim;
  TestTensor q(place, which_.precision, rows, columns, columns + 3);
  std::vector<RangeChunk> parts;
  std::vector<int32_t> pages, logical;
  std::vector<int64_t> page_offsets{0}, list_offsets;
  int64_t count = 0;
  int row = rows;
  for (const auto& [first, last] : chunks) {
    row -= last - first;
    parts.push_back({{row, last - first, first}, spec_.tokens, spec_.dials});
    for (int token = first; token < last; ++token) {
      for (int i = 0; i < columns; ++i) {
        q.set(row + token - first, i, q_[Index(token, 0, spec_.q_heads, i)]);
      }
    }
    for (int page = 0; page * spec_.page_tokens < last; ++page) {
      pages.push_back(page_table_[static_cast<size_t>(page)]);
      logical.push_back(page);
    }
    page_offsets.push_back(static_cast<int64_t>(pages.size()));
    list_offsets.push_back(count);
    count += int64_t{spec_.q_heads} * CeilDiv(last - first, 64);
  }
  const int64_t stride = RangesMax(spec_.path, end);
  const auto entries = static_cast<size_t>(count * stride);
  TestArray<int32_t> begin(*backend_, std::vector<int32_t>(entries, kUntouched));
  TestArray<int32_t> finish(*backend_, std::vector<int32_t>(entries, kUntouched));
  TestArray<int64_t> begins(*backend_, std::vector<int64_t>(static_cast<size_t>(count)));
  TestArray<int64_t> ends(*backend_, std::vector<int64_t>(static_cast<size_t>(count)));
  std::vector<StaticShape> shapes;
  for (size_t i = 0; i < parts.size(); ++i) {
    shapes.insert(shapes.end(), spec_.shapes.begin(), spec_.shapes.end());
  }
  TestArray<int32_t> page_memory(*backend_, pages), logical_memory(*backend_, logical);
  TestArray<int64_t> offset_memory(*backend_, page_offsets), list_memory(*backend_, list_offsets);
  TestArray<PrefillHead> heads(*backend_, spec_.heads);
  TestArray<StaticShape> shape_memory(*backend_, shapes);
  TestArray<RangeStats> stats(
      *backend_, std::vector<RangeStats>(parts.size() * static_cast<size_t>(spec_.q_heads)));
  const int64_t* offsets = offset_memory.device();
  const SelectRangesArgs args{.q = q.view3(spec_.q_heads),
                              .pool = pool_,
                              .chunks = parts,
                              .lists = {page_memory.device(), logical_memory.device(), offsets,
                                        offsets + 1, static_cast<int64_t>(parts.size())},
                              .path = spec_.path,
                              .heads = heads.device(),
                              .shapes = shapes.empty() ? nullptr : shape_memory.device(),
                              .scale = static_cast<float>(scale()),
                              .out = {begin.device(), finish.device(), begins.device(),
                                      ends.device(), stride, list_memory.device()},
                              .stats = stats.device()};
  Stream stream;
  ASSERT_EQ(run_ != nullptr ? run_(args) : SelectRanges(*backend_, args, stream), OkStatus());
  const std::vector<RangeStats> added = stats.Read();
  for (size_t i = 0; i < added.size(); ++i) {
    RangeStats& sum = stats_[i % static_cast<size_t>(spec_.q_heads)];
    sum.blocks_considered += added[i].blocks_considered;
    sum.blocks_selected += added[i].blocks_selected;
  }
  const Written written{begin.Read(), finish.Read(), begins.Read(),
                        ends.Read(),  list_offsets,  stride};
  for (size_t c = 0; c < chunks.size(); ++c) Collect(chunks[c], c, written, lists);
}

// Lists of one chunk: well formed, and nothing written past their ends.
void RangeWorld::Collect(const Chunk& chunk, size_t index, const Written& out,
                         RangeLists* lists) const {
  const auto [first, last] = chunk;
  const int tiles = static_cast<int>(CeilDiv(last - first, 64));
  for (int item = 0; item < spec_.q_heads * tiles; ++item) {
    const int64_t list = out.chunk_offsets[index] + item;
    const int64_t ends = out.ends[static_cast<size_t>(list)];
    ASSERT_EQ(out.begins[static_cast<size_t>(list)], list * out.stride);
    ASSERT_LE(ends, (list + 1) * out.stride);
    const int tile_end = std::min(first + 64 * (item % tiles + 1), last);
    std::vector<KeyRange>& ranges = (*lists)[{item / tiles, first / 64 + item % tiles}];
    int before = -1;
    for (int64_t i = list * out.stride; i < (list + 1) * out.stride; ++i) {
      const KeyRange range{out.begin[static_cast<size_t>(i)], out.end[static_cast<size_t>(i)]};
      if (i >= ends) {
        ASSERT_EQ(range, (KeyRange{kUntouched, kUntouched}));
        continue;
      }
      ASSERT_GT(range.begin, before);  // touching ranges would be one
      ASSERT_GT(range.end, range.begin);
      ASSERT_LE(range.end, RoundUp(tile_end, 16));
      ASSERT_EQ(range.begin % 16, 0);
      ASSERT_EQ(range.end % 16, 0);
      before = range.end;
      ranges.push_back(range);
    }
  }
}

}  // namespace lacuna::kernels
