// Speed of SelectKeys at an 8B model's shapes (32 query heads, 8 kv heads of 128 channels, pages of
// 64): scoring by bounds of int8 and by labels and whole keys of 4 bits, the choice among the
// scores, both, and AppendMetadata.
//
// gpu_select_bench: the time of a call within a graph of many (median, 10th to 90th percentile) and
// the rate of the bytes that have to move; metadata rotates so that L2 does not hold it.
#include <algorithm>
#include <numeric>
#include <random>
#include <string>

#include "bench/gpu/device_memory.h"
#include "kernels/core/dtype.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/select/select_score.h"

namespace lacuna::bench {
namespace {

using kernels::DecodePath;
using kernels::KvPool;
using kernels::MetadataKind;
using kernels::MetadataPool;
using kernels::MetadataPrecision;
using kernels::MetadataSpec;
using kernels::SelectKeysArgs;
using kernels::SelectRow;

constexpr int64_t kQHeads = 32;
constexpr int64_t kKvHeads = 8;
constexpr int64_t kHeadDim = 128;
constexpr int64_t kPageTokens = 64;
constexpr double kRotateBytes = 300e6;

__device__ uint32_t Hash(uint64_t x) {
  x = (x ^ (x >> 31)) * 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 29)) * 0xbf58476d1ce4e5b9ull;
  return static_cast<uint32_t>(x >> 32);
}
// Random codes; every four bytes behind scales_at a scale of about 1/64 and a zero of about -2.
__global__ void FillMetadata(uint32_t* words, int64_t count, int64_t slab_words,
                             int64_t scales_word) {
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const uint32_t random = Hash(static_cast<uint64_t>(i));
    words[i] = i % slab_words < scales_word ? random : 0xc0003c80u | (random & 0x000f000fu);
  }
}
// Small numbers of either sign.
__global__ void FillBf16(uint16_t* values, int64_t count) {
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    const uint32_t random = Hash(static_cast<uint64_t>(i));
    values[i] = static_cast<uint16_t>(0x3e00u | (random & 0x81ffu));
  }
}

MetadataSpec BoundsOf(int32_t sub_tokens) {
  return {.kind = MetadataKind::kMinMax,
          .precision = MetadataPrecision::kInt8,
          .sub_tokens = sub_tokens,
          .window_tokens = sub_tokens};
}

MetadataSpec CodesOf(MetadataKind kind, int32_t channels) {
  return {.kind = kind,
          .precision = MetadataPrecision::kInt4,
          .sub_tokens = 1,
          .window_tokens = 1,
          .channels = channels};
}
// Every `head_dim / channels`-th channel, of each head.
std::vector<int16_t> ChannelsOf(const MetadataSpec& spec) {
  std::vector<int16_t> channels;
  const int64_t each = spec.channels > 0 ? kHeadDim / spec.channels : 0;
  for (int64_t i = 0; i < kKvHeads * spec.channels; ++i) {
    const int64_t head = i / spec.channels;
    channels.push_back(static_cast<int16_t>(i % spec.channels * each + head % each));
  }
  if (channels.empty()) channels.push_back(0);
  return channels;
}

// Sequences of one length whose pages lie anywhere.
class Batch final {
 public:
  Batch(int64_t rows, int64_t tokens, const MetadataSpec& spec, int64_t budget_tokens)
      : rows_(rows),
        tokens_(tokens),
        pages_(rows * tokens / kPageTokens),
        spec_(spec),
        unit_(std::max(spec.sub_tokens, spec.kind == MetadataKind::kMinMax ? 1 : 64)) {
    const MetadataPool pool{nullptr, spec, pages_, kKvHeads, kHeadDim, kPageTokens};
    sets_ = std::clamp(static_cast<int64_t>(kRotateBytes / static_cast<double>(pool.Bytes())) + 1,
                       int64_t{2}, int64_t{64});
    metadata_ = DeviceVector<std::byte>(static_cast<size_t>(sets_ * pool.Bytes()));
    const kernels::cuda::MetadataLayout layout(pool.spec, kHeadDim, kPageTokens);
    FillMetadata<<<1024, 256>>>(reinterpret_cast<uint32_t*>(metadata_.data()),
                                sets_ * pool.Bytes() / 4, pool.SlabBytes() / 4,
                                layout.scales_at / 4);
    FillBf16<<<64, 256>>>(q_.data(), static_cast<int64_t>(q_.size()));
    Check(cudaDeviceSynchronize(), "fill");
    FillLists(budget_tokens);
    workspace_ = DeviceVector<std::byte>(
        static_cast<size_t>(kernels::cuda::SelectKeysWorkspaceBytes(rows, kQHeads, tokens)));
  }

