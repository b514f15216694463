#include "bench/gpu/prefill_case.h"

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <thread>
#include <utility>

#include "kernels/cuda/kv_layout.cuh"

namespace lacuna::bench {
namespace {

constexpr int kPageTokens = 64;

void Must(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}

uint16_t ToBits(float value, DType dtype) {
  return dtype == DType::kF16 ? ToF16(value).bits : ToBF16(value).bits;
}
float FromBits(uint16_t bits, DType dtype) {
  return dtype == DType::kF16 ? ToFloat(F16{bits}) : ToFloat(BF16{bits});
}

std::vector<float> Rounded(size_t count, float spread, DType dtype, std::mt19937& random) {
  std::normal_distribution<float> normal(0.0f, spread);
  std::vector<float> values(count);
  for (float& value : values) value = FromBits(ToBits(normal(random), dtype), dtype);
  return values;
}

template <typename T>
DeviceArray Upload(const std::vector<T>& values) {
  return {values.data(), values.size() * sizeof(T)};
}

}  // namespace

DeviceArray::DeviceArray(size_t bytes) {
  Must(cudaMalloc(&data_, std::max<size_t>(bytes, 16)), "cudaMalloc");
}
DeviceArray::DeviceArray(const void* host, size_t bytes) : DeviceArray(bytes) {
  if (bytes > 0) Must(cudaMemcpy(data_, host, bytes, cudaMemcpyHostToDevice), "upload");
}
DeviceArray::DeviceArray(DeviceArray&& other) noexcept : data_(std::exchange(other.data_, {})) {}
DeviceArray& DeviceArray::operator=(DeviceArray&& other) noexcept {
  std::swap(data_, other.data_);
  return *this;
}
DeviceArray::~DeviceArray() { cudaFree(data_); }

PrefillCase::PrefillCase(const PrefillShape& shape) : shape_(shape) {
  std::mt19937 random(shape.seed);
  for (const ChunkShape& chunk : shape.chunks) {
    tokens_ += chunk.rows_before;
    chunks_.push_back({tokens_, chunk.rows, chunk.first_position});
    tokens_ += chunk.rows;
  }
  tokens_ += 3;
  MakeQueries(random);
  MakeSequences(random);
  if (shape.ranges != RangeKind::kNone) MakeRanges(random);
  if (!shape.shapes_per_head) return;
  std::vector<StaticShape> shapes;
  for (size_t chunk = 0; chunk < chunks_.size(); ++chunk) {
    for (int head = 0; head < shape_.kv_heads; ++head) shapes.push_back(ShapeOf(chunk, head));
  }
  tables_.push_back(Upload(shapes));
  device_shapes_ = static_cast<StaticShape*>(tables_.back().data());
}

// Some see everything.
StaticShape PrefillCase::ShapeOf(size_t chunk, int kv_head) const {
  if (!shape_.shapes_per_head) return shape_.shape;
  const StaticShape shapes[] = {{0, 0}, {70, 5}, {1, 0}, {130, 64}, {333, 20}};
  return shapes[(static_cast<int>(chunk) + 2 * kv_head) % 5];
}

void PrefillCase::MakeQueries(std::mt19937& random) {
  const auto heads = static_cast<size_t>(shape_.q_heads);
  const size_t elements = static_cast<size_t>(tokens_) * heads * shape_.head_dim;
  q_ = Rounded(elements, shape_.q_scale, shape_.dtype, random);
  std::vector<uint16_t> bits(elements);
  std::transform(q_.begin(), q_.end(), bits.begin(),
                 [&](float value) { return ToBits(value, shape_.dtype); });
  q_memory_ = Upload(bits);
  out_memory_ = DeviceArray(elements * 2);
  lse_memory_ = DeviceArray(static_cast<size_t>(tokens_) * heads * 4);
  sink_logits_ = Rounded(heads, 2.0f, DType::kBF16, random);
  sink_memory_ = Upload(sink_logits_);
}

void PrefillCase::MakeSequences(std::mt19937& random) {
  const auto width = static_cast<size_t>(int64_t{shape_.kv_heads} * shape_.head_dim);
  for (const PrefillChunk& chunk : chunks_) {
    Sequence sequence;
    const int keys = chunk.first_position + chunk.rows;
    sequence.k = Rounded(static_cast<size_t>(keys) * width, 1.0f, shape_.dtype, random);
    sequence.v = Rounded(static_cast<size_t>(keys) * width, 1.0f, shape_.dtype, random);
    const int pages = (keys + kPageTokens - 1) / kPageTokens;
    for (int page = 0; page < pages; ++page) {
      const bool missing = (shape_.lists == ListKind::kHoles && random() % 3 == 0) ||
                           (shape_.lists == ListKind::kRecent && page < pages / 2);
      sequence.listed.push_back(!missing);
      if (!missing) sequence.logical.push_back(page);
    }
    pages_ += static_cast<int64_t>(sequence.logical.size());
    sequences_.push_back(std::move(sequence));
  }
  pages_ += 5;  // of nobody
  std::vector<int32_t> order(static_cast<size_t>(pages_));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random);
  const size_t slab = static_cast<size_t>(int64_t{2} * kPageTokens * shape_.head_dim);
  std::vector<uint16_t> pool(slab * static_cast<size_t>(pages_ * shape_.kv_heads), 0x7fff);  // NaN
  std::vector<int32_t> list_pages, list_logical;
  std::vector<int64_t> begins, ends;
  size_t drawn = 0;
  for (size_t s = 0; s < sequences_.size(); ++s) {
    Sequence& sequence = sequences_[s];
    const int keys = chunks_[s].first_position + chunks_[s].rows;
    begins.push_back(static_cast<int64_t>(list_pages.size()));
    for (const int logical : sequence.logical) {
      const int page = order[drawn++];
      list_pages.push_back(page);
      list_logical.push_back(logical);
      for (int head = 0; head < shape_.kv_heads; ++head) {
        uint16_t* const data = &pool[static_cast<size_t>(page * shape_.kv_heads + head) * slab];
        std::fill_n(data, slab, uint16_t{0});
        for (int row = 0; row < kPageTokens && logical * kPageTokens + row < keys; ++row) {
          const size_t at = static_cast<size_t>(logical * kPageTokens + row) * width +
                            static_cast<size_t>(head * shape_.head_dim);
          for (int column = 0; column < shape_.head_dim; ++column) {
            const int element = kernels::cuda::KvElement(row, column, kPageTokens, shape_.head_dim);
            data[element] = ToBits(sequence.k[at + column], shape_.dtype);
            data[slab / 2 + element] = ToBits(sequence.v[at + column], shape_.dtype);
          }
        }
      }
    }
    ends.push_back(static_cast<int64_t>(list_pages.size()));
  }
  pool_memory_ = Upload(pool);
  tables_.push_back(Upload(list_pages));
  tables_.push_back(Upload(list_logical));
  tables_.push_back(Upload(begins));
  tables_.push_back(Upload(ends));
  device_lists_ = {static_cast<int32_t*>(tables_[0].data()),
                   static_cast<int32_t*>(tables_[1].data()),
                   static_cast<int64_t*>(tables_[2].data()),
                   static_cast<int64_t*>(tables_[3].data()), static_cast<int64_t>(begins.size())};
}

