// Checks AttendPrefillSm80, AttendPrefillSimple and AttendDecodeSimple on a GPU against double
// precision, and the bits of rows against how they are cut into chunks. Prints one line for each
// case; exit code 1 when one fails. Links nothing but the kernels and kernels/core.
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <thread>

#include "bench/gpu/attention_cases.h"
#include "bench/gpu/device_memory.h"
#include "kernels/core/dtype.h"
#include "kernels/cuda/attend/attend_prefill_sm80.h"
#include "kernels/cuda/attend/attend_simple.h"
#include "kernels/cuda/kv_layout.cuh"

namespace lacuna::bench {
namespace {

using kernels::AttendDecodeArgs;
using kernels::AttendPrefillArgs;
using kernels::KeyRanges;
using kernels::PageLists;
using kernels::PrefillChunk;

std::mt19937 random_bits(12345);
float Uniform(float limit) {
  return std::uniform_real_distribution<float>(-limit, limit)(random_bits);
}

void Put(std::vector<std::byte>* data, DType dtype, size_t at, float value) {
  std::byte* to = data->data() + at * DTypeBytes(dtype);
  if (dtype == DType::kF32) {
    std::memcpy(to, &value, 4);
  } else {
    const uint16_t bits = dtype == DType::kBF16 ? ToBF16(value).bits : ToF16(value).bits;
    std::memcpy(to, &bits, 2);
  }
}
float Get(const std::vector<std::byte>& data, DType dtype, size_t at) {
  const std::byte* from = data.data() + at * DTypeBytes(dtype);
  if (dtype == DType::kF32) {
    float value;
    std::memcpy(&value, from, 4);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, from, 2);
  return dtype == DType::kBF16 ? ToFloat(BF16{bits}) : ToFloat(F16{bits});
}

// Sequences in a pool that starts full of NaN, one chunk each, on the host and on the device.
class World final {
 public:
  explicit World(const Case& c) : case_(c), heads_(static_cast<size_t>(c.kv_heads)) {
    if (case_.scale == 0.0f) case_.scale = 1.0f / std::sqrt(static_cast<float>(c.head_dim));
    MakePool();
    MakeQueries();
    for (int head = 0; head < c.q_heads; ++head) sinks_.push_back(Uniform(2.0f));
    MakeRanges();
    MakeShapesAndMasks();
    shapes_data_.emplace(shapes_);
    masks_data_.emplace(masks_);
    pool_data_.emplace(pool_);
    q_data_.emplace(q_);
    pages_data_.emplace(pages_);
    logical_data_.emplace(logical_);
    offsets_data_.emplace(offsets_);
    sinks_data_.emplace(sinks_);
    range_begin_data_.emplace(range_begin_);
    range_end_data_.emplace(range_end_);
    range_offsets_data_.emplace(range_offsets_);
    chunk_offsets_data_.emplace(chunk_offsets_);
  }

  int rows() const { return rows_; }
  const std::vector<PrefillChunk>& chunks() const { return chunks_; }
  const std::vector<int64_t>& offsets() const { return offsets_; }
  kernels::KvPool pool() const {
    return {pool_data_->data(), case_.dtype,    page_count_,
            case_.kv_heads,     case_.head_dim, case_.page_tokens};
  }
  kernels::AttentionParams params() const {
    return {case_.scale, case_.softcap, case_.sink_logits ? sinks_data_->data() : nullptr,
            case_.shape};
  }
  TensorView q() const { return Rows(q_data_->data()); }
  TensorView Rows(void* data) const {
    return {data, case_.dtype, {rows_, case_.q_heads, case_.head_dim}};
  }
  size_t row_bytes() const {
    return static_cast<size_t>(case_.q_heads * case_.head_dim) * DTypeBytes(case_.dtype);
  }
  PageLists lists() const {
    return {pages_data_->data(),
            logical_data_->data(),
            offsets_data_->data(),
            offsets_data_->data() + 1,
            static_cast<int64_t>(offsets_.size()) - 1,
            masks_data_->data()};
  }
  // [chunks, kv_heads], or null.
  const kernels::StaticShape* shapes() const { return shapes_data_->data(); }
  KeyRanges ranges() const {
    return {range_begin_data_->data(), range_end_data_->data(), range_offsets_data_->data(),
            range_offsets_data_->data() + 1, chunk_offsets_data_->data()};
  }

