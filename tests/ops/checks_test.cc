// The checkers refuse wrong ranks, shapes, dtypes and strides with the op's and tensor's name.
#include "kernels/ops/checks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <string>
#include <vector>

namespace lacuna::kernels {
namespace {

using testing::HasSubstr;

alignas(64) float memory[1 << 16];
const float kNan = std::numeric_limits<float>::quiet_NaN();

TensorView F32(std::initializer_list<int64_t> shape) { return {memory, DType::kF32, shape}; }
TensorView Act(std::initializer_list<int64_t> shape) { return {memory, DType::kBF16, shape}; }
TensorView Ints(int64_t count) { return {memory, DType::kI32, {count}}; }

// An address that no T may have.
template <typename T>
T* Misaligned(T*) {
  return reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(memory) + 1);
}

class FakeMatrix final : public PreparedMatrix {
 public:
  int64_t rows() const override { return 6; }
  int64_t columns() const override { return 8; }
  int64_t bytes() const override { return 96; }
};
const FakeMatrix kMatrix;

// A good argument struct, and the ways to spoil it with the words that the error must hold.
template <typename Args>
struct Spoiled final {
  std::string words;
  std::function<void(Args&)> spoil;
};

template <typename Args>
void ExpectRefused(const Args& good, const std::vector<Spoiled<Args>>& cases) {
  EXPECT_EQ(Check(good, DType::kBF16), OkStatus());
  for (const auto& [words, spoil] : cases) {
    Args args = good;
    spoil(args);
    const Status status = Check(args, DType::kBF16);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << words;
    EXPECT_THAT(status.message(), HasSubstr(words));
  }
}

TEST(Checks, Embed) {
  const EmbedArgs good{.ids = Ints(3), .table = Act({10, 8}), .out = F32({3, 8})};
  ExpectRefused<EmbedArgs>(good, {{"Embed: ids: got [3] f32", [](auto& a) { a.ids = F32({3}); }},
                                  {"Embed: ids: got []", [](auto& a) { a.ids = {}; }},
                                  {"Embed: table", [](auto& a) { a.table = Ints(10); }},
                                  {"Embed: out: got [3, 9] f32, need [3, 8] f32",
                                   [](auto& a) {
                                     a.out = F32({3, 9});
                                   }},
                                  {"Embed: out",
                                   [](auto& a) {
                                     a.out = F32({4, 8});
                                   }},
                                  {"Embed: out",
                                   [](auto& a) {
                                     a.out = Act({3, 8});
                                   }},
                                  {"Embed: out: got null", [](auto& a) {
                                     a.out = {nullptr, DType::kF32, {3, 8}};
                                   }}});
}

TEST(Checks, RmsNorm) {
  const RmsNormArgs good{.x = F32({3, 8}), .weight = F32({8}), .out = Act({3, 8})};
  ExpectRefused<RmsNormArgs>(good, {{"RmsNorm: x: need rank", [](auto& a) { a.x = F32({8}); }},
                                    {"RmsNorm: x",
                                     [](auto& a) {
                                       a.x = {memory, DType::kF16, {3, 8}};
                                     }},
                                    {"RmsNorm: weight", [](auto& a) { a.weight = F32({7}); }},
                                    {"RmsNorm: weight", [](auto& a) { a.weight = Act({8}); }},
                                    {"RmsNorm: out",
                                     [](auto& a) {
                                       a.out = Act({3, 2, 4});
                                     }},
                                    {"RmsNorm: out", [](auto& a) { a.accumulate = true; }},
                                    {"RmsNorm: eps", [](auto& a) { a.eps = kNan; }},
                                    {"RmsNorm: eps", [](auto& a) { a.eps = -1.0f; }}});
  RmsNormArgs heads{.x = Act({3, 2, 8}), .weight = F32({8}), .out = Act({3, 2, 8})};
  EXPECT_EQ(Check(heads, DType::kBF16), OkStatus());
  heads.x = TensorView::Rows(memory, DType::kBF16, {3, 2, 8}, 15);  // rows overlap
  EXPECT_THAT(Check(heads, DType::kBF16).message(), HasSubstr("RmsNorm: x: got null, misaligned"));
}

TEST(Checks, Matmul) {
  const MatmulArgs good{.x = Act({3, 8}), .weight = &kMatrix, .bias = F32({6}), .out = F32({3, 6})};
  ExpectRefused<MatmulArgs>(
      good, {{"Matmul: weight", [](auto& a) { a.weight = nullptr; }},
             {"Matmul: x",
              [](auto& a) {
                a.x = Act({3, 7});
              }},
             {"Matmul: x",
              [](auto& a) {
                a.x = F32({3, 8});
              }},
             {"Matmul: x: got null, misaligned",
              [](auto& a) {
                a.x = {reinterpret_cast<std::byte*>(memory) + 1, DType::kBF16, {3, 8}};
              }},
             {"Matmul: bias", [](auto& a) { a.bias = F32({8}); }},
             {"Matmul: out",
              [](auto& a) {
                a.out = F32({3, 8});
              }},
             {"Matmul: out",
              [](auto& a) {
                a.out = TensorView::Rows(memory, DType::kF32, {3, 6}, 5);
              }},
             {"Matmul: out: need f32", [](auto& a) {
                a.out = Act({3, 6});
                a.accumulate = true;
              }}});
}

TEST(Checks, GatedActivation) {
  const GatedActivationArgs good{.gate_up = Act({3, 16}), .out = Act({3, 8})};
  ExpectRefused<GatedActivationArgs>(good, {{"GatedActivation: gate_up",
                                             [](auto& a) {
                                               a.gate_up = Act({3, 8});
                                             }},
                                            {"GatedActivation: gate_up",
                                             [](auto& a) {
                                               a.gate_up = F32({3, 16});
                                             }},
                                            {"GatedActivation: out",
                                             [](auto& a) {
                                               a.out = F32({3, 8});
                                             }},
                                            {"GatedActivation: activation", [](auto& a) {
                                               a.activation = static_cast<Activation>(7);
                                             }}});
}

TEST(Checks, GatherRowsAndSoftcap) {
  const GatherRowsArgs gather{.x = F32({3, 8}), .rows = Ints(2), .out = F32({2, 8})};
  ExpectRefused<GatherRowsArgs>(gather, {{"GatherRows: x",
                                          [](auto& a) {
                                            a.x = Act({3, 8});
                                          }},
                                         {"GatherRows: out",
                                          [](auto& a) {
                                            a.out = F32({3, 8});
                                          }},
                                         {"GatherRows: rows", [](auto& a) { a.rows = F32({2}); }}});
  const SoftcapArgs softcap{.x = F32({3, 8}), .cap = 30.0f};
  ExpectRefused<SoftcapArgs>(softcap, {{"Softcap: x",
                                        [](auto& a) {
                                          a.x = Act({3, 8});
                                        }},
                                       {"Softcap: cap", [](auto& a) { a.cap = 0.0f; }},
                                       {"Softcap: cap", [](auto& a) { a.cap = kNan; }}});
}

KvPool GoodPool() {
  KvPool pool;
  pool.data = memory;
  pool.pages = 2;
  pool.kv_heads = 2;
  pool.head_dim = 16;
  pool.page_tokens = 16;
  return pool;
}

TEST(Checks, AppendKv) {
  const AppendKvArgs good{
      .k = Act({3, 2, 16}), .v = Act({3, 2, 16}), .slots = Ints(3), .pool = GoodPool()};
  ExpectRefused<AppendKvArgs>(
      good, {{"AppendKv: k",
              [](auto& a) {
                a.k = Act({3, 2, 8});
              }},
             {"AppendKv: v",
              [](auto& a) {
                a.v = Act({4, 2, 16});
              }},
             {"AppendKv: slots", [](auto& a) { a.slots = Ints(2); }},
             {"AppendKv: pool: need the dtype", [](auto& a) { a.pool.dtype = DType::kF32; }},
             {"AppendKv: pool: need page_tokens", [](auto& a) { a.pool.page_tokens = 17; }},
             {"AppendKv: pool: need memory", [](auto& a) { a.pool.data = nullptr; }},
             {"AppendKv: pool: need at least", [](auto& a) { a.pool.kv_heads = 0; }}});
}

TEST(Checks, RopeAppend) {
  RopeAppendArgs good{};
  good.q = Act({3, 4, 16});
  good.k = Act({3, 2, 16});
  good.v = Act({3, 2, 16});
  good.positions = Ints(3);
  good.cos_sin = F32({16, 8});
  good.slots = Ints(3);
  good.pool = GoodPool();
  ExpectRefused<RopeAppendArgs>(good,
                                {{"RopeAppend: q",
                                  [](auto& a) {
                                    a.q = Act({3, 4, 8});
                                  }},
                                 {"RopeAppend: k",
                                  [](auto& a) {
                                    a.k = Act({3, 4, 16});
                                  }},
                                 {"RopeAppend: v",
                                  [](auto& a) {
                                    a.v = Act({2, 2, 16});
                                  }},
                                 {"RopeAppend: q_norm", [](auto& a) { a.q_norm = F32({8}); }},
                                 {"RopeAppend: k_norm", [](auto& a) { a.k_norm = Act({16}); }},
                                 {"RopeAppend: norm_eps", [](auto& a) { a.norm_eps = kNan; }},
                                 {"RopeAppend: positions", [](auto& a) { a.positions = Ints(2); }},
                                 {"RopeAppend: cos_sin",
                                  [](auto& a) {
                                    a.cos_sin = F32({16, 18});
                                  }},
                                 {"RopeAppend: cos_sin",
                                  [](auto& a) {
                                    a.cos_sin = F32({16, 3});
                                  }},
                                 {"RopeAppend: slots", [](auto& a) { a.slots = F32({3}); }},
                                 {"RopeAppend: pool", [](auto& a) { a.pool.page_tokens = 32; }}});
  good.q_norm = F32({16});
  good.k_norm = F32({16});
  EXPECT_EQ(Check(good, DType::kBF16), OkStatus());
}

TEST(Checks, Sample) {
  static const SampleRow kRows[3] = {};
  static SampleResult results[3];
  static int32_t tokens[3];
  SampleArgs good{};
  good.logits = F32({3, 100});
  good.rows = kRows;
  good.results = results;
  good.tokens = tokens;
  ExpectRefused<SampleArgs>(good, {{"Sample: logits",
                                    [](auto& a) {
                                      a.logits = Act({3, 100});
                                    }},
                                   {"Sample: logits",
                                    [](auto& a) {
                                      a.logits = F32({3, 0});
                                    }},
                                   {"Sample: rows", [](auto& a) { a.rows = nullptr; }},
                                   {"Sample: rows: need one for each row of logits, aligned",
                                    [](auto& a) {
                                      const auto address = reinterpret_cast<uintptr_t>(kRows);
                                      a.rows = reinterpret_cast<const SampleRow*>(address + 4);
                                    }},
                                   {"Sample: results", [](auto& a) { a.results = nullptr; }},
                                   {"Sample: results", [](auto& a) { a.tokens = nullptr; }}});
}

TEST(Checks, Attention) {
  static constexpr int64_t kOffsets[3] = {};
  AttendDecodeArgs decode{};
  decode.q = Act({2, 4, 16});
  decode.pool = GoodPool();
  decode.positions = Ints(2);
  decode.lists = {nullptr, nullptr, kOffsets, kOffsets + 1, 2};
  decode.out = Act({2, 4, 16});
  decode.lse = F32({2, 4});
  ExpectRefused<AttendDecodeArgs>(
      decode, {{"AttendDecode: q",
                [](auto& a) {
                  a.q = Act({2, 3, 16});
                }},
               {"AttendDecode: q",
                [](auto& a) {
                  a.q = Act({2, 0, 16});
                }},
               {"AttendDecode: out",
                [](auto& a) {
                  a.out = Act({2, 4, 8});
                }},
               {"AttendDecode: lse",
                [](auto& a) {
                  a.lse = F32({2, 2});
                }},
               {"AttendDecode: positions", [](auto& a) { a.positions = Ints(1); }},
               {"AttendDecode: lists:", [](auto& a) { a.lists.lists = 3; }},
               {"AttendDecode: lists:", [](auto& a) { a.lists.begins = nullptr; }},
               {"AttendDecode: lists: need arrays aligned",
                [](auto& a) {
                  const auto address = reinterpret_cast<uintptr_t>(kOffsets);
                  a.lists.begins = reinterpret_cast<const int64_t*>(address + 4);
                }},
               {"AttendDecode: lists_per_row", [](auto& a) { a.lists_per_row = 4; }},
               {"AttendDecode: scale", [](auto& a) { a.params.scale = kNan; }},
               {"AttendDecode: softcap", [](auto& a) { a.params.softcap = -1.0f; }},
               {"AttendDecode: shape", [](auto& a) { a.params.shape.window_tokens = -1; }},
               {"AttendDecode: shapes", [](auto& a) { a.shapes = Misaligned(a.shapes); }},
               {"AttendDecode: lists: need arrays aligned",
                [](auto& a) { a.lists.masks = Misaligned(a.lists.masks); }},
               {"AttendDecode: dropped_lse",
                [](auto& a) {
                  a.dropped_lse = F32({2, 2});
                }},
               {"AttendDecode: dropped_lse", [](auto& a) {
                  a.dropped_lse = Act({2, 4});
                }}});
  const PrefillChunk chunks[] = {{.first_row = 0, .rows = 2, .first_position = 5}};
  static const PrefillChunk kPast[] = {{.first_row = 1, .rows = 2, .first_position = 0}};
  static const PrefillChunk kHuge[] = {
      {.first_row = 0, .rows = 2, .first_position = std::numeric_limits<int32_t>::max()}};
  static const KeyRanges kNoOffsets{};
  AttendPrefillArgs prefill{};
  prefill.q = decode.q;
  prefill.pool = decode.pool;
  prefill.chunks = chunks;
  prefill.lists = {nullptr, nullptr, kOffsets, kOffsets + 1, 1};
  prefill.out = decode.out;
  ExpectRefused<AttendPrefillArgs>(
      prefill, {{"AttendPrefill: chunks", [](auto& a) { a.chunks = kPast; }},
                {"AttendPrefill: chunks", [](auto& a) { a.chunks = kHuge; }},
                {"AttendPrefill: lists", [](auto& a) { a.lists.lists = 2; }},
                {"AttendPrefill: ranges", [](auto& a) { a.ranges = &kNoOffsets; }},
                {"AttendPrefill: shapes", [](auto& a) { a.shapes = Misaligned(a.shapes); }}});
}

TEST(Checks, CorrectPrefill) {
  // Positions 60 to 130 and 5 to 14: rows of positions 64 and 128.
  const PrefillChunk chunks[] = {{0, 71, 60}, {80, 10, 5}};
  static const PrefillChunk kPast[] = {{0, 71, 60}, {81, 10, 5}};
  CorrectPrefillArgs correct{};
  correct.chunks = chunks;
  correct.dense = Act({2, 4, 16});
  correct.out = Act({90, 4, 16});
  ExpectRefused<CorrectPrefillArgs>(
      correct, {{"CorrectPrefill: kind", [](auto& a) { a.kind = PrefillCorrectKind::kNone; }},
                {"CorrectPrefill: stride_rows", [](auto& a) { a.stride_rows = 0; }},
                {"CorrectPrefill: dense", [](auto& a) { a.stride_rows = 32; }},
                {"CorrectPrefill: chunks", [](auto& a) { a.chunks = kPast; }},
                {"CorrectPrefill: out",
                 [](auto& a) {
                   a.out = F32({90, 4, 16});
                 }},
                {"CorrectPrefill: dense", [](auto& a) {
                   a.dense = Act({2, 4, 8});
                 }}});
}

TEST(Checks, CompareAttention) {
  static AttentionAudit audits[2];
  CompareAttentionArgs compare{};
  compare.sparse = compare.dense = Act({2, 4, 16});
  compare.sparse_lse = compare.dense_lse = F32({2, 4});
  compare.audits = audits;
  ExpectRefused<CompareAttentionArgs>(
      compare, {{"CompareAttention: sparse",
                 [](auto& a) {
                   a.sparse = F32({2, 4, 16});
                 }},
                {"CompareAttention: dense",
                 [](auto& a) {
                   a.dense = Act({3, 4, 16});
                 }},
                {"CompareAttention: sparse_lse",
                 [](auto& a) {
                   a.sparse_lse = F32({2, 3});
                 }},
                {"CompareAttention: dense_lse", [](auto& a) { a.dense_lse = TensorView(); }},
                {"CompareAttention: audits", [](auto& a) { a.audits = nullptr; }},
                {"CompareAttention: audits", [](auto& a) { a.audits = Misaligned(a.audits); }},
                {"CompareAttention: stride", [](auto& a) { a.stride = 0; }}});
}

TEST(Checks, Weight) {
  EXPECT_EQ(CheckWeight(F32({2, 3})), OkStatus());
  for (const TensorView& bad : {F32({2}), F32({0, 3}), F32({2, 0}), F32({1, 2, 3}),
                                TensorView(memory, DType::kI32, {2, 3}), TensorView()}) {
    EXPECT_EQ(CheckWeight(bad).code(), StatusCode::kInvalidArgument);
  }
}

TEST(Checks, SelectRanges) {
  static const std::vector<RangeChunk> kChunks{{{1, 100, 1024}, 2000, {}}};
  static const std::vector<RangeChunk> kPast{{{1, 101, 1024}, 2000, {}}};
  static const std::vector<RangeChunk> kNoEnd{{{1, 100, 1024}, 1123, {}}};
  static const std::vector<RangeChunk> kWrongDials{{{1, 100, 1024}, 2000, {.local_fraction = 1.5}}};
  static const std::vector<RangeChunk> kLongProbe{{{1, 100, 1024}, 2000, {.probe_rows = 1025}}};
  auto* ints = reinterpret_cast<int32_t*>(memory);
  auto* longs = reinterpret_cast<int64_t*>(memory);
  SelectRangesArgs good{};
  good.pool = {memory, DType::kBF16, 4, 2, 16, 64};
  good.q = Act({101, 4, 16});
  good.chunks = kChunks;
  good.lists = {ints, ints, longs, longs, 1};
  good.path.estimate = EstimateKind::kPooled;
  good.path.select = PrefillSelectKind::kTopP;
  good.heads = reinterpret_cast<const PrefillHead*>(memory);
  good.out = {ints, ints, longs, longs, 5, longs};
  ExpectRefused<SelectRangesArgs>(
      good, {{"SelectRanges: pool", [](auto& a) { a.pool.page_tokens = 48; }},
             {"SelectRanges: q",
              [](auto& a) {
                a.q = Act({101, 4, 32});
              }},
             {"SelectRanges: q: need query heads",
              [](auto& a) {
                a.q = Act({101, 3, 16});
              }},
             {"SelectRanges: scale", [](auto& a) { a.scale = kNan; }},
             {"path: need an estimate", [](auto& a) { a.path.estimate = EstimateKind::kProbe; }},
             {"path: need block_tokens 64 or 128", [](auto& a) { a.path.block_tokens = 32; }},
             {"path: need stride_tokens",
              [](auto& a) {
                a.path.pool = PrefillPool::kAntidiagonal;
                a.path.stride_tokens = 48;
              }},
             {"path: need cell_tokens", [](auto& a) { a.path.cell_tokens = 2048; }},
             {"SelectRanges: lists", [](auto& a) { a.lists.lists = 2; }},
             {"SelectRanges: heads", [](auto& a) { a.heads = nullptr; }},
             {"chunks: need rows inside", [](auto& a) { a.chunks = kPast; }},
             {"chunks: need prompt_tokens", [](auto& a) { a.chunks = kNoEnd; }},
             {"dials: need shares", [](auto& a) { a.chunks = kWrongDials; }},
             {"dials: need probes of at most", [](auto& a) { a.chunks = kLongProbe; }},
             {"out: need begin", [](auto& a) { a.out.end = nullptr; }},
             {"out: need a stride of RangesMax", [](auto& a) { a.out.stride = 4; }}});
}

}  // namespace
}  // namespace lacuna::kernels
