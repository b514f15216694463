// Speed of the paged prefill attention on one GPU: dense causal, and over random lists of 128 x 128
// blocks per head. 32 query heads, 8 kv heads, page 64, random data, pages in shuffled order.
//
// Usage: prefill_bench [repeats [digits of the rows of kRows]]. Prints the median over repeats, the
// spread, TFLOP/s (dense: of the causal half; blocks: of whole kept blocks) and the share of 790
// TFLOP/s, an H200's best bf16 GEMM.
#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <random>
#include <string_view>
#include <thread>
#include <vector>

#include "bench/gpu/prefill_case.h"
#include "kernels/cuda/attend/attend_prefill_sm90.h"
#include "kernels/cuda/launch.cuh"

namespace lacuna::bench {
namespace {

constexpr int kHeads = 32;
constexpr int kKvHeads = 8;
constexpr int kPageTokens = 64;
constexpr int kBlock = 128;
constexpr double kGemmTflops = 790.0;

void Must(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "CUDA: %s\n", cudaGetErrorString(error));
  std::exit(1);
}

__device__ uint32_t Hash(uint64_t x) {
  x = (x ^ (x >> 31)) * 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 29)) * 0xbf58476d1ce4e5b9u;
  return static_cast<uint32_t>(x >> 32);
}

__global__ void FillNormal(__nv_bfloat16* data, int64_t count, uint64_t seed) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * blockDim.x) {
    const float u = (Hash(seed + 2 * i) + 1.0f) * 2.3283064e-10f;
    const float v = Hash(seed + 2 * i + 1) * 2.3283064e-10f;
    data[i] = __float2bfloat16(sqrtf(-2.0f * logf(u)) * cospif(2.0f * v));
  }
}

DeviceArray Normal(int64_t count, uint64_t seed) {
  DeviceArray array(static_cast<size_t>(count) * 2);
  FillNormal<<<1024, 256>>>(static_cast<__nv_bfloat16*>(array.data()), count, seed << 40);
  Must(cudaDeviceSynchronize());
  return array;
}

template <typename T>
DeviceArray Upload(const std::vector<T>& values) {
  return {values.data(), values.size() * sizeof(T)};
}

// Random blocks of 128 keys for each (head, 128 queries), the diagonal among them.
struct BlockLists final {
  std::vector<int32_t> begin, end;
  std::vector<int64_t> begins, ends, offsets{0};
  int64_t blocks = 0;

  BlockLists(int queries, int keys, double density) {
    std::mt19937 random(7);
    const auto limit = static_cast<uint32_t>(density * 4294967295.0);
    for (int head = 0; head < kHeads; ++head) {
      for (int q = 0; q < queries; q += kBlock) {
        const int diagonal = (keys - queries + q) / kBlock;
        const auto first = static_cast<int64_t>(begin.size());
        for (int block = 0; block <= diagonal; ++block) {
          if (block < diagonal && random() >= limit) continue;
          begin.push_back(block * kBlock);
          end.push_back((block + 1) * kBlock);
          ++blocks;
        }
        for (int half = 0; half < 2; ++half) {  // two tiles of 64 queries read one list
          begins.push_back(first);
          ends.push_back(static_cast<int64_t>(begin.size()));
        }
      }
    }
  }
};

struct Timing final {
  double median_ms = 0.0, low_ms = 0.0, high_ms = 0.0;
};

class Problem final {
 public:
  Problem(int queries, int keys, int head_dim, double density) : queries_(queries), keys_(keys) {
    const int pages = keys / kPageTokens;
    std::vector<int32_t> order(static_cast<size_t>(pages)), logical(order.size());
    std::iota(logical.begin(), logical.end(), 0);
    order = logical;
    std::shuffle(order.begin(), order.end(), std::mt19937(3));
    q_ = Normal(int64_t{queries} * kHeads * head_dim, 1);
    pool_ = Normal(int64_t{keys} * kKvHeads * head_dim * 2, 2);
    out_ = DeviceArray(static_cast<size_t>(queries) * kHeads * head_dim * 2);
    workspace_ = DeviceArray(size_t{1} << 20);
    tables_.push_back(Upload(order));
    tables_.push_back(Upload(logical));
    tables_.push_back(Upload(std::vector<int64_t>{0}));
    tables_.push_back(Upload(std::vector<int64_t>{pages}));
    chunk_ = {0, queries, keys - queries};
    args_.q = TensorView(q_.data(), DType::kBF16, {queries, kHeads, head_dim});
    args_.out = TensorView(out_.data(), DType::kBF16, {queries, kHeads, head_dim});
    args_.pool = {pool_.data(), DType::kBF16, pages, kKvHeads, head_dim, kPageTokens};
    args_.chunks = {&chunk_, 1};
    args_.lists = {Table<int32_t>(0), Table<int32_t>(1), Table<int64_t>(2), Table<int64_t>(3), 1};
    args_.params.scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
    flop_ = 4.0 * kHeads * head_dim * queries * (keys - queries * 0.5);
    if (density < 1.0) AddBlocks(density, head_dim);
  }
  Problem(const Problem&) = delete;
  Problem& operator=(const Problem&) = delete;