  double MetadataBytes() const {  // without padding
    return static_cast<double>(pages_ * kKvHeads * spec_.PageBytes(kHeadDim, kPageTokens));
  }
  SelectKeysArgs Args(int64_t set) const {
    SelectKeysArgs args;
    args.q = {q_.data(), DType::kBF16, {rows_, kQHeads, kHeadDim}};
    args.pool = {metadata_.data(), DType::kBF16, pages_, kKvHeads, kHeadDim, kPageTokens};
    args.metadata = {nullptr, spec_, pages_, kKvHeads, kHeadDim, kPageTokens, channels_.data()};
    args.metadata.data = metadata_.data() + set % sets_ * args.metadata.Bytes();
    args.positions = {positions_.data(), DType::kI32, {rows_}};
    args.pages = {pages_list_.data(), logical_.data(), begins_.data(), begins_.data() + 1, rows_};
    args.path.metadata = spec_;
    args.path.unit_tokens = unit_;
    args.path.score =
        spec_.kind == MetadataKind::kMinMax ? kernels::ScoreKind::kBound : kernels::ScoreKind::kDot;
    args.path.pool = kernels::PoolKind::kMax;
    args.path.select = kernels::SelectKind::kTopK;
    args.rows = dials_.data();
    args.scale = 0.088f;
    const int64_t stride = tokens_ / kPageTokens;
    args.choices = {masks_.data(), kKvHeads, stride, nullptr};
    args.out = {out_pages_.data(),  out_logical_.data(), out_masks_.data(),
                out_begins_.data(), out_ends_.data(),    stride};
    return args;
  }
  kernels::cuda::Workspace workspace() const {
    return {workspace_.data(), static_cast<int64_t>(workspace_.size())};
  }
  int64_t rows() const { return rows_; }
  int64_t tokens() const { return tokens_; }

 private:
  void FillLists(int64_t budget_tokens) {
    const int64_t each = tokens_ / kPageTokens;
    std::vector<int32_t> ids(static_cast<size_t>(pages_)), logical(ids.size());
    std::iota(ids.begin(), ids.end(), 0);
    std::mt19937 random(3);
    std::shuffle(ids.begin(), ids.end(), random);
    for (size_t i = 0; i < logical.size(); ++i) {
      logical[i] = static_cast<int32_t>(static_cast<int64_t>(i) % each);
    }
    std::vector<int64_t> begins;
    for (int64_t row = 0; row <= rows_; ++row) begins.push_back(row * each);
    SelectRow dials;
    dials.counts = {.dense = false,
                    .units = static_cast<int32_t>(tokens_ / unit_),
                    .sink_units = 1,
                    .local_units = 4};
    dials.counts.ranked_units_max = static_cast<int32_t>(budget_tokens / unit_) - 5;
    dials.counts.ranked_units_min = dials.counts.ranked_units_max;
    std::vector<SelectRow> rows(static_cast<size_t>(rows_), dials);
    for (size_t i = 0; i < rows.size(); ++i) rows[i].choice = static_cast<int32_t>(i);
    pages_list_ = DeviceVector<int32_t>(ids);
    logical_ = DeviceVector<int32_t>(logical);
    begins_ = DeviceVector<int64_t>(begins);
    positions_ = DeviceVector<int32_t>(
        std::vector<int32_t>(static_cast<size_t>(rows_), static_cast<int32_t>(tokens_ - 1)));
    dials_ = DeviceVector<SelectRow>(rows);
  }

  int64_t rows_, tokens_, pages_, sets_ = 1;
  MetadataSpec spec_;
  int32_t unit_;
  size_t lists_ = static_cast<size_t>(rows_ * kKvHeads);
  size_t entries_ = static_cast<size_t>(pages_ * kKvHeads);
  DeviceVector<std::byte> metadata_{0}, workspace_{0};
  DeviceVector<uint16_t> q_{static_cast<size_t>(rows_ * kQHeads * kHeadDim)};
  DeviceVector<int32_t> pages_list_{0}, logical_{0}, positions_{0};
  DeviceVector<int16_t> channels_{ChannelsOf(spec_)};
  DeviceVector<int64_t> begins_{0};
  DeviceVector<SelectRow> dials_{0};
  DeviceVector<uint64_t> masks_{entries_}, out_masks_{entries_};
  DeviceVector<int32_t> out_pages_{entries_}, out_logical_{entries_};
  DeviceVector<int64_t> out_begins_{lists_}, out_ends_{lists_};
};

void Report(const char* name, int64_t rows, int64_t tokens, double bytes, cudaStream_t stream,
            const std::function<void(cudaStream_t, int)>& run) {
  const Timing timing = TimeInGraph(run, 20, stream);
  std::printf("select %-20s %4ld rows %7ld tokens %9.2f us (%.2f-%.2f) %6.3f TB/s\n", name, rows,
              tokens, timing.median_ms * 1e3, timing.low_ms * 1e3, timing.high_ms * 1e3,
              bytes / (timing.median_ms * 1e-3) * 1e-12);
  std::fflush(stdout);
}

