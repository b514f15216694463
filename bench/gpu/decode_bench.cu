// Speed of paged decode attention: 32 query and 8 kv heads of 128 channels in bf16 unless the name
// says otherwise. Every launch reads random pages of another part of a pool far larger than L2, by
// the same lists, as the layers of a step do.
//
// decode_bench [part of a name]: per case the time of a launch within a graph of many (median and
// 10th to 90th percentile of replays), the rate of K and V bytes and its share of 4.2 TB/s; then
// the same in deterministic mode, and the time between two events around one launch.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "bench/gpu/device_memory.h"
#include "kernels/cuda/attend/attend_decode.h"

namespace lacuna::bench {
namespace {

using kernels::AttendDecodeArgs;

constexpr double kCopyRate = 4.2e12;  // bytes a second, measured
constexpr int64_t kPoolBytes = int64_t{20} << 30;
constexpr double kRotateBytes = 400e6;  // between two uses of a part of the pool

struct Case final {
  std::string name;
  std::vector<int> tokens;  // listed, per row
  int context = 131072;     // of which they are taken
  int q_heads = 32;
  int kv_heads = 8;
  int head_dim = 128;
  int page_tokens = 64;
  bool lists_per_head = true;
  int unit_tokens = 0;   // lists have masks: tokens are taken in units of so many; 0: in pages
  bool geforce = false;  // in its shared memory
};

__global__ void FillRandom(uint16_t* data, int64_t count) {
  const int64_t stride = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += stride) {
    uint32_t x = static_cast<uint32_t>(i) * 2654435761u + static_cast<uint32_t>(i >> 32);
    x = (x ^ (x >> 15)) * 2246822519u;
    x ^= x >> 13;
    // Sign, exponent of [2^-4, 2), 7 bits of fraction.
    data[i] = static_cast<uint16_t>((x & 0x807f) | ((0x7b + (x >> 16) % 5) << 7));
  }
}

// Lists of random pages for all rows, distinct but by chance.
struct ListSet final {
  std::vector<int32_t> pages, logical;
  std::vector<int64_t> begins, ends;
  std::vector<uint64_t> masks;  // of the pages, or empty
};

// Adds a unit of `unit_tokens`, of a page of its own or of the last one.
void AddUnit(int unit, int unit_tokens, const Case& test, int page, ListSet* set) {
  const int logical = unit * unit_tokens / test.page_tokens;
  const bool same_page = static_cast<int64_t>(set->pages.size()) > set->begins.back() &&
                         set->logical.back() == logical;
  if (!same_page) {
    set->pages.push_back(page);
    set->logical.push_back(logical);
    if (test.unit_tokens > 0) set->masks.push_back(0);
  }
  if (test.unit_tokens == 0) return;
  const uint64_t tokens = unit_tokens == 64 ? ~uint64_t{0} : (uint64_t{1} << unit_tokens) - 1;
  set->masks.back() |= tokens << unit * unit_tokens % test.page_tokens;
}

ListSet MakeLists(const Case& test, int pool_pages, std::mt19937& random) {
  ListSet set;
  const int per_row = test.lists_per_head ? test.kv_heads : 1;
  const int unit_tokens = test.unit_tokens > 0 ? test.unit_tokens : test.page_tokens;
  std::vector<int> units(static_cast<size_t>(test.context / unit_tokens));
  std::iota(units.begin(), units.end(), 0);
  std::uniform_int_distribution<int> any_page(0, pool_pages - 1);
  for (int tokens : test.tokens) {
    const int count = (tokens + unit_tokens - 1) / unit_tokens;
    for (int list = 0; list < per_row; ++list) {
      std::vector<int> chosen;
      std::sample(units.begin(), units.end(), std::back_inserter(chosen), count, random);
      set.begins.push_back(static_cast<int64_t>(set.pages.size()));
      for (int unit : chosen) AddUnit(unit, unit_tokens, test, any_page(random), &set);
      set.ends.push_back(static_cast<int64_t>(set.pages.size()));
    }
  }
  return set;
}

class Runner final {
 public:
  Runner(const Case& test, void* pool)
      : test_(test),
        traits_(TraitsOfDevice()),
        rows_(static_cast<int64_t>(test.tokens.size())),
        q_(static_cast<size_t>(rows_ * test.q_heads * test.head_dim)),
        out_(q_.size()),
        positions_(std::vector<int32_t>(static_cast<size_t>(rows_), test.context - 1)),
        workspace_(static_cast<size_t>(
            kernels::cuda::DecodeWorkspaceBytes(traits_, rows_, test.q_heads, test.head_dim))) {
    if (test.geforce) traits_.shared_bytes_max = kGeForceSharedBytes;
    FillRandom<<<64, 256>>>(q_.data(), static_cast<int64_t>(q_.size()));
    Check(cudaMemset(workspace_.data(), 0, workspace_.size()), "cudaMemset");
    pool_ = {pool, DType::kBF16, 0, test.kv_heads, test.head_dim, test.page_tokens};
    const int unit_tokens = test.unit_tokens > 0 ? test.unit_tokens : test.page_tokens;
    for (int tokens : test.tokens) {
      bytes_ += static_cast<double>((tokens + unit_tokens - 1) / unit_tokens) *
                static_cast<double>(pool_.SlabBytes() / test.page_tokens * unit_tokens) *
                test.kv_heads;
    }
    layers_ = std::max(1, static_cast<int>(std::ceil(kRotateBytes / bytes_)));
    pool_.pages = kPoolBytes / layers_ / (pool_.SlabBytes() * test.kv_heads);
    std::mt19937 random(7);
    lists_ = std::make_unique<DeviceLists>(MakeLists(test, static_cast<int>(pool_.pages), random));
    Check(cudaStreamCreate(&stream_), "cudaStreamCreate");
  }
  ~Runner() { cudaStreamDestroy(stream_); }

