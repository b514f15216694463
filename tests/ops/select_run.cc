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

SelectOutcome SelectRun::Run(int64_t begin, int64_t end, ChoiceStore& choices) {
  const SelectShape& shape = world_.shape();
  Backend& backend = world_.backend();
  const int64_t rows = end - begin, lists = rows * shape.kv_heads;
  const int64_t owners = path_.owner == OwnerKind::kLayer ? 1 : shape.kv_heads;
  std::vector<int32_t> pages, logical, positions;
  std::vector<int64_t> offsets{0};
  std::vector<SelectRow> what;
  std::vector<StaticShape> shapes;
  for (int64_t i = begin; i < end; ++i) {
    const RowCase& one = row(i);
    world_.AppendTo(one.sequence, one.tokens);
    for (int p = 0; p < CeilDiv(one.tokens, shape.page_tokens); ++p) {
      pages.push_back(world_.page(one.sequence, p));
      logical.push_back(p);
    }
    offsets.push_back(static_cast<int64_t>(pages.size()));
    positions.push_back(one.tokens - 1);
    what.push_back(one.what);
    for (int kv = 0; kv < shape.kv_heads; ++kv) {
      shapes.push_back(one.shapes.empty() ? StaticShape{} : one.shapes[static_cast<size_t>(kv)]);
    }
  }
  const auto slots = static_cast<size_t>(std::ranges::max(what, {}, &SelectRow::choice).choice + 1);
  choices.masks.resize(
      std::max(choices.masks.size(), slots * static_cast<size_t>(owners) * kPagesMax),
      0x5555555555555555u);
  choices.queries.resize(std::max(choices.queries.size(), slots * static_cast<size_t>(q_.dim())));
  const size_t entries = static_cast<size_t>(lists) * kPagesMax;
  std::vector<int32_t> out_pages(entries, -1), out_logical(entries, -1);
  std::vector<uint64_t> masks(entries);
  std::vector<int64_t> begins(static_cast<size_t>(lists), -1), ends(static_cast<size_t>(lists), -1);
  TestTensor queries({&backend, true}, backend.act_dtype(), rows, q_.dim());
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < q_.dim(); ++c) queries.set(r, c, q_.at(begin + r, c));
  }
  SelectOutcome outcome;
  outcome.dropped_lse.resize(static_cast<size_t>(rows * world_.q_heads()), -1.0f);
  outcome.stats.resize(static_cast<size_t>(lists));
  SelectKeysArgs args;
  args.q = queries.view3(world_.q_heads());
  args.pool = world_.pool();
  args.metadata = world_.metadata(path_.metadata);
  args.refine_metadata = world_.metadata(path_.refine_metadata);
  args.positions = TensorView(positions.data(), DType::kI32, {rows});
  args.pages = {pages.data(), logical.data(), offsets.data(), offsets.data() + 1, rows};
  args.path = path_;
  args.rows = what.data();
  args.thresholds = thresholds_.empty() ? nullptr : thresholds_.data();
  args.shapes = shapes.data();
  args.scale = kScale;
  args.choices = {choices.masks.data(), owners, kPagesMax, choices.queries.data()};
  args.out = {out_pages.data(), out_logical.data(), masks.data(),
              begins.data(),    ends.data(),        kPagesMax};
  args.stats = outcome.stats.data();
  args.dropped_lse =
      TensorView(outcome.dropped_lse.data(), DType::kF32, {rows, int64_t{world_.q_heads()}});
  Stream stream;
  status_ = SelectKeys(backend, args, stream);
  for (size_t i = 0; i < static_cast<size_t>(lists); ++i) {
    auto& list = outcome.lists.emplace_back();
    for (auto at = static_cast<size_t>(begins[i]);
         status_.ok() && at < static_cast<size_t>(ends[i]); ++at) {
      list.push_back({out_pages[at], out_logical[at], masks[at]});
    }
  }
  return outcome;
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