  // All rows of the chunks, for each head: [row * q_heads + head]. On all processors.
  std::vector<std::vector<double>> References() const {
    std::vector<std::vector<double>> rows(static_cast<size_t>(rows_ * case_.q_heads));
    const int threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
    std::vector<std::jthread> workers;
    for (int worker = 0; worker < threads; ++worker) {
      workers.emplace_back([&, worker] {
        for (size_t chunk = 0; chunk < chunks_.size(); ++chunk) {
          for (int query = 0; query < chunks_[chunk].rows; ++query) {
            const int row = chunks_[chunk].first_row + query;
            for (int head = 0; head < case_.q_heads; ++head) {
              const int at = row * case_.q_heads + head;
              if (at % threads != worker) continue;
              rows[static_cast<size_t>(at)] = Reference(chunk, query, head);
            }
          }
        }
      });
    }
    return rows;
  }

 private:
  // Output row in double precision; the last element is the log-sum-exp.
  std::vector<double> Reference(size_t chunk, int query, int head) const {
    const auto dims = static_cast<size_t>(case_.head_dim);
    const auto kv_head = static_cast<size_t>(head / (case_.q_heads / case_.kv_heads));
    const auto row = static_cast<size_t>(int64_t{chunks_[chunk].first_row} + query);
    const size_t q_at =
        (row * static_cast<size_t>(case_.q_heads) + static_cast<size_t>(head)) * dims;
    std::vector<double> q(dims);
    for (size_t d = 0; d < dims; ++d) q[d] = double{Get(q_, case_.dtype, q_at + d)};
    std::vector<double> scores;
    std::vector<size_t> keys;
    for (int key = 0; key <= chunks_[chunk].first_position + query; ++key) {
      if (!Visible(chunk, query, head, key)) continue;
      const size_t k_at = (static_cast<size_t>(key) * heads_ + kv_head) * dims;
      double score = 0.0;
      for (size_t d = 0; d < dims; ++d) score += q[d] * double{k_[chunk][k_at + d]};
      score *= double{case_.scale};
      const double cap = double{case_.softcap};
      scores.push_back(cap > 0.0 ? cap * std::tanh(score / cap) : score);
      keys.push_back(k_at);
    }
    std::vector<double> out(dims + 1, 0.0);
    out[dims] = -std::numeric_limits<double>::infinity();
    if (scores.empty()) return out;
    const double max = *std::ranges::max_element(scores);
    double sum = 0.0;
    for (size_t i = 0; i < scores.size(); ++i) {
      const double p = std::exp(scores[i] - max);
      sum += p;
      for (size_t d = 0; d < dims; ++d) out[d] += p * double{v_[chunk][keys[i] + d]};
    }
    out[dims] = max + std::log(sum);
    if (case_.sink_logits) sum += std::exp(double{sinks_[static_cast<size_t>(head)]} - max);
    for (size_t d = 0; d < dims; ++d) out[d] /= sum;
    return out;
  }

  bool Visible(size_t chunk, int query, int head, int key) const {
    const int position = chunks_[chunk].first_position + query;
    const auto kv_head = static_cast<size_t>(head / (case_.q_heads / case_.kv_heads));
    const kernels::StaticShape& shape =
        case_.shapes ? shapes_[chunk * heads_ + kv_head] : case_.shape;
    if (shape.window_tokens != 0 && key <= position - shape.window_tokens &&
        key >= shape.sink_tokens) {
      return false;
    }
    if (!listed_[chunk][static_cast<size_t>(key / case_.page_tokens)]) return false;
    if (case_.masks) {
      auto entry = static_cast<size_t>(offsets_[chunk]);
      while (logical_[entry] != key / case_.page_tokens) ++entry;
      if ((masks_[entry] >> (key % case_.page_tokens) & 1) == 0) return false;
    }
    if (!case_.ranges) return true;
    const int tiles = (chunks_[chunk].rows + 63) / 64;
    const auto list = static_cast<size_t>(chunk_offsets_[chunk] + head * tiles + query / 64);
    for (auto i = static_cast<size_t>(range_offsets_[list]);
         i < static_cast<size_t>(range_offsets_[list + 1]); ++i) {
      if (key >= range_begin_[i] && key < range_end_[i]) return true;
    }
    return false;
  }

