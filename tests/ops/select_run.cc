// Calls of SelectKeys on a SelectWorld, and what they give against what they should.
#include <bit>

#include "tests/ops/select_fixture.h"

namespace lacuna::kernels {

SelectRun::SelectRun(SelectWorld& world, const DecodePath& path, std::vector<RowCase> rows,
                     std::vector<float> thresholds)
    : world_(world),
      path_(path),
      rows_(std::move(rows)),
      thresholds_(std::move(thresholds)),
      q_({&world.backend(), true}, world.backend().act_dtype(), static_cast<int64_t>(rows_.size()),
         world.q_heads() * world.shape().head_dim) {
  for (int64_t r = 0; r < q_.rows(); ++r) {
    for (int64_t c = 0; c < q_.dim(); ++c) q_.set(r, c, world.Draw());
  }
  world.AddMetadata(path.metadata);
  world.AddMetadata(path.refine_metadata);
}

// What a call reads and writes, where its backend wants it.
struct SelectRun::CallMemory final {
  CallMemory(SelectRun& run, int64_t begin, int64_t end, const ChoiceStore& choices);

  SelectKeysArgs Args(SelectRun& run);
  SelectOutcome Read(const Status& status) const;

  int64_t rows, lists, owners;
  TestTensor queries;
  std::vector<int32_t> page_ids, logical_pages, row_positions;
  std::vector<int64_t> page_offsets{0};
  std::vector<SelectRow> row_dials;
  std::vector<StaticShape> row_shapes;

