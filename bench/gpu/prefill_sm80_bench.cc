// Times AttendPrefillSm80 on 32/8 heads over a shuffled page pool, with cp.async (prefill_sm80:
// what runs on sm_80) and with bulk copies (prefill_bulk: on sm_90). One line for each shape:
// median, spread (10th to 90th percentile) and TFLOP/s, counting 4 * head_dim operations for each
// visible (query, key) pair. usage: prefill_sm80_bench [repetitions [shapes]]
#include <cmath>
#include <numeric>
#include <random>
#include <string>

#include "bench/gpu/device_memory.h"
#include "kernels/core/dtype.h"
#include "kernels/cuda/attend/attend_prefill_sm80.h"
#include "kernels/cuda/matmul/matmul_kernels.h"

namespace lacuna::bench {
namespace {

constexpr int kQHeads = 32;
constexpr int kKvHeads = 8;

struct Shape final {
  const char* name;
  int queries;
  int keys;
  int head_dim = 128;
  int page_tokens = 64;
  double density = 1.0;  // of 128 x 128 blocks kept
  int window_tokens = 0;
  DType dtype = DType::kBF16;
};

// Random numbers of variance 1.
DeviceVector<uint16_t> Random(size_t count, uint64_t seed, DType dtype) {
  DeviceVector<uint16_t> out(count);
  Check(kernels::cuda::FillRandom(out.data(), dtype, static_cast<int64_t>(count), seed, 1.732f,
                                  nullptr));
  Check(cudaDeviceSynchronize(), "FillRandom");
  return out;
}

// Block lists per head, 128 x 128, the diagonal always kept.
struct Lists final {
  std::vector<int32_t> begin, end;
  std::vector<int64_t> offsets{0};
  double pairs = 0.0;  // visible, over all heads
};
Lists BlockLists(const Shape& shape) {
  Lists lists;
  std::mt19937 random(7);
  std::bernoulli_distribution keep(shape.density);
  const int first = shape.keys - shape.queries;
  for (int head = 0; head < kQHeads; ++head) {
    std::vector<int32_t> begins, ends;
    for (int tile = 0; tile < (shape.queries + 63) / 64; ++tile) {
      const int diagonal = (first + tile * 64) / 128;
      if (tile % 2 == 0) {
        begins.clear(), ends.clear();
        for (int block = 0; block <= diagonal; ++block) {
          if (block == diagonal || keep(random)) {
            begins.push_back(block * 128), ends.push_back(block * 128 + 128);
          }
        }
      }
      lists.pairs += 64.0 * 128.0 * static_cast<double>(begins.size() - 1) +
                     64.0 * (tile % 2 == 0 ? 32.5 : 96.5);
      lists.begin.insert(lists.begin.end(), begins.begin(), begins.end());
      lists.end.insert(lists.end.end(), ends.begin(), ends.end());
      lists.offsets.push_back(static_cast<int64_t>(lists.begin.size()));
    }
  }
  return lists;
}

double DensePairs(const Shape& shape) {
  double pairs = 0.0;
  for (int i = 0; i < shape.queries; ++i) {
    const int visible = shape.keys - shape.queries + i + 1;
    pairs += shape.window_tokens > 0 ? std::min(visible, shape.window_tokens) : visible;
  }
  return pairs * kQHeads;
}

void Bench(const Shape& shape, int repetitions, const kernels::cuda::DeviceTraits& traits) {
  const int pages = (shape.keys + shape.page_tokens - 1) / shape.page_tokens;
  const size_t kv_elements = 2 * static_cast<size_t>(pages * shape.page_tokens) *
                             static_cast<size_t>(kKvHeads * shape.head_dim);
  const size_t q_elements =
      static_cast<size_t>(shape.queries) * static_cast<size_t>(kQHeads * shape.head_dim);
  const DeviceVector<uint16_t> pool = Random(kv_elements, 1, shape.dtype);
  const DeviceVector<uint16_t> q = Random(q_elements, 2, shape.dtype);
  const DeviceVector<uint16_t> out(q_elements);
  std::vector<int32_t> order(static_cast<size_t>(pages));
  std::iota(order.begin(), order.end(), 0);
  const DeviceVector<int32_t> logical(order);
  std::ranges::shuffle(order, std::mt19937(3));
  const DeviceVector<int32_t> page_ids(order);
  const DeviceVector<int64_t> offsets(std::vector<int64_t>{0, pages});
  const Lists lists = BlockLists(shape);
  const DeviceVector<int32_t> range_begin(lists.begin), range_end(lists.end);
  const DeviceVector<int64_t> range_offsets(lists.offsets);
  const DeviceVector<int64_t> chunk_offsets(std::vector<int64_t>{0});
  const kernels::KeyRanges ranges{range_begin.data(), range_end.data(), range_offsets.data(),
                                  range_offsets.data() + 1, chunk_offsets.data()};
  const kernels::PrefillChunk chunk{0, shape.queries, shape.keys - shape.queries};
  const TensorView q_view(q.data(), shape.dtype, {shape.queries, kQHeads, shape.head_dim});
  const TensorView out_view(out.data(), shape.dtype, {shape.queries, kQHeads, shape.head_dim});
  const bool sparse = shape.density < 1.0;
  const kernels::AttendPrefillArgs args{
      .q = q_view,
      .pool = {pool.data(), shape.dtype, pages, kKvHeads, shape.head_dim, shape.page_tokens},
      .chunks = {&chunk, 1},
      .lists = {.pages = page_ids.data(),
                .logical = logical.data(),
                .begins = offsets.data(),
                .ends = offsets.data() + 1,
                .lists = 1},
      .ranges = sparse ? &ranges : nullptr,
      .params = {.scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim)),
                 .shape = {shape.window_tokens, 0}},
      .out = out_view,
      .lse = {}};
  cudaStream_t stream;
  Check(cudaStreamCreate(&stream), "cudaStreamCreate");
  const double flop = 4.0 * shape.head_dim * (sparse ? lists.pairs : DensePairs(shape));
  struct Way final {
    const char* name;
    int major;
    int64_t shared_bytes;
  };
  const Way ways[] = {{"sm80", 8, 163 << 10},
                      {"geforce", 8, kGeForceSharedBytes},
                      {"bulk", 9, traits.shared_bytes_max}};
  for (const Way& way : ways) {
    if (way.major > traits.major) continue;
    if (way.shared_bytes == kGeForceSharedBytes && shape.head_dim <= 128) continue;  // as sm80
    auto generation = traits;
    generation.major = way.major;
    generation.shared_bytes_max = way.shared_bytes;
    const Timing timing = TimeRuns(
        [&](cudaStream_t s) { Check(kernels::cuda::AttendPrefillSm80(args, generation, s)); },
        stream, repetitions, 2);
    std::printf(
        "prefill_%-7s %-12s q %5d k %6d d %3d page %2d: %8.3f ms [%.3f %.3f] %6.1f TFLOP/s\n",
        way.name, shape.name, shape.queries, shape.keys, shape.head_dim, shape.page_tokens,
        timing.median_ms, timing.low_ms, timing.high_ms, flop / (timing.median_ms * 1e-3) * 1e-12);
    std::fflush(stdout);
  }
  Check(cudaStreamDestroy(stream), "cudaStreamDestroy");
}

}  // namespace
}  // namespace lacuna::bench

int main(int argc, char** argv) {
  using namespace lacuna::bench;
  const int repetitions = argc > 1 ? std::atoi(argv[1]) : 25;
  const auto traits = TraitsOfDevice();
  const Shape shapes[] = {
      {"dense", 4096, 32768},
      {"dense", 8192, 32768},
      {"dense", 4096, 8192},
      {"dense", 4096, 32768, 128, 16},
      {"dense f16", 4096, 32768, 128, 64, 1.0, 0, lacuna::DType::kF16},
      {"dense", 4096, 32768, 64},
      {"dense", 4096, 32768, 96},
      {"dense", 4096, 32768, 256},
      {"blocks 10 %", 8192, 32768, 128, 64, 0.1},
      {"window 4096", 8192, 32768, 128, 64, 1.0, 4096},
  };
  int left = argc > 2 ? std::atoi(argv[2]) : 1 << 30;
  for (const Shape& shape : shapes) {
    if (left-- > 0) Bench(shape, repetitions, traits);
  }
  return 0;
}