  // Each list ends with pages that nothing was written to yet.
  void MakePool() {
    constexpr int kUnwritten = 2;
    page_count_ = 1;
    for (const Span& span : case_.spans) page_count_ += PagesOf(span) + kUnwritten;
    std::vector<int32_t> order(static_cast<size_t>(page_count_));
    std::iota(order.begin(), order.end(), 0);
    std::ranges::shuffle(order, random_bits);
    half_ = static_cast<size_t>(int64_t{case_.page_tokens} * case_.head_dim);
    pool_.assign(2 * half_ * static_cast<size_t>(page_count_) * heads_ * DTypeBytes(case_.dtype),
                 std::byte{0xff});
    size_t next = 0;
    for (const Span& span : case_.spans) {
      const size_t first = next;
      std::vector<bool> listed;
      for (int logical = 0; logical < PagesOf(span) + kUnwritten; ++logical) {
        const int32_t page = order[next++];
        listed.push_back(!case_.holes || random_bits() % 3 != 0);
        if (listed.back()) {
          pages_.push_back(page);
          logical_.push_back(logical);
        }
        if (logical >= PagesOf(span)) continue;
        const size_t slabs = static_cast<size_t>(page) * heads_ * 2 * half_;
        for (size_t i = 0; i < 2 * half_ * heads_; ++i) Put(&pool_, case_.dtype, slabs + i, 0.0f);
      }
      offsets_.push_back(static_cast<int64_t>(pages_.size()));
      listed_.push_back(listed);
      AppendTokens(span.end, &order[first]);
    }
  }
  int PagesOf(const Span& span) const {
    return (span.end + case_.page_tokens - 1) / case_.page_tokens;
  }

  void AppendTokens(int tokens, const int32_t* pages) {
    std::vector<float> keys, values;
    for (int t = 0; t < tokens; ++t) {
      for (size_t head = 0; head < heads_; ++head) {
        const auto page = static_cast<size_t>(pages[t / case_.page_tokens]);
        for (int d = 0; d < case_.head_dim; ++d) {
          const int row = t % case_.page_tokens;
          const int element =
              case_.dtype == DType::kF32
                  ? row * case_.head_dim + d
                  : kernels::cuda::KvElement(row, d, case_.page_tokens, case_.head_dim);
          const size_t at = (page * heads_ + head) * 2 * half_ + static_cast<size_t>(element);
          Put(&pool_, case_.dtype, at, Uniform(1.0f));
          Put(&pool_, case_.dtype, at + half_, Uniform(1.0f));
          keys.push_back(Get(pool_, case_.dtype, at));
          values.push_back(Get(pool_, case_.dtype, at + half_));
        }
      }
    }
    k_.push_back(std::move(keys));
    v_.push_back(std::move(values));
  }

  void MakeQueries() {
    rows_ = 1;
    for (const Span& span : case_.spans) {
      chunks_.push_back({rows_, span.end - span.first, span.first});
      rows_ += span.end - span.first + 1;  // one row between chunks belongs to none
    }
    const auto count = static_cast<size_t>(int64_t{rows_} * case_.q_heads * case_.head_dim);
    q_.resize(count * DTypeBytes(case_.dtype));
    for (size_t i = 0; i < count; ++i) Put(&q_, case_.dtype, i, Uniform(4.0f));
  }

  void MakeShapesAndMasks() {
    const kernels::StaticShape kinds[] = {{0, 0}, {70, 5}, {1, 0}, {130, 64}, {333, 20}};
    for (size_t i = 0; case_.shapes && i < case_.spans.size() * heads_; ++i) {
      shapes_.push_back(kinds[i % 5]);
    }
    for (size_t i = 0; case_.masks && i < pages_.size(); ++i) {
      const uint64_t low = random_bits() & (i % 2 == 0 ? 0xffffffff : 0xffff);
      masks_.push_back(low | uint64_t{random_bits()} << 32 | 1);
    }
  }