  using Array32 = std::unique_ptr<TestArray<int32_t>>;
  using Array64 = std::unique_ptr<TestArray<int64_t>>;
  Array32 pages, logical, positions, out_pages, out_logical;
  Array64 offsets, begins, ends;
  std::unique_ptr<TestArray<SelectRow>> what;
  std::unique_ptr<TestArray<StaticShape>> shapes;
  std::unique_ptr<TestArray<float>> thresholds, kept_queries, dropped_lse;
  std::unique_ptr<TestArray<uint64_t>> kept_masks, masks;
  std::unique_ptr<TestArray<SelectStats>> stats;
};

SelectRun::CallMemory::CallMemory(SelectRun& run, int64_t begin, int64_t end,
                                  const ChoiceStore& choices)
    : rows(end - begin),
      lists(rows * run.world_.shape().kv_heads),
      owners(run.path_.owner == OwnerKind::kLayer ? 1 : run.world_.shape().kv_heads),
      queries({&run.world_.backend(), true}, run.world_.backend().act_dtype(), rows, run.q_.dim()) {
  const SelectShape& shape = run.world_.shape();
  for (int64_t i = begin; i < end; ++i) {
    const RowCase& one = run.row(i);
    run.world_.AppendTo(one.sequence, one.tokens);
    for (int p = 0; p < CeilDiv(one.tokens, shape.page_tokens); ++p) {
      page_ids.push_back(run.world_.page(one.sequence, p));
      logical_pages.push_back(p);
    }
    page_offsets.push_back(static_cast<int64_t>(page_ids.size()));
    row_positions.push_back(one.tokens - 1);
    row_dials.push_back(one.what);
    for (int kv = 0; kv < shape.kv_heads; ++kv) {
      row_shapes.push_back(one.shapes.empty() ? StaticShape{}
                                              : one.shapes[static_cast<size_t>(kv)]);
    }
    for (int64_t c = 0; c < run.q_.dim(); ++c) queries.set(i - begin, c, run.q_.at(i, c));
  }
  const auto make = [&]<typename T>(std::unique_ptr<TestArray<T>>& to,
                                    const std::vector<T>& values) {
    to = std::make_unique<TestArray<T>>(run.world_.backend(), values);
  };
  const auto count = static_cast<size_t>(lists), entries = count * kPagesMax;
  make(pages, page_ids);
  make(logical, logical_pages);
  make(positions, row_positions);
  make(offsets, page_offsets);
  make(what, row_dials);
  make(shapes, row_shapes);
  make(thresholds, run.thresholds_);
  make(kept_queries, choices.queries);
  make(kept_masks, choices.masks);
  make(out_pages, std::vector<int32_t>(entries, -1));
  make(out_logical, std::vector<int32_t>(entries, -1));
  make(masks, std::vector<uint64_t>(entries));
  make(begins, std::vector<int64_t>(count, -1));
  make(ends, std::vector<int64_t>(count, -1));
  make(stats, std::vector<SelectStats>(count));
  make(dropped_lse, std::vector<float>(static_cast<size_t>(rows * run.world_.q_heads()), -1.0f));
}

SelectKeysArgs SelectRun::CallMemory::Args(SelectRun& run) {
  SelectWorld& world = run.world_;
  SelectKeysArgs args;
  args.q = queries.view3(world.q_heads());
  args.pool = world.pool();
  args.metadata = world.metadata(run.path_.metadata);
  args.refine_metadata = world.metadata(run.path_.refine_metadata);
  args.positions = TensorView(positions->device(), DType::kI32, {rows});
  args.pages = {pages->device(), logical->device(), offsets->device(), offsets->device() + 1, rows};
  args.path = run.path_;
  args.rows = what->device();
  args.thresholds = run.thresholds_.empty() ? nullptr : thresholds->device();
  args.shapes = shapes->device();
  args.scale = kScale;
  args.choices = {kept_masks->device(), owners, kPagesMax, kept_queries->device()};
  args.out = {out_pages->device(), out_logical->device(), masks->device(),
              begins->device(),    ends->device(),        kPagesMax};
  args.stats = stats->device();
  args.dropped_lse =
      TensorView(dropped_lse->device(), DType::kF32, {rows, int64_t{world.q_heads()}});
  return args;
}

SelectOutcome SelectRun::CallMemory::Read(const Status& status) const {
  SelectOutcome outcome;
  outcome.stats = stats->Read();
  outcome.dropped_lse = dropped_lse->Read();
  const auto from = begins->Read(), to = ends->Read();
  const auto page = out_pages->Read(), place = out_logical->Read();
  const auto mask = masks->Read();
  for (size_t i = 0; i < static_cast<size_t>(lists); ++i) {
    auto& list = outcome.lists.emplace_back();
    for (auto at = static_cast<size_t>(from[i]); status.ok() && at < static_cast<size_t>(to[i]);
         ++at) {
      list.push_back({page[at], place[at], mask[at]});
    }
  }
  return outcome;
}

SelectOutcome SelectRun::Run(int64_t begin, int64_t end, ChoiceStore& choices) {
  int32_t slot_last = 0;
  for (int64_t i = begin; i < end; ++i) slot_last = std::max(slot_last, row(i).what.choice);
  const int64_t owners = path_.owner == OwnerKind::kLayer ? 1 : world_.shape().kv_heads;
  const auto slots = static_cast<size_t>(slot_last) + 1;
  choices.masks.resize(
      std::max(choices.masks.size(), slots * static_cast<size_t>(owners) * kPagesMax),
      0x5555555555555555u);
  choices.queries.resize(std::max(choices.queries.size(), slots * static_cast<size_t>(q_.dim())));
  CallMemory memory(*this, begin, end, choices);
  Stream stream;
  status_ = SelectKeys(world_.backend(), memory.Args(*this), stream);
  choices.masks = memory.kept_masks->Read();
  choices.queries = memory.kept_queries->Read();
  return memory.Read(status_);
}

void SelectRun::ExpectRow(int64_t i, const SelectOutcome& outcome, int64_t at,
                          const std::vector<Tokens>& expected) {
  const RowCase& one = row(i);
  const int page_tokens = world_.shape().page_tokens, kv_heads = world_.shape().kv_heads;
  const uint64_t full = page_tokens == 64 ? ~uint64_t{0} : (uint64_t{1} << page_tokens) - 1;
  const bool dense = one.what.counts.dense || path_.select == SelectKind::kAll;
  for (int kv = 0; kv < kv_heads; ++kv) {
    const std::string where = "row " + std::to_string(i) + " of " + std::to_string(one.tokens) +
                              " tokens, kv head " + std::to_string(kv);
    const Tokens& tokens = expected[static_cast<size_t>(kv)];
    const auto list_at = static_cast<size_t>(at * kv_heads + kv);
    const auto& list = outcome.lists[list_at];
    size_t next = 0;
    int64_t pages = 0, keys = 0;
    for (int p = 0; p * page_tokens < one.tokens; ++p) {
      uint64_t want = 0, visible = 0;
      for (int t = 0; t < page_tokens && p * page_tokens + t < one.tokens; ++t) {
        visible |= uint64_t{1} << t;
        want |= uint64_t{tokens[static_cast<size_t>(p * page_tokens + t)]} << t;
      }
      if (want == 0) continue;
      ++pages;
      keys += std::popcount(want);
      ASSERT_LT(next, list.size()) << where << ": page " << p << " is missing";
      const auto& entry = list[next++];
      ASSERT_EQ(entry.logical, p) << where;
      ASSERT_EQ(entry.page, world_.page(one.sequence, p)) << where;
      if (Windowed(one, kv) || dense) {
        ASSERT_EQ(entry.mask, full) << where;
      } else {
        ASSERT_EQ(entry.mask & visible, want) << where << ", page " << p;
        ASSERT_EQ(entry.mask == full, want == visible) << where << ", page " << p;
      }
    }
    ASSERT_EQ(next, list.size()) << where << ": more pages than expected";
    const SelectStats& stats = outcome.stats[list_at];
    const bool counts = !dense && !Windowed(one, kv);
    ASSERT_EQ(stats.layers, counts ? 1 : 0) << where;
    ASSERT_EQ(stats.pages_considered, counts ? CeilDiv(one.tokens, page_tokens) : 0) << where;
    ASSERT_EQ(stats.pages_selected, counts ? pages : 0) << where;
    ASSERT_EQ(stats.keys_selected, counts ? keys : 0) << where;
    ASSERT_TRUE(stats.estimated_mass >= 0 && stats.estimated_mass <= 1.0001f) << where;
    for (int h = 0; h < world_.shape().group; ++h) {
      const int head = kv * world_.shape().group + h;
      const float got = outcome.dropped_lse[static_cast<size_t>(at * world_.q_heads() + head)];
      const float threshold =
          path_.head_thresholds ? thresholds_[static_cast<size_t>(head)] : one.what.threshold;
      if (!counts || path_.correct == DecodeCorrectKind::kNone || keys == one.tokens) {
        ASSERT_EQ(got, -std::numeric_limits<float>::infinity()) << where;
      } else {
        ASSERT_NEAR(got, threshold + std::log(static_cast<double>(one.tokens - keys)), 1e-5)
            << where;
      }
    }
  }
}

}  // namespace lacuna::kernels
