// Matmul of the CPU backend against the machine's ceilings and oneDNN on its own threads.
//   matmul_bench [threads] [bf16|f32] [isa_max] [rows]
// Prints GFLOP/s with the share of the register-loop peak, and GB/s of weights for few rows. The
// few-row runs cycle through copies of the weight that exceed every cache. oneDNN runs on OpenMP:
// set OMP_NUM_THREADS to the same number of threads.
#include <immintrin.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <dnnl.hpp>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/make_backend.h"
#include "kernels/ops/ops.h"

namespace lacuna::kernels {
namespace {

constexpr int64_t kColdBytes = 192 << 20;

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// The best of a few repetitions, seconds per call.
template <typename Fn>
double Best(double budget_s, Fn&& fn) {
  fn();
  double best = 1e9;
  const double end = Now() + budget_s;
  do {
    const double start = Now();
    fn();
    best = std::min(best, Now() - start);
  } while (Now() < end);
  return best;
}

// Twelve rows of two accumulators: the most that VDPBF16PS can do without touching memory.
__attribute__((target("avx512f,avx512bf16"), noinline)) float RegisterLoop(int64_t steps) {
  __m512 sum[24];
#pragma GCC unroll 24
  for (auto& value : sum) value = _mm512_setzero_ps();
  const auto a = reinterpret_cast<__m512bh>(_mm512_set1_ps(1.0f));
  for (int64_t i = 0; i < steps; ++i) {
#pragma GCC unroll 24
    for (auto& value : sum) {
      value = _mm512_dpbf16_ps(value, a, a);
      asm volatile("" : "+v"(value));
    }
  }
  float total = 0.0f;
#pragma GCC unroll 24
  for (auto& value : sum) total += _mm512_cvtss_f32(value);
  return total;
}

double PeakGflops(cpu::ThreadPool& pool) {
  if (cpu::DetectIsa() < cpu::Isa::kAvx512Bf16) return 0.0;
  constexpr int64_t kSteps = 400'000;
  const double seconds = Best(0.2, [&] {
    pool.ParallelFor(pool.threads(), [](int64_t, int) {
      volatile float sink = RegisterLoop(kSteps);
      static_cast<void>(sink);
    });
  });
  return 24.0 * 64.0 * static_cast<double>(kSteps * pool.threads()) / seconds * 1e-9;
}

double ReadGbps(cpu::ThreadPool& pool) {
  std::vector<uint64_t> data(static_cast<size_t>(512 << 20) / 8, 1);
  constexpr int64_t kTasks = 256;
  const auto words = static_cast<int64_t>(data.size()) / kTasks;
  const double seconds = Best(0.5, [&] {
    pool.ParallelFor(kTasks, [&](int64_t task, int) {
      uint64_t sum[8] = {};
      const uint64_t* from = data.data() + task * words;
      for (int64_t i = 0; i < words; i += 8) {
        for (int lane = 0; lane < 8; ++lane) sum[lane] ^= from[i + lane];
      }
      for (uint64_t lane : sum) asm volatile("" ::"r"(lane));
    });
  });
  return static_cast<double>(data.size() * 8) / seconds * 1e-9;
}

void PrintCeilings(cpu::ThreadPool& pool) {
  // Each task waits for all: the time until the last worker has joined, and the way back.
  const double loops = Best(0.2, [&] {
    for (int i = 0; i < 1000; ++i) {
      std::atomic<int> joined{0};
      pool.ParallelFor(pool.threads(), [&](int64_t, int) {
        joined.fetch_add(1);
        while (joined.load() < pool.threads()) _mm_pause();
      });
    }
  });
  std::printf("threads %d: VDPBF16PS %.0f GFLOP/s, memory read %.1f GB/s, ParallelFor %.2f us\n",
              pool.threads(), PeakGflops(pool), ReadGbps(pool), loops * 1e3);
}

struct Problem final {
  int64_t m, n, k;
  int copies;
};

std::vector<uint8_t> RandomTensor(DType dtype, int64_t elements) {
  std::vector<uint8_t> bytes(static_cast<size_t>(elements) * DTypeBytes(dtype));
  std::minstd_rand random(1);
  std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
  for (int64_t i = 0; i < elements; ++i) {
    if (dtype == DType::kBF16) {
      reinterpret_cast<BF16*>(bytes.data())[i] = ToBF16(uniform(random));
    } else {
      reinterpret_cast<float*>(bytes.data())[i] = uniform(random);
    }
  }
  return bytes;
}

double OurSeconds(Backend& backend, const Problem& problem, std::vector<uint8_t>& weight,
                  std::vector<uint8_t>& x, std::vector<uint8_t>& out) {
  const DType act = backend.act_dtype();
  std::vector<std::unique_ptr<PreparedMatrix>> copies;
  for (int i = 0; i < problem.copies; ++i) {
    auto prepared = PrepareMatrix(backend, TensorView(weight.data(), act, {problem.n, problem.k}));
    if (!prepared.ok()) std::exit(1);
    copies.push_back(std::move(prepared).value());
  }
  Stream stream;
  const double seconds = Best(0.3, [&] {
    for (const auto& copy : copies) {
      const MatmulArgs args{.x = {x.data(), act, {problem.m, problem.k}},
                            .weight = copy.get(),
                            .bias = {},
                            .out = {out.data(), act, {problem.m, problem.n}}};
      if (!Matmul(backend, args, stream).ok()) std::exit(1);
    }
  });
  return seconds / problem.copies;
}

double DnnlSeconds(DType act, const Problem& problem, std::vector<uint8_t>& weight,
                   std::vector<uint8_t>& x, std::vector<uint8_t>& out) {
  using dnnl::memory;
  const auto type = act == DType::kBF16 ? memory::data_type::bf16 : memory::data_type::f32;
  dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  dnnl::stream stream(engine);
  const memory::desc x_desc({problem.m, problem.k}, type, memory::format_tag::ab);
  const memory::desc any({problem.k, problem.n}, type, memory::format_tag::any);
  const memory::desc out_desc({problem.m, problem.n}, type, memory::format_tag::ab);
  const dnnl::matmul::primitive_desc descriptor({x_desc, any, out_desc}, engine);
  const dnnl::matmul matmul(descriptor);
  memory plain({{problem.k, problem.n}, type, memory::format_tag::ba}, engine, weight.data());
  memory x_memory(x_desc, engine, x.data());
  memory out_memory(out_desc, engine, out.data());
  std::vector<memory> copies;
  for (int i = 0; i < problem.copies; ++i) {
    copies.emplace_back(descriptor.weights_desc(), engine);
    dnnl::reorder(plain, copies.back()).execute(stream, plain, copies.back());
  }
  stream.wait();
  const double seconds = Best(0.3, [&] {
    for (memory& copy : copies) {
      matmul.execute(
          stream, {{DNNL_ARG_SRC, x_memory}, {DNNL_ARG_WEIGHTS, copy}, {DNNL_ARG_DST, out_memory}});
    }
    stream.wait();
  });
  return seconds / problem.copies;
}

void Run(Backend& backend, int64_t m, int64_t n, int64_t k, double peak) {
  const DType act = backend.act_dtype();
  const auto weight_bytes = static_cast<double>(n * k) * static_cast<double>(DTypeBytes(act));
  const int copies =
      m <= 64 ? static_cast<int>(static_cast<double>(kColdBytes) / weight_bytes) + 1 : 1;
  const Problem problem{m, n, k, copies};
  auto weight = RandomTensor(act, n * k);
  auto x = RandomTensor(act, m * k);
  std::vector<uint8_t> out(static_cast<size_t>(m * n) * DTypeBytes(act));
  const auto print = [&](const char* who, double seconds) {
    const double gflops = 2.0 * static_cast<double>(m * n * k) / seconds * 1e-9;
    std::printf("  %-6s %8.1f us %7.0f GFLOP/s %3.0f %% %6.1f GB/s", who, seconds * 1e6, gflops,
                peak > 0.0 ? 100.0 * gflops / peak : 0.0, weight_bytes / seconds * 1e-9);
  };
  std::printf("m %4ld n %4ld k %4ld", static_cast<long>(m), static_cast<long>(n),
              static_cast<long>(k));
  print("ours", OurSeconds(backend, problem, weight, x, out));
  print("oneDNN", DnnlSeconds(act, problem, weight, x, out));
  std::printf("\n");
  std::fflush(stdout);
}

int Main(int argc, char** argv) {
  BackendOptions options;
  options.threads = argc > 1 ? std::atoi(argv[1]) : 0;
  if (argc > 2 && std::string(argv[2]) == "f32") options.precision = DType::kF32;
  if (argc > 3) options.isa_max = argv[3];
  auto backend = MakeBackend(DeviceKind::kCpu, options);
  if (!backend.ok()) {
    std::fprintf(stderr, "%s\n", backend.status().ToString().c_str());
    return 1;
  }
  const int threads = (*backend)->threads();
  cpu::ThreadPool pool(threads, true);
  std::printf("%s\n", std::string((*backend)->name()).c_str());
  PrintCeilings(pool);
  const double peak = options.precision == DType::kBF16 ? PeakGflops(pool) : PeakGflops(pool) / 2;
  constexpr int64_t kShapes[][2] = {{1536, 1024}, {1024, 1024}, {5632, 1024}, {1024, 2816}};
  const int64_t only = argc > 4 ? std::atoll(argv[4]) : 0;
  for (const int64_t m : {1, 2, 4, 8, 16, 64, 512, 2048}) {
    if (only != 0 && m != only) continue;
    for (const auto& shape : kShapes) Run(**backend, m, shape[0], shape[1], peak);
  }
  return 0;
}

}  // namespace
}  // namespace lacuna::kernels

int main(int argc, char** argv) { return lacuna::kernels::Main(argc, argv); }
