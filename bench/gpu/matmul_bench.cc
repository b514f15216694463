// Speed of the matrix products, bf16, random data; weights rotate so that L2 does not serve them.
//
// matmul_bench [table | quick | chain | tune]
//   table: per shape, ours and cuBLASLt: the time of a launch within a graph of many (median, 10th
//          to 90th percentile of replays), and alone between two events with a cold L2.
//   chain: a decode step of an 8B shape (norms, activations; two small kernels stand for attention)
//          as one graph, and its share of the weights' stream at 4.2 TB/s.
//   tune:  SkinnyTuning variants over the shapes of a step.
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "bench/gpu/device_memory.h"
#include "kernels/cuda/matmul/cublaslt.h"
#include "kernels/cuda/matmul/matmul_kernels.h"
#include "kernels/cuda/ops.h"

namespace lacuna::bench {
namespace {

using kernels::cuda::CublasLt;
using kernels::cuda::MatmulTask;
using kernels::cuda::SkinnyTuning;

constexpr double kCopyRate = 4.2e12;  // bytes a second, measured
constexpr double kMathRate = 782e12;  // bf16 multiply-adds x 2 a second, measured
constexpr int64_t kWeightBytes = int64_t{17} << 30;
constexpr double kRotateBytes = 500e6;

struct Shape final {
  int64_t m, n, k;
  int64_t bytes() const { return n * k * 2; }
  double flops() const { return 2.0 * static_cast<double>(m) * static_cast<double>(n * k); }
};

// One pool of random weights and activations that all cases share.
struct Pool final {
  DeviceVector<uint16_t> weights{static_cast<size_t>(kWeightBytes / 2)};
  DeviceVector<uint16_t> x{size_t{8192} * 28672};
  DeviceVector<float> out{size_t{8192} * 28672};
  cudaStream_t stream = nullptr;
  kernels::cuda::DeviceTraits traits = TraitsOfDevice();

