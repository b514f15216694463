#include "tests/ops/select_fixture.h"

#include <numeric>

#include "kernels/cpu/metadata_layout.h"
#include "kernels/cuda/metadata_layout.h"

namespace lacuna::kernels {

namespace {

double Bf16At(const uint8_t* at) {
  BF16 value;
  std::memcpy(&value, at, sizeof(value));
  return double{ToFloat(value)};
}

double CpuValue(const cpu::MetadataLayout& layout, const uint8_t* slab, int64_t entry, int vector,
                int64_t channel) {
  const int64_t row =
      layout.lanes ? layout.ChannelAt(channel, vector) : layout.VectorAt(entry, vector);
  const int64_t index = layout.lanes ? entry : channel;
  if (layout.bits == 16) return Bf16At(slab + row + 2 * index);
  const int64_t bytes = 16 * layout.bits / 8, in_group = index % 16;
  const int byte = slab[row + index / 16 * bytes + in_group % bytes];
  const int code = byte >> (in_group / bytes * layout.bits) & layout.levels();
  return Bf16At(slab + layout.ZeroAt(entry, vector)) +
         Bf16At(slab + layout.ScaleAt(entry, vector)) * code;
}

double CudaValue(const cuda::MetadataLayout& layout, const uint8_t* slab, int entry, int vector,
                 int64_t channel) {
  const uint8_t* row = slab + layout.VectorAt(entry, vector);
  if (layout.bits == 16) return Bf16At(row + 2 * channel);
  const int64_t bit = channel * layout.bits;
  const int code = row[bit / 8] >> bit % 8 & layout.levels();
  const uint8_t* scale = slab + layout.ScaleAt(entry, vector);
  return Bf16At(scale + 2) + Bf16At(scale) * code;
}

}  // namespace

double SelectWorld::Stored(const MetadataSpec& spec, int64_t page, int64_t head, int64_t entry,
                           int vector, int64_t channel) const {
  const int64_t bytes = MetadataPool::SlabBytes(spec, shape_.head_dim, shape_.page_tokens);
  const uint8_t* slab = stored(spec).read() + (page * shape_.kv_heads + head) * bytes;
  if (backend_->device().kind() == DeviceKind::kCpu) {
    return CpuValue({spec, shape_.head_dim, shape_.page_tokens}, slab, entry, vector, channel);
  }
  return CudaValue({spec, shape_.head_dim, shape_.page_tokens}, slab, static_cast<int>(entry),
                   vector, channel);
}

SelectWorld::SelectWorld(std::shared_ptr<Backend> backend, const SelectShape& shape, DType dtype,
                         std::vector<int> capacity_tokens, uint32_t seed, bool whole)
    : backend_(std::move(backend)), shape_(shape), dtype_(dtype), whole_(whole), random_(seed) {
  int64_t pages = 1;
  for (const int tokens : capacity_tokens) pages += CeilDiv(tokens, shape.page_tokens);
  std::vector<int32_t> ids(static_cast<size_t>(pages));
  std::iota(ids.begin(), ids.end(), 0);
  std::shuffle(ids.begin(), ids.end(), random_);
  for (const int tokens : capacity_tokens) {
    const auto count = static_cast<ptrdiff_t>(CeilDiv(tokens, shape.page_tokens));
    page_table_.emplace_back(ids.end() - count, ids.end());
    ids.erase(ids.end() - count, ids.end());
    appended_.push_back(0);
    auto& keys = keys_.emplace_back(static_cast<size_t>(tokens));
    for (auto& key : keys) {
      for (int c = 0; c < shape.kv_heads * shape.head_dim; ++c) {
        key.push_back(Rounded(Draw() + (whole ? 0.0f : 0.3f * static_cast<float>(c % 5)), dtype));
      }
    }
  }
  pool_ = {nullptr, dtype, pages, shape.kv_heads, shape.head_dim, shape.page_tokens};
  memory_ =
      std::make_unique<TestMemory>(*backend_, static_cast<size_t>(pool_.Bytes()), uint8_t{0xff});
}

float SelectWorld::Draw() {
  if (whole_) return static_cast<float>(std::uniform_int_distribution<int>(-2, 2)(random_));
  return std::normal_distribution<float>(0.0f, 1.0f)(random_);
}

KvPool SelectWorld::pool() {
  KvPool pool = pool_;
  pool.data = memory_->device();
  return pool;
}

std::string SelectWorld::KeyOf(const MetadataSpec& spec) {
  return std::to_string(static_cast<int>(spec.kind)) + "/" +
         std::to_string(static_cast<int>(spec.precision)) + "/" + std::to_string(spec.sub_tokens) +
         "/" + std::to_string(spec.window_tokens) + "/" + std::to_string(spec.channels);
}

void SelectWorld::AddMetadata(const MetadataSpec& spec) {
  if (!spec.any() || stores_.contains(KeyOf(spec))) return;
  MetadataPool shape{nullptr, spec, pool_.pages, pool_.kv_heads, pool_.head_dim, pool_.page_tokens};
  std::vector<int16_t> lists;
  for (int head = 0; head < shape_.kv_heads && spec.channels > 0; ++head) {
    std::vector<int16_t> all(static_cast<size_t>(shape_.head_dim));
    std::iota(all.begin(), all.end(), int16_t{0});
    std::shuffle(all.begin(), all.end(), random_);
    std::sort(all.begin(), all.begin() + spec.channels);
    lists.insert(lists.end(), all.begin(), all.begin() + spec.channels);
  }
  stores_.emplace(
      KeyOf(spec),
      std::unique_ptr<Store>(new Store{
          spec, lists, TestMemory(*backend_, static_cast<size_t>(shape.Bytes()), uint8_t{0xff}),
          TestArray<int16_t>(*backend_, lists)}));
}

MetadataPool SelectWorld::metadata(const MetadataSpec& spec) {
  MetadataPool pool{nullptr, spec, pool_.pages, pool_.kv_heads, pool_.head_dim, pool_.page_tokens};
  if (!spec.any()) return pool;
  Store& store = *stores_.at(KeyOf(spec));
  pool.data = store.memory.device();
  if (!store.lists.empty()) pool.channels = store.channels.device();
  return pool;
}

void SelectWorld::AppendTo(int sequence, int end) {
  int& first = appended_[static_cast<size_t>(sequence)];
  const int count = end - first;
  if (count <= 0) return;
  TestTensor k({backend_.get(), true}, dtype_, count, shape_.kv_heads * shape_.head_dim);
  std::vector<int32_t> slots, previous;
  for (int t = first; t < end; ++t) {
    for (int64_t c = 0; c < k.dim(); ++c) k.set(t - first, c, key(sequence, t, 0)[c]);
    const int logical = t / shape_.page_tokens;
    slots.push_back(page(sequence, logical) * shape_.page_tokens + t % shape_.page_tokens);
    previous.push_back(logical == 0 ? -1 : page(sequence, logical - 1));
  }
  TestArray<int32_t> device_slots(*backend_, slots), device_previous(*backend_, previous);
  const TensorView slot_view(device_slots.device(), DType::kI32, {count});
  const TensorView previous_view(device_previous.device(), DType::kI32, {count});
  Stream stream;
  const TensorView rows = k.view3(shape_.kv_heads);
  ASSERT_EQ(AppendKv(*backend_, {rows, rows, slot_view, pool()}, stream), OkStatus());
  for (const auto& [name, store] : stores_) {
    ASSERT_EQ(AppendMetadata(*backend_, {slot_view, previous_view, pool(), metadata(store->spec)},
                             stream),
              OkStatus());
  }
  first = end;
}

}  // namespace lacuna::kernels