  double bytes() const { return bytes_; }

  // Of one launch, in a graph that goes through the layers.
  Timing InGraph(bool deterministic) {
    const int launches = std::max(20, layers_);
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t exec = nullptr;
    Check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "capture");
    for (int i = 0; i < launches; ++i) Launch(i % layers_, deterministic);
    Check(cudaStreamEndCapture(stream_, &graph), "capture");
    Check(cudaGraphInstantiate(&exec, graph, 0), "cudaGraphInstantiate");
    const int replays = bytes_ > 1e9 ? 20 : 30;
    Timing timing = TimeRuns(
        [&](cudaStream_t stream) { Check(cudaGraphLaunch(exec, stream), "cudaGraphLaunch"); },
        stream_, replays, 3);
    cudaGraphExecDestroy(exec);
    cudaGraphDestroy(graph);
    for (double* ms : {&timing.median_ms, &timing.low_ms, &timing.high_ms}) *ms /= launches;
    return timing;
  }

  Timing Alone() {
    int next = 0;
    return TimeRuns([&](cudaStream_t) { Launch(next++ % layers_, false); }, stream_, 40, 5);
  }

 private:
  struct DeviceLists final {
    explicit DeviceLists(const ListSet& set)
        : pages(set.pages),
          logical(set.logical),
          begins(set.begins),
          ends(set.ends),
          masks(set.masks) {}
    DeviceVector<int32_t> pages, logical;
    DeviceVector<int64_t> begins, ends;
    DeviceVector<uint64_t> masks;
  };

  void Launch(int layer, bool deterministic) {
    const DeviceLists& lists = *lists_;
    AttendDecodeArgs args;
    args.q = TensorView(q_.data(), DType::kBF16, {rows_, test_.q_heads, test_.head_dim});
    args.out = TensorView(out_.data(), DType::kBF16, {rows_, test_.q_heads, test_.head_dim});
    args.pool = pool_;
    args.pool.data = static_cast<std::byte*>(pool_.data) + layer * pool_.Bytes();
    args.positions = TensorView(positions_.data(), DType::kI32, {rows_});
    args.lists_per_row = test_.lists_per_head ? test_.kv_heads : 1;
    args.lists = {lists.pages.data(),
                  lists.logical.data(),
                  lists.begins.data(),
                  lists.ends.data(),
                  static_cast<int64_t>(lists.begins.size()),
                  lists.masks.data()};
    args.params.scale = 1.0f / std::sqrt(static_cast<float>(test_.head_dim));
    Check(kernels::cuda::AttendDecodePaged(
        args, traits_, deterministic, {workspace_.data(), static_cast<int64_t>(workspace_.size())},
        stream_));
  }

  const Case test_;
  kernels::cuda::DeviceTraits traits_;
  const int64_t rows_;
  DeviceVector<uint16_t> q_, out_;
  DeviceVector<int32_t> positions_;
  DeviceVector<std::byte> workspace_;
  kernels::KvPool pool_;
  std::unique_ptr<DeviceLists> lists_;
  int layers_ = 1;
  double bytes_ = 0.0;
  cudaStream_t stream_ = nullptr;
};

std::vector<int> Rows(int rows, int tokens) {
  return std::vector<int>(static_cast<size_t>(rows), tokens);
}

