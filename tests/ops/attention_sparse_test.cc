// What sparse plans ask of both attentions, against double precision: token masks of pages, static
// shapes per row and kv head, dropped keys in the denominator. Keys that nobody lists are NaN.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "tests/ops/attention_fixture.h"

namespace lacuna::kernels {
namespace {

class AttentionSparse : public ::testing::TestWithParam<BackendCase> {
 protected:
  void SetUp() override { SkipsOrFails(MakeTestBackend(GetParam())); }
  AttentionSpec Base() const {
    AttentionSpec spec;
    spec.which = GetParam();
    return spec;
  }
};

// Masks that single keys, groups of 16 and whole pages make, some pages left out.
uint64_t RandomMask(AttentionWorld* world, int page_tokens) {
  const uint64_t page = page_tokens == 64 ? ~uint64_t{0} : (uint64_t{1} << page_tokens) - 1;
  uint64_t groups = 0, single = 0;
  for (int i = 0; i < page_tokens; ++i) {
    if (std::abs(world->Random(1.0f)) < 0.2f) single |= uint64_t{1} << i;
  }
  for (int i = 0; i < page_tokens; i += 16) {
    if (std::abs(world->Random(1.0f)) < 0.4f) groups |= uint64_t{0xffff} << i;
  }
  switch (static_cast<int>(std::abs(world->Random(1.0f)) * 5)) {
    case 0:
      return 0;
    case 1:
      return page;
    case 2:
      return groups;
    case 3:
      return groups | single;
    default:
      return single;
  }
}

struct SparseDecode final {
  std::vector<int> lengths;  // of the sequences; row i attends to sequence i
  bool lists_per_head = false;
  bool masks = true;
  bool shapes = false;
  bool dropped = false;
  bool deterministic = false;
};

// The shape of a row in a kv head: some read everything.
StaticShape ShapeOf(int row, int kv_head) {
  const StaticShape shapes[] = {{0, 0}, {70, 5}, {1, 0}, {130, 64}, {333, 20}};
  return shapes[(row + 2 * kv_head) % 5];
}

// No query at `position` sees any key of this one's group of 16.
bool GroupHidden(const StaticShape& shape, int key, int position) {
  const int last = key / 16 * 16 + 15;
  return shape.window_tokens > 0 && last <= position - shape.window_tokens &&
         key / 16 * 16 >= shape.sink_tokens;
}

void CheckDecode(const AttentionSpec& spec, const SparseDecode& test) {
  SCOPED_TRACE(Describe(spec) + (test.deterministic ? " deterministic" : ""));
  AttentionWorld world(MakeTestBackend(spec.which, 2, test.deterministic).value(), spec,
                       test.lengths, 21);
  const auto rows = static_cast<int>(test.lengths.size());
  const int per_row = test.lists_per_head ? spec.kv_heads : 1;
  ListBuilder lists;
  std::vector<std::vector<uint64_t>> masks;  // [list][page]
  std::vector<int32_t> positions;
  std::vector<StaticShape> shapes;
  std::vector<float> dropped;
  for (int row = 0; row < rows; ++row) {
    positions.push_back(row % 2 == 0 ? world.tokens(row) - 1 : world.tokens(row) / 2);
    for (int i = 0; i < per_row; ++i) {
      auto& kept = masks.emplace_back();
      for (int page = 0; page < world.pages(row); ++page) {
        kept.push_back(test.masks ? RandomMask(&world, spec.page_tokens) : ~uint64_t{0});
        if (kept.back() == 0) continue;
        world.AddPage(&lists, row, page);
        if (test.masks) lists.masks.push_back(kept.back());
      }
      lists.Close();
    }
    for (int head = 0; head < spec.kv_heads; ++head) {
      shapes.push_back(test.shapes ? ShapeOf(row, head) : spec.shape);
    }
    for (int head = 0; head < spec.q_heads; ++head) {
      dropped.push_back(head % 3 == 0 ? -std::numeric_limits<float>::infinity()
                                      : world.Random(6.0f));
    }
  }
  const auto listed = [&](int row, int kv_head, int key) {
    const auto list = static_cast<size_t>(row * per_row + (per_row > 1 ? kv_head : 0));
    return (masks[list][static_cast<size_t>(key / spec.page_tokens)] >> (key % spec.page_tokens) &
            1) != 0;
  };
  const auto shape = [&](int row, int kv_head) {
    return shapes[static_cast<size_t>(row * spec.kv_heads + kv_head)];
  };
  for (int row = 0; row < rows; ++row) {
    world.Poison(row, [&](int key, int kv_head) {
      return !listed(row, kv_head, key) ||
             GroupHidden(shape(row, kv_head), key, positions[static_cast<size_t>(row)]);
    });
  }
  TestTensor q = world.MakeTensor(spec.dtype(), rows, spec.q_heads * spec.head_dim);
  TestTensor out = world.MakeTensor(spec.dtype(), rows, spec.q_heads * spec.head_dim);
  TestTensor lse = world.MakeTensor(DType::kF32, rows, spec.q_heads);
  TestTensor drop = world.MakeTensor(DType::kF32, rows, spec.q_heads);
  world.FillRandom(&q, 4.0f);
  for (int row = 0; row < rows; ++row) {
    for (int head = 0; head < spec.q_heads; ++head) {
      drop.set(row, head, dropped[static_cast<size_t>(row * spec.q_heads + head)]);
    }
  }
  DeviceLists device_lists(world.backend(), lists);
  TestArray<int32_t> device_positions(world.backend(), positions);
  TestArray<StaticShape> device_shapes(world.backend(), shapes);
  const AttendDecodeArgs args{
      .q = q.view3(spec.q_heads),
      .pool = world.pool(),
      .positions = TensorView(device_positions.device(), DType::kI32, {rows}),
      .lists = device_lists.view(),
      .lists_per_row = per_row,
      .params = world.params(),
      .shapes = test.shapes ? device_shapes.device() : nullptr,
      .dropped_lse = test.dropped ? drop.view() : TensorView(),
      .out = out.view3(spec.q_heads),
      .lse = lse.view()};
  Stream stream;
  ASSERT_EQ(AttendDecode(world.backend(), args, stream), OkStatus());

  const int group = spec.q_heads / spec.kv_heads;
  for (int row = 0; row < rows; ++row) {
    for (int head = 0; head < spec.q_heads; ++head) {
      const int kv_head = head / group;
      AttentionWorld::Extra extra{.shape = shape(row, kv_head)};
      if (test.dropped) {
        extra.dropped_lse = double{dropped[static_cast<size_t>(row * spec.q_heads + head)]};
      }
      const auto expected = world.Reference(
          q, row, head, row, positions[static_cast<size_t>(row)],
          [&](int key) { return listed(row, kv_head, key); }, extra);
      world.ExpectHead(out, lse, row, head, expected);
      if (testing::Test::HasFatalFailure()) return;
    }
  }
  out.ExpectGuards();
  lse.ExpectGuards();
}

TEST_P(AttentionSparse, DecodeMasks) {
  for (int page_tokens : {16, 64}) {
    AttentionSpec spec = Base();
    spec.page_tokens = page_tokens;
    CheckDecode(spec, {.lengths = {1, 15, 17, 64, 65, 130, 700}});
    CheckDecode(spec, {.lengths = {1900}});
    CheckDecode(spec, {.lengths = {1900, 700, 40}, .lists_per_head = true});
    CheckDecode(spec, {.lengths = {1900}, .lists_per_head = true, .deterministic = true});
    spec.shape = {200, 20};
    CheckDecode(spec, {.lengths = {1900, 333}, .lists_per_head = true});
  }
  for (int head_dim : {16, 48, 80, 128, 256}) {
    AttentionSpec spec = Base();
    spec.head_dim = head_dim;
    spec.q_heads = 7;
    spec.kv_heads = 1;
    CheckDecode(spec, {.lengths = {900, 40}});
  }
  AttentionSpec capped = Base();
  capped.softcap = 2.5f;
  capped.sink_logits = true;
  CheckDecode(capped, {.lengths = {900, 40}, .lists_per_head = true});
}

TEST_P(AttentionSparse, DecodeShapesPerRowAndHead) {
  for (int page_tokens : {16, 64}) {
    AttentionSpec spec = Base();
    spec.page_tokens = page_tokens;
    spec.q_heads = 12;
    spec.kv_heads = 4;
    spec.shape = {9, 1};  // to be ignored
    CheckDecode(spec, {.lengths = {1900, 70, 5, 700, 300}, .masks = false, .shapes = true});
    CheckDecode(spec, {.lengths = {1900}, .masks = false, .shapes = true});
    CheckDecode(spec, {.lengths = {1900, 400}, .lists_per_head = true, .shapes = true});
  }
}

TEST_P(AttentionSparse, DroppedKeysJoinTheDenominator) {
  for (const bool sink_logits : {false, true}) {
    AttentionSpec spec = Base();
    spec.sink_logits = sink_logits;
    CheckDecode(spec, {.lengths = {700, 40, 1}, .masks = false, .dropped = true});
    CheckDecode(spec, {.lengths = {1900}, .lists_per_head = true, .dropped = true});
  }
}

// Pages outside the window may be anybody's: those of a streaming head are not stored at all.
TEST_P(AttentionSparse, PagesOutsideTheWindowAreNotRead) {
  for (int page_tokens : {16, 64}) {
    AttentionSpec spec = Base();
    spec.page_tokens = page_tokens;
    spec.shape = {256, 16};
    for (const bool deterministic : {false, true}) {
      AttentionWorld world(MakeTestBackend(spec.which, 2, deterministic).value(), spec, {1900}, 5);
      ListBuilder lists;
      world.AddAllPages(&lists, 0);
      for (int page = 64 / page_tokens; page < (1900 - 256) / 64 * 64 / page_tokens; ++page) {
        lists.pages[static_cast<size_t>(page)] = world.unwritten_page();
      }
      lists.Close();
      TestTensor q = world.MakeTensor(spec.dtype(), 1, spec.q_heads * spec.head_dim);
      TestTensor out = world.MakeTensor(spec.dtype(), 1, spec.q_heads * spec.head_dim);
      TestTensor lse = world.MakeTensor(DType::kF32, 1, spec.q_heads);
      world.FillRandom(&q, 4.0f);
      DeviceLists device_lists(world.backend(), lists);
      TestArray<int32_t> positions(world.backend(), {1899});
      const AttendDecodeArgs args{.q = q.view3(spec.q_heads),
                                  .pool = world.pool(),
                                  .positions = TensorView(positions.device(), DType::kI32, {1}),
                                  .lists = device_lists.view(),
                                  .params = world.params(),
                                  .dropped_lse = {},
                                  .out = out.view3(spec.q_heads),
                                  .lse = lse.view()};
      Stream stream;
      ASSERT_EQ(AttendDecode(world.backend(), args, stream), OkStatus());
      for (int head = 0; head < spec.q_heads; ++head) {
        world.ExpectHead(out, lse, 0, head,
                         world.Reference(q, 0, head, 0, 1899, [](int) { return true; }));
        if (testing::Test::HasFatalFailure()) return;
      }
    }
  }
}

struct SparsePrefill final {
  bool masks = false;
  bool shapes = false;
  bool ranges = false;
};

// Two sequences, one chunk each. Ranges: every second block of 48 keys, shifted by head and tile.
void CheckPrefill(const AttentionSpec& spec, const SparsePrefill& test) {
  SCOPED_TRACE(Describe(spec));
  const std::vector<std::pair<int, int>> spans{{150, 331}, {0, 70}};
  AttentionWorld world(MakeTestBackend(spec.which).value(), spec, {331, 70}, 9);
  std::vector<PrefillChunk> chunks;
  ListBuilder lists;
  std::vector<std::vector<uint64_t>> masks;
  std::vector<StaticShape> shapes;
  std::vector<int32_t> begin, end;
  std::vector<int64_t> offsets{0}, chunk_offsets;
  int rows = 0;
  for (int s = 0; s < 2; ++s) {
    const auto [first, past] = spans[static_cast<size_t>(s)];
    chunks.push_back({rows, past - first, first});
    auto& kept = masks.emplace_back();
    for (int page = 0; page < world.pages(s); ++page) {
      kept.push_back(test.masks ? RandomMask(&world, spec.page_tokens) : ~uint64_t{0});
      if (kept.back() == 0) continue;
      world.AddPage(&lists, s, page);
      if (test.masks) lists.masks.push_back(kept.back());
    }
    lists.Close();
    for (int head = 0; head < spec.kv_heads; ++head) shapes.push_back(ShapeOf(s, head));
    chunk_offsets.push_back(static_cast<int64_t>(offsets.size()) - 1);
    for (int list = 0; list < spec.q_heads * ((past - first + 63) / 64); ++list) {
      for (int key = 16 * (list % 5); key < past; key += 96) {
        begin.push_back(key);
        end.push_back(key + 48);
      }
      offsets.push_back(static_cast<int64_t>(begin.size()));
    }
    rows += past - first;
  }
  const auto listed = [&](int s, int key) {
    return (masks[static_cast<size_t>(s)][static_cast<size_t>(key / spec.page_tokens)] >>
                (key % spec.page_tokens) &
            1) != 0;
  };
  for (int s = 0; s < 2; ++s) {
    world.Poison(s, [&](int key, int) { return !listed(s, key); });
  }
  TestTensor q = world.MakeTensor(spec.dtype(), rows, spec.q_heads * spec.head_dim);
  TestTensor out = world.MakeTensor(spec.dtype(), rows, spec.q_heads * spec.head_dim);
  TestTensor lse = world.MakeTensor(DType::kF32, rows, spec.q_heads);
  world.FillRandom(&q, 4.0f);
  DeviceLists device_lists(world.backend(), lists);
  TestArray<StaticShape> device_shapes(world.backend(), shapes);
  TestArray<int32_t> begins(world.backend(), begin), ends(world.backend(), end);
  TestArray<int64_t> list_offsets(world.backend(), offsets), firsts(world.backend(), chunk_offsets);
  const KeyRanges ranges{begins.device(), ends.device(), list_offsets.device(),
                         list_offsets.device() + 1, firsts.device()};
  const AttendPrefillArgs args{.q = q.view3(spec.q_heads),
                               .pool = world.pool(),
                               .chunks = chunks,
                               .lists = device_lists.view(),
                               .ranges = test.ranges ? &ranges : nullptr,
                               .params = world.params(),
                               .shapes = test.shapes ? device_shapes.device() : nullptr,
                               .out = out.view3(spec.q_heads),
                               .lse = lse.view()};
  Stream stream;
  ASSERT_EQ(AttendPrefill(world.backend(), args, stream), OkStatus());
  for (int s = 0; s < 2; ++s) {
    const PrefillChunk& chunk = chunks[static_cast<size_t>(s)];
    for (int t = 0; t < chunk.rows; ++t) {
      for (int head = 0; head < spec.q_heads; ++head) {
        const int kv_head = head / (spec.q_heads / spec.kv_heads);
        const int list = head * ((chunk.rows + 63) / 64) + t / 64;
        AttentionWorld::Extra extra;
        if (test.shapes) extra.shape = ShapeOf(s, kv_head);
        const auto expected = world.Reference(
            q, chunk.first_row + t, head, s, chunk.first_position + t,
            [&](int key) {
              const int in_period = (key - 16 * (list % 5) + 96) % 96;
              return listed(s, key) && (!test.ranges || (key >= 16 * (list % 5) && in_period < 48));
            },
            extra);
        world.ExpectHead(out, lse, chunk.first_row + t, head, expected);
        if (testing::Test::HasFatalFailure()) return;
      }
    }
  }
  out.ExpectGuards();
}

TEST_P(AttentionSparse, PrefillMasksShapesAndRanges) {
  for (int page_tokens : {16, 64}) {
    AttentionSpec spec = Base();
    spec.page_tokens = page_tokens;
    spec.q_heads = 6;
    spec.kv_heads = 3;
    CheckPrefill(spec, {.shapes = true});
    CheckPrefill(spec, {.shapes = true, .ranges = true});
    CheckPrefill(spec, {.masks = true});
    CheckPrefill(spec, {.masks = true, .shapes = true, .ranges = true});
  }
}

// Rows at a stride, each with its own end of one list: what corrects a sparse prefill.
TEST_P(AttentionSparse, StridedRowsOverOneList) {
  constexpr int kRows = 70, kStride = 3;
  AttentionSpec spec = Base();
  AttentionWorld world(MakeTestBackend(spec.which).value(), spec, {kRows * kStride}, 17);
  ListBuilder pages;
  world.AddAllPages(&pages, 0);
  pages.Close();
  DeviceLists all(world.backend(), pages);
  std::vector<int32_t> positions;
  std::vector<int64_t> begins, ends;
  for (int row = 0; row < kRows; ++row) {
    positions.push_back(row * kStride + 1);
    begins.push_back(0);
    ends.push_back(row % 2 == 0 ? world.pages(0) : positions.back() / spec.page_tokens + 1);
  }
  TestArray<int32_t> device_positions(world.backend(), positions);
  TestArray<int64_t> device_begins(world.backend(), begins), device_ends(world.backend(), ends);
  const int columns = spec.q_heads * spec.head_dim;
  TestTensor q = world.MakeTensor(spec.dtype(), kRows * kStride, columns);
  TestTensor out = world.MakeTensor(spec.dtype(), kRows, columns);
  TestTensor lse = world.MakeTensor(DType::kF32, kRows, spec.q_heads);
  world.FillRandom(&q, 4.0f);
  PageLists lists = all.view();
  lists.begins = device_begins.device();
  lists.ends = device_ends.device();
  lists.lists = kRows;
  const TensorView first = q.view3(spec.q_heads).Slice(1, 1);
  const AttendDecodeArgs args{
      .q = TensorView::Rows(first.data(), spec.dtype(), {kRows, spec.q_heads, spec.head_dim},
                            kStride * columns),
      .pool = world.pool(),
      .positions = TensorView(device_positions.device(), DType::kI32, {kRows}),
      .lists = lists,
      .params = world.params(),
      .dropped_lse = {},
      .out = out.view3(spec.q_heads),
      .lse = lse.view()};
  Stream stream;
  ASSERT_EQ(AttendDecode(world.backend(), args, stream), OkStatus());
  for (int row = 0; row < kRows; ++row) {
    for (int head = 0; head < spec.q_heads; ++head) {
      world.ExpectHead(out, lse, row, head,
                       world.Reference(q, row * kStride + 1, head, 0, row * kStride + 1,
                                       [](int) { return true; }));
      if (testing::Test::HasFatalFailure()) return;
    }
  }
  out.ExpectGuards();
}

// Ranges that hold every key change no bit.
TEST_P(AttentionSparse, FullRangesChangeNoBits) {
  for (const StaticShape& shape : {StaticShape{0, 0}, {100, 20}}) {
    AttentionSpec spec = Base();
    spec.shape = shape;
    AttentionWorld world(MakeTestBackend(spec.which, 2, true).value(), spec, {331, 70}, 23);
    ListBuilder lists;
    for (int s = 0; s < 2; ++s) {
      world.AddAllPages(&lists, s);
      lists.Close();
    }
    DeviceLists device_lists(world.backend(), lists);
    const std::vector<PrefillChunk> chunks{{0, 170, 150}, {170, 70, 0}};
    std::vector<int32_t> begin, end;
    std::vector<int64_t> offsets{0}, chunk_offsets;
    for (const PrefillChunk& chunk : chunks) {
      chunk_offsets.push_back(static_cast<int64_t>(offsets.size()) - 1);
      for (int list = 0; list < spec.q_heads * ((chunk.rows + 63) / 64); ++list) {
        const int middle = 16 * (list % 9);  // neighbours join
        for (const auto& [from, to] : {std::pair(0, middle), {middle, 336}}) {
          if (from == to) continue;
          begin.push_back(from);
          end.push_back(to);
        }
        offsets.push_back(static_cast<int64_t>(begin.size()));
      }
    }
    TestArray<int32_t> begins(world.backend(), begin), ends(world.backend(), end);
    TestArray<int64_t> list_offsets(world.backend(), offsets);
    TestArray<int64_t> firsts(world.backend(), chunk_offsets);
    const KeyRanges ranges{begins.device(), ends.device(), list_offsets.device(),
                           list_offsets.device() + 1, firsts.device()};
    TestTensor q = world.MakeTensor(spec.dtype(), 240, spec.q_heads * spec.head_dim);
    world.FillRandom(&q, 4.0f);
    const auto run = [&](const KeyRanges* limits) {
      TestTensor out = world.MakeTensor(spec.dtype(), 240, spec.q_heads * spec.head_dim);
      const AttendPrefillArgs args{.q = q.view3(spec.q_heads),
                                   .pool = world.pool(),
                                   .chunks = chunks,
                                   .lists = device_lists.view(),
                                   .ranges = limits,
                                   .params = world.params(),
                                   .out = out.view3(spec.q_heads),
                                   .lse = {}};
      Stream stream;
      EXPECT_EQ(AttendPrefill(world.backend(), args, stream), OkStatus());
      return out;
    };
    const TestTensor expected = run(nullptr), got = run(&ranges);
    for (int row = 0; row < 240; ++row) {
      ASSERT_EQ(got.RowBytes(row), expected.RowBytes(row)) << Describe(spec) << " row " << row;
    }
  }
}

// Full masks, shapes that say what the parameters say and nothing dropped change no bit. On CUDA
// another kernel serves prefills with masks, which in f32 is the only one.
TEST_P(AttentionSparse, NeutralFieldsChangeNoBits) {
  for (const bool deterministic : {false, true}) {
    for (const StaticShape& shape : {StaticShape{0, 0}, {100, 20}}) {
      for (int page_tokens : {16, 64}) {
        AttentionSpec spec = Base();
        spec.page_tokens = page_tokens;
        spec.shape = shape;
        const std::vector<int> lengths{1900, 331};
        AttentionWorld world(MakeTestBackend(spec.which, 2, deterministic).value(), spec, lengths,
                             13);
        ListBuilder plain;
        for (int s = 0; s < 2; ++s) {
          world.AddAllPages(&plain, s);
          plain.Close();
        }
        ListBuilder full = plain;
        full.masks.assign(full.pages.size(), ~uint64_t{0});
        DeviceLists plain_lists(world.backend(), plain), full_lists(world.backend(), full);
        const std::vector<StaticShape> shapes(static_cast<size_t>(2 * spec.kv_heads), shape);
        TestArray<StaticShape> device_shapes(world.backend(), shapes);
        TestArray<int32_t> positions(world.backend(), {1899, 330});
        const int first_rows = spec.which.emulated() ? 20 : 100;  // what takes time there
        const std::vector<PrefillChunk> chunks{{0, first_rows, 1800}, {100, 31, 300}};
        TestTensor q = world.MakeTensor(spec.dtype(), 131, spec.q_heads * spec.head_dim);
        TestTensor none = world.MakeTensor(DType::kF32, 2, spec.q_heads);
        world.FillRandom(&q, 4.0f);
        for (int i = 0; i < 2 * spec.q_heads; ++i) {
          none.set(i / spec.q_heads, i % spec.q_heads, -std::numeric_limits<float>::infinity());
        }
        const auto run = [&](bool neutral) {
          TestTensor out = world.MakeTensor(spec.dtype(), 133, spec.q_heads * spec.head_dim);
          const PageLists lists = neutral ? full_lists.view() : plain_lists.view();
          PageLists prefill_lists = lists;
          const bool same_kernel = !(spec.which.cuda() || spec.which.emulated());
          if (!same_kernel && spec.dtype() != DType::kF32) prefill_lists.masks = nullptr;
          Stream stream;
          const AttendPrefillArgs prefill{.q = q.view3(spec.q_heads),
                                          .pool = world.pool(),
                                          .chunks = chunks,
                                          .lists = prefill_lists,
                                          .params = world.params(),
                                          .shapes = neutral ? device_shapes.device() : nullptr,
                                          .out = out.view3(spec.q_heads).Slice(0, 131),
                                          .lse = {}};
          EXPECT_EQ(AttendPrefill(world.backend(), prefill, stream), OkStatus());
          const AttendDecodeArgs decode{
              .q = q.view3(spec.q_heads).Slice(0, 2),
              .pool = world.pool(),
              .positions = TensorView(positions.device(), DType::kI32, {2}),
              .lists = lists,
              .params = world.params(),
              .shapes = neutral ? device_shapes.device() : nullptr,
              .dropped_lse = neutral ? none.view() : TensorView(),
              .out = out.view3(spec.q_heads).Slice(131, 2),
              .lse = {}};
          EXPECT_EQ(AttendDecode(world.backend(), decode, stream), OkStatus());
          return out;
        };
        const TestTensor expected = run(false), got = run(true);
        for (int row = 0; row < 133; ++row) {
          ASSERT_EQ(got.RowBytes(row), expected.RowBytes(row)) << Describe(spec) << " row " << row;
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Every, AttentionSparse, ::testing::ValuesIn(BackendCases(true)), CaseName);
INSTANTIATE_TEST_SUITE_P(Emulated, AttentionSparse, ::testing::ValuesIn(EmulatedCases(true)),
                         CaseName);

}  // namespace
}  // namespace lacuna::kernels