void PrefillCase::MakeRanges(std::mt19937& random) {
  std::uniform_real_distribution<double> uniform(0.0, 1.0);
  const int unit = shape_.ranges == RangeKind::kBlocks ? 128 : 16;
  for (const PrefillChunk& chunk : chunks_) {
    range_offsets_.push_back(static_cast<int64_t>(range_begins_.size()));
    const int tiles = (chunk.rows + 63) / 64;
    for (int list = 0; list < shape_.q_heads * tiles; ++list) {
      range_begins_.push_back(static_cast<int64_t>(range_begin_.size()));
      const bool empty = shape_.ranges == RangeKind::kSomeEmpty && list % 3 != 0;
      const int units = empty ? 0 : (chunk.first_position + chunk.rows + unit - 1) / unit;
      bool open = false;
      for (int u = 0; u < units; ++u) {
        const bool kept = uniform(random) < shape_.density;
        if (kept && !open) range_begin_.push_back(u * unit);
        if (!kept && open) range_end_.push_back(u * unit);
        open = kept;
      }
      if (open) range_end_.push_back(units * unit);
      range_ends_.push_back(static_cast<int64_t>(range_begin_.size()));
    }
  }
  const size_t first = tables_.size();
  tables_.push_back(Upload(range_begin_));
  tables_.push_back(Upload(range_end_));
  tables_.push_back(Upload(range_begins_));
  tables_.push_back(Upload(range_ends_));
  tables_.push_back(Upload(range_offsets_));
  device_ranges_ = {static_cast<int32_t*>(tables_[first].data()),
                    static_cast<int32_t*>(tables_[first + 1].data()),
                    static_cast<int64_t*>(tables_[first + 2].data()),
                    static_cast<int64_t*>(tables_[first + 3].data()),
                    static_cast<int64_t*>(tables_[first + 4].data())};
}