// Evenly spread in the logarithm, shuffled.
std::vector<int> Spread(int rows, int low, int high) {
  std::vector<int> tokens;
  for (int i = 0; i < rows; ++i) {
    tokens.push_back(static_cast<int>(low * std::pow(double(high) / low, double(i) / (rows - 1))));
  }
  std::mt19937 random(3);
  std::shuffle(tokens.begin(), tokens.end(), random);
  return tokens;
}

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (int rows : {1, 8}) {
    for (int tokens : {128, 512, 1024, 4096, 16384, 131072}) {
      cases.push_back({.name = "B=" + std::to_string(rows) + " " + std::to_string(tokens),
                       .tokens = Rows(rows, tokens)});
    }
  }
  cases.push_back({.name = "B=32 4096", .tokens = Rows(32, 4096)});
  cases.push_back({.name = "B=64 4096", .tokens = Rows(64, 4096)});
  cases.push_back(
      {.name = "B=64 lengths 100:1", .tokens = Spread(64, 512, 51200), .lists_per_head = false});
  cases.push_back({.name = "B=64 lengths 100:1 short",
                   .tokens = Spread(64, 64, 6400),
                   .lists_per_head = false});
  cases.push_back({.name = "B=64 2048", .tokens = Rows(64, 2048), .lists_per_head = false});
  cases.push_back({.name = "B=256 512", .tokens = Rows(256, 512), .lists_per_head = false});
  cases.push_back(
      {.name = "B=6 131072 per row", .tokens = Rows(6, 131072), .lists_per_head = false});
  cases.push_back({.name = "B=8 4096 page 16", .tokens = Rows(8, 4096), .page_tokens = 16});
  cases.push_back({.name = "B=8 4096 64 q heads", .tokens = Rows(8, 4096), .q_heads = 64});
  cases.push_back({.name = "B=8 4096 128 q heads", .tokens = Rows(8, 4096), .q_heads = 128});
  cases.push_back({.name = "B=8 4096 dim 64", .tokens = Rows(8, 4096), .head_dim = 64});
  cases.push_back({.name = "B=8 4096 dim 96", .tokens = Rows(8, 4096), .head_dim = 96});
  cases.push_back(
      {.name = "B=8 4096 dim 256 16/8", .tokens = Rows(8, 4096), .q_heads = 16, .head_dim = 256});
  cases.push_back({.name = "B=8 4096 dim 256 16/8, 99 KB",
                   .tokens = Rows(8, 4096),
                   .q_heads = 16,
                   .head_dim = 256,
                   .geforce = true});
  // Budgets in units, scattered over pages of 64.
  for (int rows : {1, 8}) {
    for (int unit_tokens : {64, 16, 1}) {
      cases.push_back(
          {.name = "B=" + std::to_string(rows) + " 4096 in units of " + std::to_string(unit_tokens),
           .tokens = Rows(rows, 4096),
           .unit_tokens = unit_tokens});
    }
  }
  cases.push_back({.name = "B=8 4096 in units of 16, page 16",
                   .tokens = Rows(8, 4096),
                   .page_tokens = 16,
                   .unit_tokens = 16});
  return cases;
}

void Report(const Case& test, void* pool) {
  Runner runner(test, pool);
  const Timing graph = runner.InGraph(false);
  const Timing fixed = runner.InGraph(true);
  const Timing alone = runner.Alone();
  const double rate = runner.bytes() / (graph.median_ms * 1e-3);
  std::printf(
      "%-32s %8.1f us (%.1f-%.1f) %5.2f TB/s %5.1f %%  det %8.1f us (%+.1f %%)  alone %.1f us\n",
      test.name.c_str(), graph.median_ms * 1e3, graph.low_ms * 1e3, graph.high_ms * 1e3,
      rate * 1e-12, 100.0 * rate / kCopyRate, fixed.median_ms * 1e3,
      100.0 * (fixed.median_ms / graph.median_ms - 1.0), alone.median_ms * 1e3);
  std::fflush(stdout);
}

}  // namespace
}  // namespace lacuna::bench

int main(int argc, char** argv) {
  using namespace lacuna::bench;
  const char* part = argc > 1 ? argv[1] : "";
  DeviceVector<uint16_t> pool(static_cast<size_t>(kPoolBytes / 2));
  FillRandom<<<1024, 256>>>(pool.data(), kPoolBytes / 2);
  Check(cudaDeviceSynchronize(), "FillRandom");
  for (const auto& test : Cases()) {
    if (test.name.find(part) != std::string::npos) Report(test, pool.data());
  }
  return 0;
}