  Pool() {
    Check(cudaStreamCreate(&stream), "cudaStreamCreate");
    const auto fill = [&](const DeviceVector<uint16_t>& to, uint64_t seed, float scale) {
      Check(kernels::cuda::FillRandom(to.data(), DType::kBF16, static_cast<int64_t>(to.size()),
                                      seed, scale, stream));
    };
    fill(weights, 1, 0.02f);
    fill(x, 2, 1.0f);
    Check(cudaStreamSynchronize(stream), "fill");
  }
  // The copy number `i` of a weight of this shape.
  MatmulTask Task(const Shape& shape, int i, DType out_dtype = DType::kBF16) const {
    const int64_t copies = kWeightBytes / shape.bytes();
    return {.x = x.data(),
            .weight = weights.data() + i % copies * (shape.bytes() / 2),
            .out = out.data(),
            .x_stride = shape.k,
            .out_stride = shape.n,
            .m = shape.m,
            .n = shape.n,
            .k = shape.k,
            .out_dtype = out_dtype};
  }
};

// One launch between two events, L2 overwritten before.
double TimeAlone(const std::function<void(cudaStream_t, int)>& run, const Pool& pool) {
  cudaEvent_t begin = nullptr;
  cudaEvent_t end = nullptr;
  Check(cudaEventCreate(&begin), "event");
  Check(cudaEventCreate(&end), "event");
  std::vector<float> times;
  for (int i = 0; i < 23; ++i) {
    Check(cudaMemsetAsync(pool.out.data() + (1 << 20), i, size_t{256} << 20, pool.stream), "flush");
    Check(cudaEventRecord(begin, pool.stream), "event");
    run(pool.stream, i);
    Check(cudaEventRecord(end, pool.stream), "event");
    Check(cudaEventSynchronize(end), "event");
    float ms = 0.0f;
    Check(cudaEventElapsedTime(&ms, begin, end), "event");
    if (i >= 2) times.push_back(ms);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::ranges::sort(times);
  return static_cast<double>(times[times.size() / 2]);
}

int Launches(const Shape& shape) {
  return std::clamp(static_cast<int>(kRotateBytes / static_cast<double>(shape.bytes())) * 2, 8, 64);
}

void PrintLine(const char* name, const Shape& shape, const Timing& timing, double alone_ms) {
  const double seconds = timing.median_ms / 1e3;
  const double bytes_s = static_cast<double>(shape.bytes()) / seconds;
  const double floor =
      std::max(static_cast<double>(shape.bytes()) / kCopyRate, shape.flops() / kMathRate);
  std::printf(
      "%-8s %5ld x %6ld x %5ld  %8.2f us (%.2f-%.2f)  %5.2f TB/s %6.1f TF/s  %5.1f %%"
      "  alone %8.2f us\n",
      name, shape.m, shape.n, shape.k, timing.median_ms * 1e3, timing.low_ms * 1e3,
      timing.high_ms * 1e3, bytes_s / 1e12, shape.flops() / seconds / 1e12, 100.0 * floor / seconds,
      alone_ms * 1e3);
}

// `quick`: ours alone, few sizes.
void RunTable(const Pool& pool, CublasLt& cublas, bool quick) {
  const std::vector<std::pair<int64_t, int64_t>> sizes = {
      {28672, 4096}, {4096, 14336}, {4096, 4096}, {6144, 4096}, {128256, 4096}};
  for (const int64_t m : {1, 2, 4, 8, 16, 32, 64, 512, 2048, 8192}) {
    for (const auto& [n, k] : sizes) {
      if (n > 100000 && m > 64) continue;
      if (quick && m != 1 && m != 8 && m != 512 && m != 2048) continue;
      const Shape shape{m, n, k};
      const auto time = [&](const char* name, const std::function<void(cudaStream_t, int)>& run) {
        PrintLine(name, shape, TimeInGraph(run, m > 64 ? 8 : Launches(shape), pool.stream),
                  TimeAlone(run, pool));
      };
      if (!quick)
        time("cublaslt", [&](cudaStream_t s, int i) { Check(cublas.Run(pool.Task(shape, i), s)); });
      if (m <= kernels::cuda::kSkinnyRowsMax) {
        for (const bool whole_k : {false, true}) {
          time(whole_k ? "ours det" : "ours", [&](cudaStream_t s, int i) {
            Check(SkinnyMatmul(pool.Task(shape, i), pool.traits.sm_count, whole_k, {}, s));
          });
        }
      } else {
        time("ours det", [&](cudaStream_t s, int i) { Check(TileMatmul(pool.Task(shape, i), s)); });
      }
    }
  }
}

// A decode step of m sequences: 32 layers of an 8B shape and the head.
class Step final {
 public:
  // With `cublas` its products are the peer's.
  Step(const Pool& pool, int64_t m, SkinnyTuning tuning, CublasLt* cublas)
      : pool_(pool), m_(m), tuning_(tuning), cublas_(cublas) {
    Check(kernels::cuda::FillRandom(residual_, DType::kF32, 17 * 4096, 3, 1.0f, pool.stream));
  }

  void Run(cudaStream_t stream) {
    weight_ = pool_.weights.data();
    stream_ = stream;
    for (int layer = 0; layer < 32; ++layer) {
      Norm();
      Multiply(branch_, 6144, 4096, qkv_, DType::kBF16, false);
      Norm();  // in the place of rotary embedding and append
      Norm();  // of attention
      Multiply(branch_, 4096, 4096, residual_, DType::kF32, true);
      Norm();
      Multiply(branch_, 28672, 4096, gate_up_, DType::kBF16, false);
      Check(kernels::cuda::GatedActivation({.gate_up = {gate_up_, DType::kBF16, {m_, 28672}},
                                            .out = {act_, DType::kBF16, {m_, 14336}}},
                                           stream_));
      Multiply(act_, 4096, 14336, residual_, DType::kF32, true);
    }
    Norm();
    Multiply(branch_, 128256, 4096, logits_, DType::kF32, false);
  }
  double bytes() const {
    return 2.0 * (32.0 * (6144.0 * 4096 + 4096.0 * 4096 + 3.0 * 14336 * 4096) + 128256.0 * 4096);
  }

 private:
  void Norm() {
    Check(kernels::cuda::RmsNorm({.x = {residual_, DType::kF32, {m_, 4096}},
                                  .weight = {norm_, DType::kF32, {4096}},
                                  .out = {branch_, DType::kBF16, {m_, 4096}}},
                                 stream_));
  }
  void Multiply(void* x, int64_t n, int64_t k, void* out, DType dtype, bool accumulate) {
    const MatmulTask task{.x = x,
                          .weight = weight_,
                          .out = out,
                          .x_stride = k,
                          .out_stride = n,
                          .m = m_,
                          .n = n,
                          .k = k,
                          .out_dtype = dtype,
                          .alpha = 0.1f,
                          .accumulate = accumulate};
    weight_ += n * k;
    Check(cublas_ != nullptr ? cublas_->Run(task, stream_)
                             : SkinnyMatmul(task, pool_.traits.sm_count, false, tuning_, stream_));
  }

  const Pool& pool_;
  int64_t m_;
  SkinnyTuning tuning_;
  CublasLt* cublas_;
  cudaStream_t stream_ = nullptr;
  uint16_t* weight_ = nullptr;
  // Parts of the pool's output.
  float* residual_ = pool_.out.data();
  float* norm_ = residual_ + 16 * 4096;
  float* branch_ = norm_ + 4096;
  float* qkv_ = branch_ + 16 * 4096;
  float* gate_up_ = qkv_ + 16 * 6144;
  float* act_ = gate_up_ + 16 * 28672;
  float* logits_ = act_ + 16 * 14336;
};

void RunStep(const Pool& pool, int64_t m, const SkinnyTuning& tuning, CublasLt* cublas = nullptr) {
  Step step(pool, m, tuning, cublas);
  const Timing timing = TimeInGraph([&](cudaStream_t s, int) { step.Run(s); }, 1, pool.stream);
  std::printf("step %-8s m %2ld: %.3f ms (%.3f-%.3f), %.1f %% of 4.2 TB/s",
              cublas ? "cublaslt" : "ours", m, timing.median_ms, timing.low_ms, timing.high_ms,
              100.0 * step.bytes() / kCopyRate / (timing.median_ms / 1e3));
  if (cublas == nullptr) {
    std::printf("  (groups %d chunk %d ring %d KB)", tuning.tile_groups, tuning.chunk,
                tuning.ring_bytes / 1024);
  }
  std::printf("\n");
}

void RunChain(const Pool& pool, CublasLt& cublas) {
  for (const int64_t m : {1, 2, 4, 8, 16}) {
    RunStep(pool, m, {}, &cublas);
    RunStep(pool, m, {});
  }
}

void RunTune(const Pool& pool) {
  const std::vector<SkinnyTuning> tunings = {{4, 512, 190 << 10}, {4, 512, 150 << 10},
                                             {4, 256, 190 << 10}, {8, 256, 190 << 10},
                                             {8, 512, 190 << 10}, {4, 512, 216 << 10}};
  for (const SkinnyTuning& tuning : tunings) {
    std::printf("groups %d chunk %d ring %3d:", tuning.tile_groups, tuning.chunk,
                tuning.ring_bytes >> 10);
    for (const Shape& shape :
         {Shape{1, 28672, 4096}, Shape{1, 4096, 14336}, Shape{1, 4096, 4096}, Shape{1, 6144, 4096},
          Shape{1, 128256, 4096}, Shape{8, 28672, 4096}, Shape{8, 4096, 14336}}) {
      const auto run = [&](cudaStream_t s, int i) {
        Check(SkinnyMatmul(pool.Task(shape, i), pool.traits.sm_count, false, tuning, s));
      };
      const Timing timing = TimeInGraph(run, Launches(shape), pool.stream);
      std::printf("  %.2f", static_cast<double>(shape.bytes()) / timing.median_ms / 1e9);
    }
    std::printf("\n");
    for (const int64_t m : {1, 8, 16}) RunStep(pool, m, tuning);
  }
}

}  // namespace
}  // namespace lacuna::bench

int main(int argc, char** argv) {
  using namespace lacuna::bench;
  const std::string mode = argc > 1 ? argv[1] : "table";
  const Pool pool;
  auto cublas = lacuna::kernels::cuda::CublasLt::Create(lacuna::DType::kBF16);
  Check(cublas.status());
  if (mode == "table" || mode == "quick") {
    RunTable(pool, **cublas, mode == "quick");
  } else if (mode == "chain") {
    RunChain(pool, **cublas);
  } else if (mode == "tune") {
    RunTune(pool);
  } else {
    std::fprintf(stderr, "mode: got %s, need table, quick, chain or tune\n", mode.c_str());
    return 2;
  }
  return 0;
}