AttendPrefillArgs PrefillCase::Args() const {
  AttendPrefillArgs args;
  args.q = TensorView(q_memory_.data(), shape_.dtype, {tokens_, shape_.q_heads, shape_.head_dim});
  args.out =
      TensorView(out_memory_.data(), shape_.dtype, {tokens_, shape_.q_heads, shape_.head_dim});
  args.lse = TensorView(lse_memory_.data(), DType::kF32, {tokens_, shape_.q_heads});
  args.pool = {pool_memory_.data(), shape_.dtype,    pages_,
               shape_.kv_heads,     shape_.head_dim, kPageTokens};
  args.chunks = chunks_;
  args.lists = device_lists_;
  args.ranges = range_begins_.empty() ? nullptr : &device_ranges_;
  args.params.scale = 1.0f / std::sqrt(static_cast<float>(shape_.head_dim));
  args.params.softcap = shape_.softcap;
  args.params.sink_logits =
      shape_.sink_logits ? static_cast<const float*>(sink_memory_.data()) : nullptr;
  args.params.shape = shape_.shape;
  args.shapes = device_shapes_;
  return args;
}

void PrefillCase::PoisonOutputs() {
  Must(cudaMemset(out_memory_.data(), 0x7f, q_.size() * 2), "poison out");
  Must(cudaMemset(lse_memory_.data(), 0x7f,
                  static_cast<size_t>(int64_t{tokens_} * shape_.q_heads) * 4),
       "poison lse");
}

PrefillCase::Outputs PrefillCase::Fetch() const {
  Outputs outputs;
  outputs.bits.resize(q_.size());
  outputs.lse.resize(static_cast<size_t>(int64_t{tokens_} * shape_.q_heads));
  Must(cudaMemcpy(outputs.bits.data(), out_memory_.data(), outputs.bits.size() * 2,
                  cudaMemcpyDeviceToHost),
       "fetch out");
  Must(cudaMemcpy(outputs.lse.data(), lse_memory_.data(), outputs.lse.size() * 4,
                  cudaMemcpyDeviceToHost),
       "fetch lse");
  for (const uint16_t bits : outputs.bits) outputs.out.push_back(FromBits(bits, shape_.dtype));
  return outputs;
}

std::vector<bool> PrefillCase::RowsOfChunks() const {
  std::vector<bool> rows(static_cast<size_t>(tokens_));
  for (const PrefillChunk& chunk : chunks_) {
    std::fill_n(rows.begin() + chunk.first_row, chunk.rows, true);
  }
  return rows;
}