  void MakeRanges() {
    for (const PrefillChunk& chunk : chunks_) {
      chunk_offsets_.push_back(static_cast<int64_t>(range_offsets_.size()) - 1);
      for (int list = 0; list < case_.q_heads * ((chunk.rows + 63) / 64); ++list) {
        int key = 0;
        while (list % 5 != 4 && key < chunk.first_position + chunk.rows) {
          const int begin = key + 16 * static_cast<int>(random_bits() % 5);
          const int end = begin + 16 * static_cast<int>(1 + random_bits() % 7);
          range_begin_.push_back(begin);
          range_end_.push_back(end);
          key = end + 16;
        }
        range_offsets_.push_back(static_cast<int64_t>(range_begin_.size()));
      }
    }
  }

  Case case_;
  size_t heads_;     // of K and V
  size_t half_ = 0;  // elements of the K of a slab
  int rows_ = 0;
  int page_count_ = 0;
  std::vector<std::byte> pool_, q_;
  std::vector<int32_t> pages_, logical_, range_begin_, range_end_;
  std::vector<int64_t> offsets_{0}, range_offsets_{0}, chunk_offsets_;
  std::vector<std::vector<bool>> listed_;
  std::vector<std::vector<float>> k_, v_;  // [sequence][token, kv_head, head_dim], as stored
  std::vector<float> sinks_;
  std::vector<kernels::StaticShape> shapes_;
  std::vector<uint64_t> masks_;
  std::vector<PrefillChunk> chunks_;
  std::optional<DeviceVector<std::byte>> pool_data_, q_data_;
  std::optional<DeviceVector<int32_t>> pages_data_, logical_data_;
  std::optional<DeviceVector<int32_t>> range_begin_data_, range_end_data_;
  std::optional<DeviceVector<int64_t>> offsets_data_, range_offsets_data_, chunk_offsets_data_;
  std::optional<DeviceVector<float>> sinks_data_;
  std::optional<DeviceVector<kernels::StaticShape>> shapes_data_;
  std::optional<DeviceVector<uint64_t>> masks_data_;
};

// Memory for the results, poisoned, on the device.
class Outputs final {
 public:
  Outputs(const World& world, const Case& c)
      : world_(world),
        heads_(c.q_heads),
        out_(static_cast<size_t>(world.rows()) * world.row_bytes()),
        lse_(static_cast<size_t>(world.rows() * c.q_heads)) {
    Check(cudaMemset(out_.data(), 0xa5, out_.size()), "cudaMemset");
    Check(cudaMemset(lse_.data(), 0xa5, lse_.size() * 4), "cudaMemset");
  }
  TensorView out() const { return world_.Rows(out_.data()); }
  TensorView lse() const { return {lse_.data(), DType::kF32, {world_.rows(), heads_}}; }
  void Fetch() {
    Check(cudaDeviceSynchronize(), "attention");
    bytes = out_.Download();
    lses = lse_.Download();
  }

  std::vector<std::byte> bytes;
  std::vector<float> lses;

