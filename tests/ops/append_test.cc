// RopeAppend and AppendKv on every backend. Slabs are compared without knowing their layout: the
// same slots of two pools are written in two ways.
#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "tests/ops/op_test.h"

namespace lacuna::kernels {
namespace {

struct AppendShape final {
  int64_t q_heads = 4;
  int64_t kv_heads = 2;
  int64_t head_dim = 64;
  int64_t rotary_dim = 64;
  int64_t page_tokens = 64;
  bool interleaved = false;
  bool norm = false;
};

class AppendTest : public OpTest {
 protected:
  static constexpr int64_t kPositions = 90;
  static constexpr float kEps = 1e-5f;

  // A pool full of NaN.
  struct Pool final {
    KvPool shape;
    TestMemory memory;
    KvPool view() {
      KvPool pool = shape;
      pool.data = memory.device();
      return pool;
    }
    float at(int64_t element) const {
      const uint8_t* from = memory.read() + static_cast<size_t>(element) * DTypeBytes(shape.dtype);
      if (shape.dtype == DType::kF32) return Read<float>(from);
      return shape.dtype == DType::kBF16 ? ToFloat(Read<BF16>(from)) : ToFloat(Read<F16>(from));
    }
    int64_t elements() const {
      return shape.Bytes() / static_cast<int64_t>(DTypeBytes(shape.dtype));
    }
    template <typename T>
    static T Read(const uint8_t* from) {
      T value;
      std::memcpy(&value, from, sizeof(value));
      return value;
    }
  };
  Pool MakePool(const AppendShape& shape, int64_t pages) {
    const KvPool pool{nullptr, act(), pages, shape.kv_heads, shape.head_dim, shape.page_tokens};
    return {pool, TestMemory(backend(), static_cast<size_t>(pool.Bytes()), 0xff)};
  }

  // The rows of a step: `lengths` tokens of sequences in pages of their own, each sequence from
  // `firsts` on, with a row without a slot behind each.
  struct Rows final {
    std::vector<int32_t> slots, positions;
    int64_t pages = 0;
  };
  static Rows MakeRows(const AppendShape& shape, const std::vector<std::pair<int, int>>& spans) {
    Rows rows;
    for (const auto& [first, end] : spans) {
      for (int t = first; t < end; ++t) {
        // Pages of a sequence lie backwards.
        const int64_t page =
            rows.pages + CeilDiv(end, shape.page_tokens) - 1 - t / shape.page_tokens;
        rows.slots.push_back(
            static_cast<int32_t>(page * shape.page_tokens + t % shape.page_tokens));
        rows.positions.push_back(t * 7 % kPositions);
      }
      rows.pages += CeilDiv(end, shape.page_tokens);
      rows.slots.push_back(-1);
      rows.positions.push_back(0);
    }
    return rows;
  }

  // What RopeAppend makes of one head, in double precision, and how far a rounding of its terms to
  // the activation type may move each channel.
  struct Head final {
    std::vector<double> value, slack;
  };
  Head Reference(const AppendShape& shape, const TestTensor& x, int64_t row, int64_t first,
                 const TestTensor* weight, const TestTensor& table, int64_t position) const {
    const auto dim = static_cast<size_t>(shape.head_dim);
    std::vector<double> in(dim);
    double sum = 0.0;
    for (size_t d = 0; d < dim; ++d) {
      in[d] = x.at(row, first + static_cast<int64_t>(d));
      sum += in[d] * in[d];
    }
    const double inverse = 1.0 / std::sqrt(sum / static_cast<double>(dim) + double{kEps});
    for (size_t d = 0; weight != nullptr && d < dim; ++d) {
      in[d] *= inverse * weight->at(static_cast<int64_t>(d), 0);
    }
    const double epsilon = act() == DType::kBF16 ? 0x1p-8 : act() == DType::kF16 ? 0x1p-10 : 1e-5;
    Head head{in, std::vector<double>(dim, 0.0)};
    const auto half = static_cast<size_t>(shape.rotary_dim / 2);
    for (size_t pair = 0; pair < half; ++pair) {
      const size_t a = shape.interleaved ? 2 * pair : pair;
      const size_t b = shape.interleaved ? 2 * pair + 1 : pair + half;
      const double cosine = table.at(position, static_cast<int64_t>(pair));
      const double sine = table.at(position, static_cast<int64_t>(half + pair));
      head.value[a] = in[a] * cosine - in[b] * sine;
      head.value[b] = in[b] * cosine + in[a] * sine;
      head.slack[a] = std::abs(in[a] * cosine) + std::abs(in[b] * sine);
      head.slack[b] = std::abs(in[b] * cosine) + std::abs(in[a] * sine);
    }
    for (size_t d = 0; d < dim; ++d) {
      head.slack[d] = epsilon * std::max(head.slack[d], std::abs(in[d])) + 1e-6;
    }
    return head;
  }

