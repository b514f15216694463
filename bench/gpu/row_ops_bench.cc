// Times the row ops at the shapes of an 8B model, bf16: a launch within a graph of
// many, on buffers that rotate so that L2 does not hold them. One line each: median, 10th to 90th
// percentile, and the rate of the bytes that have to move.
#include <numeric>
#include <random>
#include <vector>

#include "bench/gpu/device_memory.h"
#include "kernels/core/dtype.h"
#include "kernels/cuda/ops.h"

namespace lacuna::bench {
namespace {

constexpr int64_t kHidden = 4096;
constexpr int64_t kFfn = 14336;
constexpr int64_t kQHeads = 32;
constexpr int64_t kKvHeads = 8;
constexpr int64_t kHeadDim = 128;
constexpr int64_t kPageTokens = 64;
constexpr size_t kArenaBytes = size_t{1} << 30;
constexpr double kRotateBytes = 300e6;

// Random memory that calls take turns on.
class Arena final {
 public:
  Arena() {
    std::vector<uint16_t> host(size_t{1} << 24);
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    std::vector<float> floats(host.size() / 2);
    for (float& value : floats) value = normal(random);
    for (size_t at = 0; at < kArenaBytes; at += floats.size() * 4) {
      Check(
          cudaMemcpy(memory_.data() + at, floats.data(), floats.size() * 4, cudaMemcpyHostToDevice),
          "fill");
    }
  }
  // Part `i` of as many as fit; 256-byte aligned.
  void* Part(int64_t bytes, int i) const {
    const int64_t size = (bytes + 255) / 256 * 256;
    return memory_.data() + i % (static_cast<int64_t>(kArenaBytes) / size) * size;
  }

 private:
  DeviceVector<std::byte> memory_{kArenaBytes};
};

class Runner final {
 public:
  explicit Runner(const Arena& in, const Arena& out) : in_(in), out_(out) {
    Check(cudaStreamCreate(&stream_), "cudaStreamCreate");
  }
  ~Runner() { cudaStreamDestroy(stream_); }
  Runner(const Runner&) = delete;
  Runner& operator=(const Runner&) = delete;

  void RmsNorm(int64_t rows) const {
    const DeviceVector<float> weight(std::vector<float>(kHidden, 1.0f));
    Report("RmsNorm", rows, static_cast<double>(rows * kHidden * 6), [&](cudaStream_t s, int i) {
      Check(kernels::cuda::RmsNorm(
          {.x = {in_.Part(rows * kHidden * 4, i), DType::kF32, {rows, kHidden}},
           .weight = {weight.data(), DType::kF32, {kHidden}},
           .out = {out_.Part(rows * kHidden * 2, i), DType::kBF16, {rows, kHidden}}},
          s));
    });
  }

  void GatedActivation(int64_t rows) const {
    Report("SiLU x up", rows, static_cast<double>(rows * kFfn * 6), [&](cudaStream_t s, int i) {
      Check(kernels::cuda::GatedActivation(
          {.gate_up = {in_.Part(rows * kFfn * 4, i), DType::kBF16, {rows, 2 * kFfn}},
           .out = {out_.Part(rows * kFfn * 2, i), DType::kBF16, {rows, kFfn}}},
          s));
    });
  }

  // q, k and v are columns of one matrix, as the product that makes them leaves them.
  // The first token lies at `first_slot`: at 0 one token alone clears the page behind it.
  // `norm`: of the q and k heads, as Qwen 3 has it.
  void RopeAppend(int64_t rows, int32_t first_slot = 0, bool norm = false) const {
    constexpr int64_t kWidth = (kQHeads + 2 * kKvHeads) * kHeadDim;
    const int64_t pages = (first_slot + rows) / kPageTokens + 1;
    std::vector<int32_t> order(static_cast<size_t>(rows));
    std::iota(order.begin(), order.end(), first_slot);
    const DeviceVector<int32_t> slots(order);
    const int64_t positions = first_slot + rows;
    const DeviceVector<float> table(
        std::vector<float>(static_cast<size_t>(positions * kHeadDim), 0.5f));
    const kernels::KvPool pool{nullptr, DType::kBF16, pages, kKvHeads, kHeadDim, kPageTokens};
    const auto bytes = static_cast<double>(rows * kHeadDim * 4 * (kQHeads + 2 * kKvHeads));
    const DeviceVector<float> weights(std::vector<float>(kHeadDim, 1.0f));
    const char* name = norm ? "RoPE+append norm" : "RoPE+append";
    if (first_slot > 0) name = "RoPE+append mid";
    Report(name, rows, bytes, [&](cudaStream_t s, int i) {
      auto* qkv = static_cast<uint16_t*>(in_.Part(rows * kWidth * 2, i));
      const auto heads = [&](int64_t first, int64_t count) {
        return TensorView::Rows(qkv + first * kHeadDim, DType::kBF16, {rows, count, kHeadDim},
                                kWidth);
      };
      kernels::RopeAppendArgs args;
      args.q = heads(0, kQHeads);
      args.k = heads(kQHeads, kKvHeads);
      args.v = heads(kQHeads + kKvHeads, kKvHeads);
      if (norm) args.q_norm = {weights.data(), DType::kF32, {kHeadDim}};
      args.k_norm = args.q_norm;
      args.positions = {slots.data(), DType::kI32, {rows}};
      args.cos_sin = {table.data(), DType::kF32, {positions, kHeadDim}};
      args.slots = {slots.data(), DType::kI32, {rows}};
      args.pool = pool;
      args.pool.data = out_.Part(pool.Bytes(), i);
      Check(kernels::cuda::RopeAppend(args, s));
    });
  }

 private:
  void Report(const char* name, int64_t rows, double bytes,
              const std::function<void(cudaStream_t, int)>& run) const {
    const int launches = std::clamp(static_cast<int>(kRotateBytes / bytes), 8, 100);
    const Timing timing = TimeInGraph(run, launches, stream_);
    std::printf("row_ops %-16s %5ld rows %9.2f us (%.2f-%.2f) %6.3f TB/s\n", name, rows,
                timing.median_ms * 1e3, timing.low_ms * 1e3, timing.high_ms * 1e3,
                bytes / (timing.median_ms * 1e-3) * 1e-12);
    std::fflush(stdout);
  }

  const Arena& in_;
  const Arena& out_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace
}  // namespace lacuna::bench

int main() {
  using namespace lacuna::bench;
  const Arena in;
  const Arena out;
  const Runner runner(in, out);
  for (const int64_t rows : {1, 64, 4096, 8192}) runner.RmsNorm(rows);
  for (const int64_t rows : {1, 64, 4096}) runner.GatedActivation(rows);
  runner.RopeAppend(1, 5);
  for (const int64_t rows : {1, 64, 4096}) runner.RopeAppend(rows);
  for (const int64_t rows : {1, 64, 4096}) runner.RopeAppend(rows, 0, true);
  return 0;
}