bool PrefillCase::Visible(size_t chunk, int row, int head, int key) const {
  const int position = chunks_[chunk].first_position + row;
  const StaticShape shape = ShapeOf(chunk, head / (shape_.q_heads / shape_.kv_heads));
  if (key > position) return false;
  if (shape.window_tokens > 0 && key <= position - shape.window_tokens &&
      key >= shape.sink_tokens) {
    return false;
  }
  if (!sequences_[chunk].listed[static_cast<size_t>(key / kPageTokens)]) return false;
  if (range_begins_.empty()) return true;
  const int tiles = (chunks_[chunk].rows + 63) / 64;
  const auto list = static_cast<size_t>(range_offsets_[chunk] + head * tiles + row / 64);
  for (auto i = range_begins_[list]; i < range_ends_[list]; ++i) {
    if (key >= range_begin_[static_cast<size_t>(i)] && key < range_end_[static_cast<size_t>(i)]) {
      return true;
    }
  }
  return false;
}

void PrefillCase::ReferenceRow(size_t chunk, int row, int head, Outputs* out) const {
  const auto dim = static_cast<size_t>(shape_.head_dim);
  const Sequence& sequence = sequences_[chunk];
  const auto global_row = static_cast<size_t>(int64_t{chunks_[chunk].first_row} + row);
  const size_t at = global_row * shape_.q_heads + static_cast<size_t>(head);
  const float* const q = &q_[at * dim];
  const int kv_head = head / (shape_.q_heads / shape_.kv_heads);
  const double scale = 1.0 / std::sqrt(static_cast<double>(dim));
  std::vector<double> scores;
  std::vector<size_t> places;
  double top = -INFINITY;
  for (int key = 0; key <= chunks_[chunk].first_position + row; ++key) {
    if (!Visible(chunk, row, head, key)) continue;
    const size_t place = static_cast<size_t>(key * shape_.kv_heads + kv_head) * dim;
    double score = 0.0;
    for (size_t d = 0; d < dim; ++d) score += double{q[d]} * double{sequence.k[place + d]};
    score *= scale;
    if (shape_.softcap > 0.0f) score = shape_.softcap * std::tanh(score / shape_.softcap);
    scores.push_back(score);
    places.push_back(place);
    top = std::max(top, score);
  }
  out->lse[at] = -INFINITY;
  if (scores.empty()) return;
  double sum = 0.0;
  std::vector<double> result(dim);
  for (size_t i = 0; i < scores.size(); ++i) {
    const double weight = std::exp(scores[i] - top);
    sum += weight;
    for (size_t d = 0; d < dim; ++d) result[d] += weight * double{sequence.v[places[i] + d]};
  }
  out->lse[at] = static_cast<float>(top + std::log(sum));
  if (shape_.sink_logits) sum += std::exp(double{sink_logits_[static_cast<size_t>(head)]} - top);
  for (size_t d = 0; d < dim; ++d) out->out[at * dim + d] = static_cast<float>(result[d] / sum);
}

PrefillCase::Outputs PrefillCase::Reference() const {
  Outputs outputs;
  outputs.out.resize(q_.size());
  outputs.lse.resize(static_cast<size_t>(int64_t{tokens_} * shape_.q_heads));
  for (size_t chunk = 0; chunk < chunks_.size(); ++chunk) {
    const auto rows = [&, chunk](int first, int step) {
      for (int row = first; row < chunks_[chunk].rows; row += step) {
        for (int head = 0; head < shape_.q_heads; ++head) ReferenceRow(chunk, row, head, &outputs);
      }
    };
    const int threads = chunks_[chunk].rows < 32 ? 1 : 16;
    std::vector<std::jthread> workers;
    for (int i = 1; i < threads; ++i) workers.emplace_back(rows, i, threads);
    rows(0, threads);
  }
  return outputs;
}

}  // namespace lacuna::bench