  Timing Time(int repeats) {
    cudaDeviceProp properties{};
    Must(cudaGetDeviceProperties(&properties, 0));
    const kernels::cuda::DeviceTraits traits{0, properties.major, properties.minor,
                                             properties.multiProcessorCount,
                                             int64_t(properties.sharedMemPerBlockOptin)};
    std::this_thread::sleep_for(std::chrono::milliseconds(500));  // clocks fall in long runs
    std::vector<cudaEvent_t> events(static_cast<size_t>(repeats) + 1);
    for (cudaEvent_t& event : events) Must(cudaEventCreate(&event));
    for (int i = -2; i <= repeats; ++i) {
      if (i >= 0) Must(cudaEventRecord(events[static_cast<size_t>(i)]));
      if (i == repeats) break;
      const Status status = kernels::cuda::AttendPrefillSm90(
          args_, traits, {workspace_.data(), int64_t{1} << 20}, nullptr);
      if (!status.ok()) {
        std::fprintf(stderr, "%s\n", status.ToString().c_str());
        std::exit(1);
      }
    }
    Must(cudaDeviceSynchronize());
    std::vector<float> times(static_cast<size_t>(repeats));
    for (size_t i = 0; i < times.size(); ++i) {
      Must(cudaEventElapsedTime(&times[i], events[i], events[i + 1]));
    }
    std::sort(times.begin(), times.end());
    return {times[times.size() / 2], times.front(), times.back()};
  }
  double flop() const { return flop_; }
  double kept() const { return kept_; }

 private:
  template <typename T>
  T* Table(size_t index) {
    return static_cast<T*>(tables_[index].data());
  }
  void AddBlocks(double density, int head_dim) {
    const BlockLists lists(queries_, keys_, density);
    const size_t first = tables_.size();
    tables_.push_back(Upload(lists.begin));
    tables_.push_back(Upload(lists.end));
    tables_.push_back(Upload(lists.begins));
    tables_.push_back(Upload(lists.ends));
    tables_.push_back(Upload(lists.offsets));
    ranges_ = {Table<int32_t>(first), Table<int32_t>(first + 1), Table<int64_t>(first + 2),
               Table<int64_t>(first + 3), Table<int64_t>(first + 4)};
    args_.ranges = &ranges_;
    const double flop = 4.0 * head_dim * kBlock * kBlock * static_cast<double>(lists.blocks);
    kept_ = flop / flop_;
    flop_ = flop;
  }

  int queries_;
  int keys_;
  double flop_ = 0.0;
  double kept_ = 1.0;
  DeviceArray q_, pool_, out_, workspace_;
  std::vector<DeviceArray> tables_;
  kernels::PrefillChunk chunk_;
  KeyRanges ranges_;
  AttendPrefillArgs args_;
};

void Bench(int queries, int keys, int head_dim, double density, int repeats) {
  Problem problem(queries, keys, head_dim, density);
  const Timing timing = problem.Time(repeats);
  const double tflops = problem.flop() / timing.median_ms * 1e-9;
  std::printf(
      "D=%-3d %6d q x %6d keys, kept %.3f: %9.3f ms (%.3f .. %.3f)  %5.0f TFLOP/s  %.1f %%\n",
      head_dim, queries, keys, problem.kept(), timing.median_ms, timing.low_ms, timing.high_ms,
      tflops, 100.0 * tflops / kGemmTflops);
  std::fflush(stdout);
}

struct Row final {
  int queries;
  int keys;
  int head_dim;
  double density;
  int repeats;  // 0: as asked
};
constexpr Row kRows[] = {
    {4096, 32768, 128, 1.0, 0},   {8192, 32768, 128, 1.0, 0},   {4096, 8192, 128, 1.0, 0},
    {8192, 8192, 128, 1.0, 0},    {32768, 32768, 128, 1.0, 5},  {131072, 131072, 128, 1.0, 3},
    {8192, 32768, 64, 1.0, 5},    {32768, 32768, 128, 0.10, 0}, {131072, 131072, 128, 0.10, 5},
    {8192, 131072, 128, 0.10, 0},
};

}  // namespace
}  // namespace lacuna::bench

int main(int argc, char** argv) {
  const int repeats = argc > 1 ? std::atoi(argv[1]) : 21;
  const std::string_view rows = argc > 2 ? argv[2] : "0123456789";
  for (const char digit : rows) {
    if (digit < '0' || digit > '9') continue;
    const lacuna::bench::Row& row = lacuna::bench::kRows[digit - '0'];
    lacuna::bench::Bench(row.queries, row.keys, row.head_dim, row.density,
                         row.repeats > 0 ? row.repeats : repeats);
  }
  return 0;
}
