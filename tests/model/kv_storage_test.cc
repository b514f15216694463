#include "kvcache/pages/kv_storage.h"

#include <gtest/gtest.h>

#include "kernels/make_backend.h"
#include "kvcache/sparse/metadata_storage.h"
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

TEST(MetadataStorage, EachStoreHasItsSlabsBesideThePagesOfFullGroups) {
  auto backend = kernels::MakeBackend(kernels::DeviceKind::kCpu, {});
  ASSERT_TRUE(backend.ok());
  const std::vector<KvGroup> groups = {
      {.layers = {{0, 2}, {1, 1}}, .head_dim = 64},
      {.layers = {{1, 1, 1}}, .head_dim = 64, .window_tokens = 128, .sink_tokens = 16}};
  const MetadataSpec bounds{.kind = kernels::MetadataKind::kMinMax};
  const MetadataSpec labels{.kind = kernels::MetadataKind::kLabels,
                            .precision = kernels::MetadataPrecision::kInt4,
                            .sub_tokens = 1,
                            .window_tokens = 1,
                            .channels = 8};
  std::vector<int16_t> channels(2 * 2 * 8);
  for (size_t i = 0; i < channels.size(); ++i) channels[i] = static_cast<int16_t>(i);
  const std::vector<MetadataStore> stores = {
      {.spec = bounds, .layers = {true, true}, .channels = {}},
      {.spec = labels, .layers = {false, true}, .channels = channels}};
  const auto storage = MetadataStorage::Create((*backend)->device(), groups, {10, 4}, 64, stores);
  ASSERT_TRUE(storage.ok()) << storage.status().ToString();
  const int64_t of_bounds = kernels::MetadataPool::SlabBytes(bounds, 64, 64);
  const int64_t of_labels = kernels::MetadataPool::SlabBytes(labels, 64, 64);
  EXPECT_EQ(MetadataStorage::PageBytes(groups[0], 64, stores), 3 * of_bounds + of_labels);
  EXPECT_EQ(MetadataStorage::PageBytes(groups[1], 64, stores), 0);
  const kernels::MetadataPool first = (*storage)->Find(bounds, 0, 0);
  const kernels::MetadataPool second = (*storage)->Find(bounds, 0, 1);
  const kernels::MetadataPool third = (*storage)->Find(labels, 0, 1);
  ASSERT_NE(first.data, nullptr);
  EXPECT_EQ(first.Slab(10, 0), second.data);
  EXPECT_EQ(second.Slab(10, 0), third.data);
  EXPECT_EQ(third.kv_heads, 1);
  ASSERT_NE(third.channels, nullptr);
  EXPECT_EQ(third.channels[0], 16);  // of layer 1
  EXPECT_EQ((*storage)->Find(labels, 0, 0).data, nullptr);
  EXPECT_EQ((*storage)->Find(bounds, 1, 0).data, nullptr);
  EXPECT_EQ((*storage)->Find({}, 0, 0).data, nullptr);
  EXPECT_FALSE((*storage)->reads_previous_pages());
  EXPECT_EQ(MetadataStorage::Create((*backend)->device(), groups, {10}, 64, stores).status().code(),
            StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace lacuna::kvcache