void RunBatch(const Batch& batch, const std::string& entry, cudaStream_t stream) {
  const auto traits = TraitsOfDevice();
  const auto group_of = [&](int set) {
    kernels::cuda::SelectGroup group;
    Check(kernels::cuda::FirstGroup(batch.Args(set), traits, batch.workspace(), &group));
    return group;
  };
  Report(("scores " + entry).c_str(), batch.rows(), batch.tokens(), batch.MetadataBytes(), stream,
         [&](cudaStream_t s, int i) { Check(kernels::cuda::ScoreUnits(group_of(i), s)); });
  const auto group = group_of(0);
  const double units = static_cast<double>(group.call.units_stride * group.call.unit_rows);
  Report(("choice " + entry).c_str(), batch.rows(), batch.tokens(),
         units * 4 * static_cast<double>(batch.rows()), stream, [&](cudaStream_t s, int) {
           Check(kernels::cuda::ChooseKeys(group.call, traits, group.rest, s));
         });
  Report(("SelectKeys " + entry).c_str(), batch.rows(), batch.tokens(), batch.MetadataBytes(),
         stream, [&](cudaStream_t s, int i) {
           Check(kernels::cuda::SelectKeys(batch.Args(i), traits, batch.workspace(), s));
         });
}

// `count` new tokens: of one prompt, or of as many sequences.
void RunAppend(int64_t count, bool prompt, const std::string& what, const MetadataSpec& spec,
               cudaStream_t stream) {
  const int64_t pages = prompt ? count / kPageTokens : count;
  constexpr int64_t kSets = 8;
  const KvPool keys{nullptr, DType::kBF16, pages, kKvHeads, kHeadDim, kPageTokens};
  const DeviceVector<std::byte> key_memory(static_cast<size_t>(kSets * keys.Bytes()));
  FillBf16<<<1024, 256>>>(reinterpret_cast<uint16_t*>(key_memory.data()), kSets * keys.Bytes() / 2);
  const DeviceVector<int16_t> channels(ChannelsOf(spec));
  const MetadataPool metadata{nullptr,  spec,        pages,          kKvHeads,
                              kHeadDim, kPageTokens, channels.data()};
  const DeviceVector<std::byte> metadata_memory(static_cast<size_t>(kSets * metadata.Bytes()));
  std::vector<int32_t> slots;
  for (int64_t t = 0; t < count; ++t) {
    slots.push_back(static_cast<int32_t>(prompt ? t : t * kPageTokens + 37));
  }
  const DeviceVector<int32_t> device_slots(slots);
  const int64_t keys_read = prompt ? count : count * (37 % spec.sub_tokens + 1);
  const auto bytes = static_cast<double>(keys_read * kKvHeads * kHeadDim * 2);
  Report(((prompt ? "prompt " : "append ") + what).c_str(), count, prompt ? count : 1, bytes,
         stream, [&](cudaStream_t s, int i) {
           kernels::AppendMetadataArgs args{.slots = {device_slots.data(), DType::kI32, {count}},
                                            .previous_pages = {},
                                            .keys = keys,
                                            .metadata = metadata};
           args.keys.data = key_memory.data() + i % kSets * keys.Bytes();
           args.metadata.data = metadata_memory.data() + i % kSets * metadata.Bytes();
           Check(kernels::cuda::AppendMetadata(args, s));
         });
}

}  // namespace
}  // namespace lacuna::bench

int main() {
  using namespace lacuna::bench;
  cudaStream_t stream = nullptr;
  Check(cudaStreamCreate(&stream), "cudaStreamCreate");
  using lacuna::kernels::MetadataKind;
  const struct {
    std::string name;
    lacuna::kernels::MetadataSpec spec;
  } kinds[] = {{"bounds16", BoundsOf(16)},
               {"bounds64", BoundsOf(64)},
               {"labels4", CodesOf(MetadataKind::kLabels, 32)},
               {"keys4", CodesOf(MetadataKind::kLowBit, 0)}};
  for (const auto& [name, spec] : kinds) {
    for (const int64_t rows : {8, 1}) RunBatch(Batch(rows, 131072, spec, 4096), name, stream);
  }
  for (const auto& [name, spec] : kinds) {
    for (const int64_t rows : {8, 64}) RunAppend(rows, false, name, spec, stream);
    RunAppend(4096, true, name, spec, stream);
  }
  Check(cudaStreamDestroy(stream), "cudaStreamDestroy");
  return 0;
}