 private:
  const World& world_;
  int heads_;
  DeviceVector<std::byte> out_;
  DeviceVector<float> lse_;
};

using PrefillFunction = std::function<Status(const AttendPrefillArgs&)>;

Outputs RunPrefill(const World& world, const Case& c, const std::vector<PrefillChunk>& chunks,
                   const PageLists& lists, const KeyRanges* ranges,
                   const PrefillFunction& function) {
  Outputs outputs(world, c);
  Check(function({.q = world.q(),
                  .pool = world.pool(),
                  .chunks = chunks,
                  .lists = lists,
                  .ranges = ranges,
                  .params = world.params(),
                  .shapes = world.shapes(),
                  .out = outputs.out(),
                  .lse = outputs.lse()}));
  outputs.Fetch();
  return outputs;
}

// The same rows in chunks of random length, without ranges (whose lists belong to chunks).
Outputs RunCut(const World& world, const Case& c, const PrefillFunction& function) {
  std::vector<PrefillChunk> cuts;
  std::vector<int64_t> begins, ends;
  for (size_t s = 0; s < world.chunks().size(); ++s) {
    const PrefillChunk& whole = world.chunks()[s];
    for (int at = 0; at < whole.rows;) {
      const int rows = std::min(whole.rows - at, static_cast<int>(1 + random_bits() % 150));
      cuts.push_back({whole.first_row + at, rows, whole.first_position + at});
      begins.push_back(world.offsets()[s]);
      ends.push_back(world.offsets()[s + 1]);
      at += rows;
    }
  }
  const DeviceVector<int64_t> begins_data(begins), ends_data(ends);
  PageLists lists = world.lists();
  lists.begins = begins_data.data();
  lists.ends = ends_data.data();
  lists.lists = static_cast<int64_t>(cuts.size());
  return RunPrefill(world, c, cuts, lists, nullptr, function);
}

// Every query of the chunks as a row of one decode call; other rows have no keys.
Outputs RunDecode(const World& world, const Case& c) {
  std::vector<int64_t> begins(static_cast<size_t>(world.rows()), 0);
  std::vector<int64_t> ends = begins;
  std::vector<int32_t> positions(begins.size(), -1);
  for (size_t s = 0; s < world.chunks().size(); ++s) {
    const PrefillChunk& chunk = world.chunks()[s];
    for (int i = 0; i < chunk.rows; ++i) {
      const auto row = static_cast<size_t>(int64_t{chunk.first_row} + i);
      begins[row] = world.offsets()[s];
      ends[row] = world.offsets()[s + 1];
      positions[row] = chunk.first_position + i;
    }
  }
  const DeviceVector<int64_t> begins_data(begins), ends_data(ends);
  const DeviceVector<int32_t> positions_data(positions);
  PageLists lists = world.lists();
  lists.begins = begins_data.data();
  lists.ends = ends_data.data();
  lists.lists = world.rows();
  Outputs outputs(world, c);
  AttendDecodeArgs args;
  args.q = world.q();
  args.pool = world.pool();
  args.positions = TensorView(positions_data.data(), DType::kI32, {world.rows()});
  args.lists = lists;
  args.params = world.params();
  args.out = outputs.out();
  args.lse = outputs.lse();
  Check(kernels::cuda::AttendDecodeSimple(args, nullptr));
  outputs.Fetch();
  return outputs;
}

struct Errors final {
  double squares = 0.0, reference_squares = 0.0, lse = 0.0;
  bool finite = true;
  double relative() const {
    if (!finite) return std::numeric_limits<double>::infinity();
    return std::sqrt(squares / std::max(reference_squares, 1e-30));
  }
};

void AddRow(const Case& c, const Outputs& outputs, int row, int head,
            const std::vector<double>& expected, Errors* errors) {
  const auto dims = static_cast<size_t>(c.head_dim);
  const auto at =
      static_cast<size_t>(row) * static_cast<size_t>(c.q_heads) + static_cast<size_t>(head);
  for (size_t d = 0; d < dims; ++d) {
    const double got = double{Get(outputs.bytes, c.dtype, at * dims + d)};
    errors->finite &= std::isfinite(got);
    errors->squares += (got - expected[d]) * (got - expected[d]);
    errors->reference_squares += expected[d] * expected[d];
  }
  const double lse = double{outputs.lses[at]};
  if (std::isinf(expected[dims]) || std::isnan(lse)) {
    if (lse != expected[dims]) errors->lse = std::numeric_limits<double>::infinity();
  } else {
    errors->lse = std::max(errors->lse, std::abs(lse - expected[dims]));
  }
}

bool RestUntouched(const World& world, const Outputs& outputs) {
  bool untouched = true;
  for (const PrefillChunk& chunk : world.chunks()) {
    for (const int row : {chunk.first_row - 1, chunk.first_row + chunk.rows}) {
      for (size_t i = 0; i < world.row_bytes(); ++i) {
        untouched &=
            outputs.bytes[static_cast<size_t>(row) * world.row_bytes() + i] == std::byte{0xa5};
      }
    }
  }
  return untouched;
}

int Differing(const World& world, const Outputs& a, const Outputs& b) {
  int differing = 0;
  for (const PrefillChunk& chunk : world.chunks()) {
    for (int row = chunk.first_row; row < chunk.first_row + chunk.rows; ++row) {
      const size_t at = static_cast<size_t>(row) * world.row_bytes();
      differing +=
          std::memcmp(a.bytes.data() + at, b.bytes.data() + at, world.row_bytes()) != 0 ? 1 : 0;
    }
  }
  return differing;
}

bool CheckFunction(const World& world, const Case& c,
                   const std::vector<std::vector<double>>& references, const char* kernel,
                   const PrefillFunction& function) {
  const KeyRanges ranges = world.ranges();
  const Outputs outputs =
      RunPrefill(world, c, world.chunks(), world.lists(), c.ranges ? &ranges : nullptr, function);
  Errors errors;
  for (size_t s = 0; s < world.chunks().size(); ++s) {
    for (int query = 0; query < world.chunks()[s].rows; ++query) {
      for (int head = 0; head < c.q_heads; ++head) {
        const int row = world.chunks()[s].first_row + query;
        AddRow(c, outputs, row, head,
               references[static_cast<size_t>(int64_t{row} * c.q_heads + head)], &errors);
      }
    }
  }
  int differing = 0;
  // Ranges and shapes belong to chunks.
  const bool whole = c.ranges || c.shapes;
  for (int trial = 0; !whole && trial < 3; ++trial) {
    differing += Differing(world, outputs, RunCut(world, c, function));
  }
  const bool simple = std::strcmp(kernel, "simple") == 0;
  if (!whole && simple) differing += Differing(world, outputs, RunDecode(world, c));
  const bool untouched = RestUntouched(world, outputs);
  const double limit = c.dtype == DType::kF32 ? 5e-6 : c.dtype == DType::kF16 ? 1e-3 : 5e-3;
  const bool ok = errors.relative() <= limit && errors.lse <= 1e-4 && untouched && differing == 0;
  std::printf("%s %-6s %-20s %-4s d %3d page %2d: error %.2e lse %.2e rows differing %d%s\n",
              ok ? "ok  " : "FAIL", kernel, c.name.c_str(), std::string(DTypeName(c.dtype)).c_str(),
              c.head_dim, c.page_tokens, errors.relative(), errors.lse, differing,
              untouched ? "" : ", other rows written");
  return ok;
}

// head_dim 0: all.
int Main(int stride, int head_dim) {
  const auto traits = TraitsOfDevice();
  const PrefillFunction simple = [](const AttendPrefillArgs& args) {
    return kernels::cuda::AttendPrefillSimple(args, nullptr);
  };
  // Without the bulk copies of sm_90.
  auto older = traits;
  older.major = 8;
  const PrefillFunction plain = [&](const AttendPrefillArgs& args) {
    return kernels::cuda::AttendPrefillSm80(args, older, nullptr);
  };
  // With the shared memory of a GeForce.
  auto geforce = older;
  geforce.shared_bytes_max = kGeForceSharedBytes;
  const PrefillFunction tight = [&](const AttendPrefillArgs& args) {
    return kernels::cuda::AttendPrefillSm80(args, geforce, nullptr);
  };
  const PrefillFunction bulk = [&](const AttendPrefillArgs& args) {
    return kernels::cuda::AttendPrefillSm80(args, traits, nullptr);
  };
  int failures = 0;
  const std::vector<Case> cases = Cases();
  for (size_t i = 0; i < cases.size(); i += static_cast<size_t>(stride)) {
    const Case& c = cases[i];
    if (head_dim > 0 && c.head_dim != head_dim) continue;
    const World world(c);
    const auto references = world.References();
    failures += CheckFunction(world, c, references, "simple", simple) ? 0 : 1;
    if (c.dtype == DType::kF32 || c.scale < 0.0f || c.head_dim == 48 || c.masks) continue;
    failures += CheckFunction(world, c, references, "sm80", plain) ? 0 : 1;
    if (c.head_dim == 256) {
      failures += CheckFunction(world, c, references, "tight", tight) ? 0 : 1;
    }
    if (traits.major >= 9) failures += CheckFunction(world, c, references, "bulk", bulk) ? 0 : 1;
  }
  std::printf("%d failed\n", failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace lacuna::bench

// usage: attention_check [stride through the cases [head_dim]]
int main(int argc, char** argv) {
  return lacuna::bench::Main(argc > 1 ? std::atoi(argv[1]) : 1, argc > 2 ? std::atoi(argv[2]) : 0);
}
