// The checkers of AppendMetadata and SelectKeys name what is wrong.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "kernels/ops/checks.h"

namespace lacuna::kernels {
namespace {

alignas(64) std::byte memory[1 << 12];
int64_t offsets[8];
int32_t ids[8];
uint64_t masks[8];
SelectRow select_rows[2];

TensorView View(DType dtype, std::initializer_list<int64_t> shape) {
  return {memory, dtype, shape};
}

KvPool Keys() { return {memory, DType::kBF16, 4, 2, 32, 64}; }

MetadataPool Metadata(MetadataKind kind, int32_t sub) {
  MetadataPool pool{memory, {}, 4, 2, 32, 64};
  pool.spec.kind = kind;
  pool.spec.sub_tokens = pool.spec.window_tokens = sub;
  return pool;
}

template <typename Args>
void ExpectRefused(const Args& good,
                   const std::vector<std::pair<std::string, std::function<void(Args&)>>>& cases) {
  EXPECT_EQ(Check(good, DType::kBF16), OkStatus());
  for (const auto& [words, spoil] : cases) {
    Args args = good;
    spoil(args);
    const Status status = Check(args, DType::kBF16);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << words;
    EXPECT_THAT(status.message(), testing::HasSubstr(words));
    EXPECT_EQ(status.message().find('\n'), std::string::npos);
  }
}

TEST(ChecksDecode, AppendMetadata) {
  AppendMetadataArgs good;
  good.slots = View(DType::kI32, {3});
  good.keys = Keys();
  good.metadata = Metadata(MetadataKind::kMinMax, 16);
  ExpectRefused<AppendMetadataArgs>(
      good,
      {{"AppendMetadata: keys", [](auto& a) { a.keys.dtype = DType::kF32; }},
       {"AppendMetadata: keys", [](auto& a) { a.keys.data = nullptr; }},
       {"slots: got [3] f32, need [any] i32", [](auto& a) { a.slots = View(DType::kF32, {3}); }},
       {"previous_pages: got [2] i32", [](auto& a) { a.previous_pages = View(DType::kI32, {2}); }},
       {"metadata: need a kind", [](auto& a) { a.metadata.spec.kind = MetadataKind::kNone; }},
       {"metadata: need sub_tokens 1, 16 or 64", [](auto& a) { a.metadata.spec.sub_tokens = 8; }},
       {"metadata: need sub_tokens 1 with labels",
        [](auto& a) { a.metadata.spec.kind = MetadataKind::kLowBit; }},
       {"metadata: need channels",
        [](auto& a) { a.metadata = Metadata(MetadataKind::kLabels, 1); }},
       {"metadata: need the lists",
        [](auto& a) {
          a.metadata = Metadata(MetadataKind::kLabels, 1);
          a.metadata.spec.channels = 4;
        }},
       {"metadata: need window_tokens",
        [](auto& a) {
          a.metadata = Metadata(MetadataKind::kMean, 16);
          a.metadata.spec.window_tokens = 8;
        }},
       {"previous_pages: need the pages before",
        [](auto& a) {
          a.metadata = Metadata(MetadataKind::kMean, 16);
          a.metadata.spec.window_tokens = 32;
        }},
       {"metadata: need pages, heads", [](auto& a) { a.metadata.head_dim = 16; }},
       {"metadata: need memory", [](auto& a) { a.metadata.data = nullptr; }}});
  AppendMetadataArgs reaching = good;
  reaching.metadata = Metadata(MetadataKind::kMean, 16);
  reaching.metadata.spec.window_tokens = 32;
  reaching.previous_pages = View(DType::kI32, {3});
  ExpectRefused<AppendMetadataArgs>(reaching,
                                    {{"metadata: need window_tokens of a page", [](auto& a) {
                                        a.keys.page_tokens = 16;
                                        a.metadata.page_tokens = 16;
                                        a.metadata.spec.window_tokens = 48;
                                      }}});
}

TEST(ChecksDecode, SelectKeys) {
  SelectKeysArgs good;
  good.q = View(DType::kBF16, {2, 6, 32});
  good.pool = Keys();
  good.metadata = Metadata(MetadataKind::kMinMax, 16);
  good.refine_metadata = Metadata(MetadataKind::kLowBit, 1);
  good.positions = View(DType::kI32, {2});
  good.pages = {ids, ids, offsets, offsets + 1, 2};
  good.rows = select_rows;
  good.path.metadata = good.metadata.spec;
  good.path.refine_metadata = good.refine_metadata.spec;
  good.path.score = ScoreKind::kBound;
  good.path.select = SelectKind::kTopK;
  good.path.refine = RefineKind::kTopP;
  good.choices = {masks, 2, 2, nullptr};
  good.out = {ids, ids, masks, offsets, offsets, 2};
  ExpectRefused<SelectKeysArgs>(
      good,
      {{"SelectKeys: pool", [](auto& a) { a.pool.page_tokens = 32; }},
       {"q: got [2, 6, 16] bf16, need [any, any, 32]",
        [](auto& a) {
          a.q = View(DType::kBF16, {2, 6, 16});
        }},
       {"q: need query heads",
        [](auto& a) {
          a.q = View(DType::kBF16, {2, 5, 32});
        }},
       {"positions: got [3] i32", [](auto& a) { a.positions = View(DType::kI32, {3}); }},
       {"pages: need one list per row", [](auto& a) { a.pages.lists = 1; }},
       {"pages: need begins", [](auto& a) { a.pages.begins = nullptr; }},
       {"rows: need", [](auto& a) { a.rows = nullptr; }},
       {"scale: need", [](auto& a) { a.scale = std::numeric_limits<float>::infinity(); }},
       {"out: need room", [](auto& a) { a.out.masks = nullptr; }},
       {"out: need room", [](auto& a) { a.out.stride = 0; }},
       {"path: need units", [](auto& a) { a.path.unit_tokens = 32; }},
       {"path: need a score", [](auto& a) { a.path.score = ScoreKind::kNone; }},
       {"path: need minmax", [](auto& a) { a.path.metadata.kind = MetadataKind::kMean; }},
       {"path: need mean, labels", [](auto& a) { a.path.score = ScoreKind::kDot; }},
       {"path: need metadata only", [](auto& a) { a.path.score = ScoreKind::kKeys; }},
       {"path: need units of metadata", [](auto& a) { a.path.unit_tokens = 1; }},
       {"metadata: need what path",
        [](auto& a) { a.path.metadata.precision = MetadataPrecision::kInt8; }},
       {"refine_metadata: need memory", [](auto& a) { a.refine_metadata.data = nullptr; }},
       {"path: need lowbit", [](auto& a) { a.path.refine_metadata.kind = MetadataKind::kMinMax; }},
       {"path: need refine_unit_tokens", [](auto& a) { a.path.unit_tokens = 16; }},
       {"choices: need masks", [](auto& a) { a.choices.masks = nullptr; }},
       {"choices: need masks", [](auto& a) { a.path.owner = OwnerKind::kLayer; }},
       {"choices: need queries", [](auto& a) { a.path.refresh = RefreshKind::kCosine; }},
       {"thresholds: need", [](auto& a) { a.path.head_thresholds = true; }},
       {"dropped_lse: got [2, 2] f32",
        [](auto& a) {
          a.dropped_lse = View(DType::kF32, {2, 2});
        }},
       {"dropped_lse: need", [](auto& a) { a.path.correct = DecodeCorrectKind::kDenominator; }}});
}

}  // namespace
}  // namespace lacuna::kernels
