#include "kvcache/pages/kv_storage.h"

#include <gtest/gtest.h>

#include "kernels/make_backend.h"
#include "kvcache/sparse/selection_builder.h"

namespace lacuna::kvcache {
namespace {

TEST(KvStorage, PoolsAreDisjointAndFillTheirGroup) {
  const auto backend = kernels::MakeBackend(kernels::DeviceKind::kCpu, {});
  ASSERT_TRUE(backend.ok());
  kernels::Device& device = (*backend)->device();
  const std::vector<KvGroup> groups = {{.layers = {{0, 2}, {3, 1}}, .head_dim = 32},
                                       {.layers = {{1, 2}}, .head_dim = 64, .window_tokens = 128}};
  EXPECT_EQ(KvStorage::PageBytes(groups[0], 16, DType::kBF16), 2 * 16 * 32 * 2 * 3);
  const auto storage = KvStorage::Create(device, groups, {5, 7}, 16, DType::kBF16);
  ASSERT_TRUE(storage.ok());
  EXPECT_EQ((*storage)->bytes(), 5 * KvStorage::PageBytes(groups[0], 16, DType::kBF16) +
                                     7 * KvStorage::PageBytes(groups[1], 16, DType::kBF16));
  const kernels::KvPool first = (*storage)->pool(0, 0), second = (*storage)->pool(0, 1);
  EXPECT_EQ(first.Slab(0, 0) + first.Bytes(), second.Slab(0, 0));
  EXPECT_EQ(second.kv_heads, 1);
  EXPECT_EQ((*storage)->pool(1, 0).pages, 7);
  EXPECT_EQ((*storage)->pool(1, 0).head_dim, 64);

  for (const int64_t pages : {int64_t{0}, int64_t{-1}, int64_t{1} << 28, INT64_MAX}) {
    EXPECT_EQ(KvStorage::Create(device, groups, {pages, 1}, 16, DType::kBF16).status().code(),
              StatusCode::kInvalidArgument);
  }
  EXPECT_FALSE(KvStorage::Create(device, groups, {1}, 16, DType::kBF16).ok());
  EXPECT_FALSE(KvStorage::Create(device, groups, {1, 1}, 32, DType::kBF16).ok());
}

TEST(SelectionBuilder, ListsAreTheSpansInOrder) {
  const std::vector<int32_t> pages = {9, 4, 7}, logical = {0, 1, 2};
  std::vector<int32_t> page_room(4, -1), logical_room(4, -1);
  std::vector<int64_t> offsets(4, -1);
  const SelectionArrays arrays{page_room.data(), logical_room.data(), offsets.data()};
  SelectionBuilder builder(arrays);
  builder.AddDense({pages, logical});
  builder.AddDense({});
  builder.AddDense({std::span(pages).subspan(2), std::span(logical).subspan(2)});
  const kernels::PageLists lists = arrays.Lists(3);
  EXPECT_EQ(offsets, (std::vector<int64_t>{0, 3, 3, 4}));
  EXPECT_EQ(lists.ends[2], 4);
  EXPECT_EQ(lists.pages[1], 4);
  EXPECT_EQ(lists.pages[3], 7);
  EXPECT_EQ(lists.logical[3], 2);
}

TEST(SelectionBuilder, SlotsFollowThePagesAndMissingOnesAreErrors) {
  const std::vector<int32_t> pages = {9, 4}, logical = {3, 4};
  std::vector<int32_t> slots(4);
  ASSERT_TRUE(FillSlots({pages, logical}, 16, 62, 4, slots.data()).ok());
  EXPECT_EQ(slots, (std::vector<int32_t>{9 * 16 + 14, 9 * 16 + 15, 4 * 16, 4 * 16 + 1}));
  EXPECT_EQ(FillSlots({pages, logical}, 16, 47, 2, slots.data()).code(), StatusCode::kInternal);
  EXPECT_EQ(FillSlots({pages, logical}, 16, 78, 4, slots.data()).code(), StatusCode::kInternal);
  EXPECT_EQ(FillSlots({}, 16, 0, 1, slots.data()).code(), StatusCode::kInternal);
}

}  // namespace
}  // namespace lacuna::kvcache