  void Run(const AppendShape& shape, const std::vector<std::pair<int, int>>& spans) {
    SCOPED_TRACE("heads " + std::to_string(shape.q_heads) + "/" + std::to_string(shape.kv_heads) +
                 " d " + std::to_string(shape.head_dim) + " rotary " +
                 std::to_string(shape.rotary_dim) + " page " + std::to_string(shape.page_tokens) +
                 (shape.interleaved ? " interleaved" : "") + (shape.norm ? " norm" : ""));
    const Rows rows = MakeRows(shape, spans);
    const auto tokens = static_cast<int64_t>(rows.slots.size());
    const int64_t q_columns = shape.q_heads * shape.head_dim;
    const int64_t kv_columns = shape.kv_heads * shape.head_dim;
    TestTensor q(place(), act(), tokens, q_columns, q_columns + 3);
    TestTensor k(place(), act(), tokens, kv_columns, kv_columns + 1);
    TestTensor v(place(), act(), tokens, kv_columns, kv_columns + 2);
    TestTensor q_norm(place(), DType::kF32, shape.head_dim, 1);
    TestTensor k_norm(place(), DType::kF32, shape.head_dim, 1);
    TestTensor table(place(), DType::kF32, kPositions, shape.rotary_dim, shape.rotary_dim + 1);
    for (TestTensor* tensor : {&q, &k, &v, &q_norm, &k_norm, &table}) tensor->Fill(random());
    const TestTensor q_before = q;
    const TestTensor k_before = k;
    const TestTensor v_before = v;
    TestArray<int32_t> slots(backend(), rows.slots);
    TestArray<int32_t> positions(backend(), rows.positions);
    Pool pool = MakePool(shape, rows.pages);
    const TensorView slot_view(slots.device(), DType::kI32, {tokens});
    RopeAppendArgs args{.q = q.view3(shape.q_heads),
                        .k = k.view3(shape.kv_heads),
                        .v = v.view3(shape.kv_heads),
                        .q_norm = {},
                        .k_norm = {},
                        .norm_eps = kEps,
                        .positions = TensorView(positions.device(), DType::kI32, {tokens}),
                        .cos_sin = table.view(),
                        .interleaved = shape.interleaved,
                        .slots = slot_view,
                        .pool = pool.view()};
    if (shape.norm) {
      args.q_norm = q_norm.vector();
      args.k_norm = k_norm.vector();
    }
    ASSERT_EQ(RopeAppend(backend(), args, stream()), OkStatus());
    for (TestTensor* tensor : {&q, &k, &v}) tensor->ExpectGuards();

    TestTensor k_expected(place(), act(), tokens, kv_columns);
    TestTensor v_copy = v_before;
    double k_slack = 0.0;
    for (int64_t t = 0; t < tokens; ++t) {
      const int64_t position = rows.positions[static_cast<size_t>(t)];
      for (int64_t head = 0; head < shape.q_heads + shape.kv_heads; ++head) {
        const bool is_q = head < shape.q_heads;
        const int64_t first = (is_q ? head : head - shape.q_heads) * shape.head_dim;
        const TestTensor* weight = !shape.norm ? nullptr : is_q ? &q_norm : &k_norm;
        const Head want =
            Reference(shape, is_q ? q_before : k_before, t, first, weight, table, position);
        for (int64_t d = 0; d < shape.head_dim; ++d) {
          const auto at = static_cast<size_t>(d);
          if (is_q) {
            ExpectNear(q.at(t, first + d), want.value[at], act(), 0.0, want.slack[at], "q");
          } else {
            k_expected.set(t, first + d, static_cast<float>(want.value[at]));
            k_slack = std::max(k_slack, want.slack[at] + RoundingOf(want.value[at], act()));
          }
        }
      }
      if (HasFatalFailure()) return;
      ASSERT_EQ(v.RowBytes(t), v_before.RowBytes(t));
    }
    Pool expected = MakePool(shape, rows.pages);
    ASSERT_EQ(AppendKv(backend(),
                       {.k = k_expected.view3(shape.kv_heads),
                        .v = v_copy.view3(shape.kv_heads),
                        .slots = slot_view,
                        .pool = expected.view()},
                       stream()),
              OkStatus());
    for (int64_t i = 0; i < pool.elements(); ++i) {
      const float got = pool.at(i);
      const float want = expected.at(i);
      ASSERT_EQ(std::isnan(got), std::isnan(want)) << "element " << i;
      if (std::isnan(want)) continue;
      ASSERT_NEAR(got, want, k_slack) << "element " << i;
    }
  }
};

TEST_P(AppendTest, RopeAppendMatchesDouble) {
  const std::vector<std::pair<int, int>> spans = {{0, 1}, {5, 70}, {0, 33}, {64, 66}};
  for (const bool interleaved : {false, true}) {
    for (const bool norm : {false, true}) {
      for (const auto& [head_dim, rotary_dim] : {std::pair<int64_t, int64_t>{8, 4},
                                                 {16, 16},
                                                 {64, 64},
                                                 {64, 32},
                                                 {72, 34},
                                                 {80, 32},
                                                 {96, 96},
                                                 {112, 112},
                                                 {128, 128},
                                                 {128, 48},
                                                 {256, 256}}) {
        for (const int64_t page_tokens : {16, 64}) {
          Run({.head_dim = head_dim,
               .rotary_dim = rotary_dim,
               .page_tokens = page_tokens,
               .interleaved = interleaved,
               .norm = norm},
              spans);
        }
      }
    }
  }
}

TEST_P(AppendTest, RopeAppendHeadsAndTokens) {
  for (const auto& [q_heads, kv_heads] :
       {std::pair<int64_t, int64_t>{1, 1}, {5, 5}, {7, 1}, {32, 8}, {40, 10}}) {
    Run({.q_heads = q_heads, .kv_heads = kv_heads, .norm = true}, {{0, 3}, {60, 70}});
  }
  Run({.head_dim = 128, .rotary_dim = 128}, {{0, 300}, {17, 18}});  // many tokens at once
  Run({.head_dim = 96, .rotary_dim = 96, .norm = true}, {{0, 300}, {17, 18}});
  for (const auto& [head_dim, rotary_dim] :
       {std::pair<int64_t, int64_t>{16, 16}, {64, 32}, {128, 96}, {256, 256}}) {
    for (const bool norm : {false, true}) {
      Run({.q_heads = 7,
           .kv_heads = 3,
           .head_dim = head_dim,
           .rotary_dim = rotary_dim,
           .page_tokens = norm ? 16 : 64,
           .interleaved = !norm,
           .norm = norm},
          {{0, 131}, {1, 125}});
    }
  }
  // So many that a thread block of a GPU takes several in turn.
  const int tokens = GetParam().emulated() ? 700 : 20000;
  Run({.q_heads = 1, .kv_heads = 1, .head_dim = 32, .rotary_dim = 32}, {{0, tokens}});
}

// Every row of a page whose first token is in the call is written or cleared; of another page, only
// the call's rows are.
TEST_P(AppendTest, StaleRowsAreCleared) {
  for (const int64_t head_dim : {64, 96, 128}) {
    for (const int64_t page_tokens : {16, 64}) {
      const AppendShape shape{.head_dim = head_dim, .page_tokens = page_tokens};
      const int page = static_cast<int>(page_tokens);
      const std::vector<std::pair<int, int>> spans = {
          {0, 1}, {0, page - 1}, {0, page},     {0, page + 1},
          {3, 4}, {3, page},     {3, page + 5}, {page - 1, 2 * page + 1}};
      const Rows rows = MakeRows(shape, spans);
      const auto tokens = static_cast<int64_t>(rows.slots.size());
      const int64_t columns = shape.kv_heads * head_dim;
      TestTensor k(place(), act(), tokens, columns);
      TestTensor v(place(), act(), tokens, columns);
      k.Fill(random());
      v.Fill(random());
      TestArray<int32_t> slots(backend(), rows.slots);
      Pool pool = MakePool(shape, rows.pages);
      ASSERT_EQ(AppendKv(backend(),
                         {.k = k.view3(shape.kv_heads),
                          .v = v.view3(shape.kv_heads),
                          .slots = TensorView(slots.device(), DType::kI32, {tokens}),
                          .pool = pool.view()},
                         stream()),
                OkStatus());
      const int64_t page_elements = pool.elements() / rows.pages;
      for (int64_t p = 0; p < rows.pages; ++p) {
        int64_t written = 0;  // rows that may hold numbers afterwards
        bool from_start = false;
        for (const int32_t slot : rows.slots) {
          if (slot < 0 || slot / page != p) continue;
          ++written;
          from_start = from_start || slot % page == 0;
        }
        if (from_start) written = page;
        int64_t numbers = 0;
        for (int64_t i = 0; i < page_elements; ++i) {
          numbers += !std::isnan(pool.at(p * page_elements + i));
        }
        EXPECT_EQ(numbers, written * 2 * columns) << "page " << p << " of " << page_tokens;
      }
    }
  }
}

// A backend that reads positions on the host refuses; one that reads them on the device makes NaN.
TEST_P(AppendTest, PositionsOutOfRange) {
  const bool on_host = place().on_host();
  for (const int64_t head_dim : {64, 72}) {
    const AppendShape shape{.q_heads = 1, .kv_heads = 1, .head_dim = head_dim};
    for (const int32_t bad : {-1, static_cast<int32_t>(kPositions)}) {
      TestTensor q(place(), act(), 2, head_dim);
      TestTensor k(place(), act(), 2, head_dim);
      TestTensor table(place(), DType::kF32, kPositions, head_dim);
      for (TestTensor* tensor : {&q, &k, &table}) tensor->Fill(random());
      TestArray<int32_t> slots(backend(), {0, 1});
      TestArray<int32_t> positions(backend(), {3, bad});
      Pool pool = MakePool(shape, 1);
      const RopeAppendArgs args{.q = q.view3(1),
                                .k = k.view3(1),
                                .v = k.view3(1),
                                .q_norm = {},
                                .k_norm = {},
                                .positions = TensorView(positions.device(), DType::kI32, {2}),
                                .cos_sin = table.view(),
                                .slots = TensorView(slots.device(), DType::kI32, {2}),
                                .pool = pool.view()};
      EXPECT_EQ(RopeAppend(backend(), args, stream()).code(),
                on_host ? StatusCode::kInvalidArgument : StatusCode::kOk);
      q.ExpectGuards();
      for (int64_t i = 0; i < head_dim && !on_host; ++i) {
        EXPECT_FALSE(std::isnan(q.at(0, i)));
        EXPECT_TRUE(std::isnan(q.at(1, i)));
      }
    }
  }
}

TEST_P(AppendTest, RowBitsDoNotDependOnTheBatch) {
  const AppendShape shape{.q_heads = 8, .head_dim = 128, .rotary_dim = 128, .norm = true};
  const Rows rows = MakeRows(shape, {{0, 299}});
  const auto tokens = static_cast<int64_t>(rows.slots.size());
  const int64_t columns = shape.q_heads * shape.head_dim;
  const int64_t kv_columns = shape.kv_heads * shape.head_dim;
  TestTensor norm(place(), DType::kF32, shape.head_dim, 1);
  TestTensor table(place(), DType::kF32, kPositions, shape.rotary_dim);
  TestTensor q(place(), act(), tokens, columns);
  TestTensor kv(place(), act(), tokens, kv_columns);
  for (TestTensor* tensor : {&norm, &table, &q, &kv}) tensor->Fill(random());
  TestArray<int32_t> slots(backend(), rows.slots);
  TestArray<int32_t> positions(backend(), rows.positions);
  const auto run = [&](int64_t batch) {
    std::pair<TestTensor, Pool> out{q, MakePool(shape, rows.pages)};
    TestTensor k = kv;
    for (int64_t first = 0; first < tokens; first += batch) {
      const int64_t count = std::min(batch, tokens - first);
      const RopeAppendArgs args{
          .q = out.first.view3(shape.q_heads).Slice(first, count),
          .k = k.view3(shape.kv_heads).Slice(first, count),
          .v = kv.view3(shape.kv_heads).Slice(first, count),
          .q_norm = norm.vector(),
          .k_norm = norm.vector(),
          .norm_eps = kEps,
          .positions = TensorView(positions.device() + first, DType::kI32, {count}),
          .cos_sin = table.view(),
          .slots = TensorView(slots.device() + first, DType::kI32, {count}),
          .pool = out.second.view()};
      EXPECT_EQ(RopeAppend(backend(), args, stream()), OkStatus());
    }
    EXPECT_EQ(backend().device().Synchronize(stream()), OkStatus());
    return out;
  };
  const auto whole = run(tokens);
  const auto parts = run(7);
  for (int64_t t = 0; t < tokens; ++t) {
    ASSERT_EQ(parts.first.RowBytes(t), whole.first.RowBytes(t)) << "row " << t;
  }
  EXPECT_EQ(std::memcmp(parts.second.memory.read(), whole.second.memory.read(),
                        whole.second.memory.size()),
            0);
}

LACUNA_INSTANTIATE_OP_TEST(AppendTest);
LACUNA_INSTANTIATE_EMULATED_OP_TEST(AppendTest);

}  // namespace
}  // namespace lacuna::kernels
