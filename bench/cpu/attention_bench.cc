// Attention of the CPU backend against the machine's ceilings, measured in the same run.
//   attention_bench [threads] [isa_max] [bf16|f32] [prefill|decode|sparse]
// Prefill: a chunk of 512 queries behind `depth` cached tokens; tokens/s of one layer, GFLOP/s of
// the visible scores (4 * head_dim per query head and key) and the share of the register-loop peak.
// Decode: one query per row; tokens/s of one layer, GB/s of unique KV and the share of the memory
// read rate. Decode cycles through copies of the cache that exceed every cache of the machine. The
// hash covers all output bytes: equal on equal machines, so a change of bits shows.
// Sparse decode lists a share of the 16-key groups of each page (masks); sparse prefill a share of
// the 128 x 128 blocks of each head (ranges). Both count only what is listed, so that their GB/s
// and GFLOP/s stand beside the dense ones.
#include <immintrin.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/cpu/append_kv.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/thread_pool.h"

namespace lacuna::kernels::cpu {
namespace {

constexpr int64_t kColdBytes = 256 << 20;
constexpr int kChunk = 512;

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Seconds of the best call within the budget.
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

// Each returns the floating point operations done.
__attribute__((target("avx512f,avx512bf16"), noinline)) double Bf16RegisterLoop() {
  constexpr int64_t kSteps = 1'000'000;
  for (int64_t i = 0; i < kSteps; ++i) {
    asm volatile(
        "vdpbf16ps %%zmm31, %%zmm30, %%zmm0\n vdpbf16ps %%zmm31, %%zmm30, %%zmm1\n"
        "vdpbf16ps %%zmm31, %%zmm30, %%zmm2\n vdpbf16ps %%zmm31, %%zmm30, %%zmm3\n"
        "vdpbf16ps %%zmm31, %%zmm30, %%zmm4\n vdpbf16ps %%zmm31, %%zmm30, %%zmm5\n"
        "vdpbf16ps %%zmm31, %%zmm30, %%zmm6\n vdpbf16ps %%zmm31, %%zmm30, %%zmm7\n"
        "vdpbf16ps %%zmm31, %%zmm30, %%zmm8\n vdpbf16ps %%zmm31, %%zmm30, %%zmm9\n"
        "vdpbf16ps %%zmm31, %%zmm30, %%zmm10\n vdpbf16ps %%zmm31, %%zmm30, %%zmm11\n" ::
            : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
              "xmm10", "xmm11");
  }
  return 12.0 * 64.0 * static_cast<double>(kSteps);
}

__attribute__((target("amx-tile,amx-bf16"), noinline)) double AmxRegisterLoop() {
  alignas(64) static const uint8_t config[64] = {
      1, 0,  0, 0,  0, 0,  0, 0,  0, 0,  0,  0,  0,  0,  0,  0,  64, 0, 64,
      0, 64, 0, 64, 0, 64, 0, 64, 0, 64, 0,  64, 0,  0,  0,  0,  0,  0, 0,
      0, 0,  0, 0,  0, 0,  0, 0,  0, 0,  16, 16, 16, 16, 16, 16, 16, 16};
  asm volatile("ldtilecfg %0" : : "m"(config));
  constexpr int64_t kSteps = 100'000;
  for (int64_t i = 0; i < kSteps; ++i) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
  return 4.0 * 16.0 * 16.0 * 64.0 * static_cast<double>(kSteps);
}

double PeakGflops(ThreadPool& pool, Isa isa) {
  if (isa < Isa::kAvx512Bf16) return std::nan("");
  double flops = 0.0;
  const double seconds = Best(0.2, [&] {
    pool.ParallelFor(pool.threads(), [&](int64_t, int worker) {
      const double done = isa >= Isa::kAmx ? AmxRegisterLoop() : Bf16RegisterLoop();
      if (worker == 0) flops = done;
    });
  });
  return flops * pool.threads() / seconds * 1e-9;
}

double ReadGbps(ThreadPool& pool) {
  Buffer memory = std::move(AllocateZeroed(2 * kColdBytes)).value();
  std::memset(memory.data(), 1, static_cast<size_t>(memory.bytes()));
  constexpr int64_t kTasks = 256;
  const int64_t bytes = memory.bytes() / kTasks;
  const double seconds = Best(0.5, [&] {
    pool.ParallelFor(kTasks, [&](int64_t task, int) {
      const auto* at =
          static_cast<const uint64_t*>(static_cast<const void*>(memory.data())) + task * bytes / 8;
      volatile uint64_t sink = std::accumulate(at, at + bytes / 8, uint64_t{0});
      static_cast<void>(sink);
    });
  });
  return static_cast<double>(memory.bytes()) / seconds * 1e-9;
}

struct Shape final {
  const char* name;
  int q_heads, kv_heads, head_dim;
};

// One layer's cache per copy, its pages in random order as in a long-lived pool.
class Cache final {
 public:
  Cache(const Shape& shape, DType dtype, int64_t tokens, int copies, Isa isa, ThreadPool& threads)
      : tokens_(tokens) {
    const int64_t pages = (tokens + kPageTokens - 1) / kPageTokens;
    std::mt19937 random(1);
    for (int64_t i = 0; i < pages; ++i) logical_.push_back(static_cast<int32_t>(i));
    page_ids_ = logical_;
    std::shuffle(page_ids_.begin(), page_ids_.end(), random);
    offsets_ = {0, pages};
    std::vector<uint16_t> noise(static_cast<size_t>(tokens * shape.kv_heads * shape.head_dim) * 2);
    std::uniform_real_distribution<float> uniform(-1.0f, 1.0f);
    for (auto& value : noise) value = ToBF16(uniform(random)).bits;
    std::vector<int32_t> slots;
    for (int64_t t = 0; t < tokens; ++t) {
      slots.push_back(page_ids_[static_cast<size_t>(t / kPageTokens)] * kPageTokens +
                      static_cast<int32_t>(t % kPageTokens));
    }
    const TensorView rows(noise.data(), dtype, {tokens, shape.kv_heads, shape.head_dim});
    for (int i = 0; i < copies; ++i) {
      KvPool pool{nullptr, dtype, pages, shape.kv_heads, shape.head_dim, kPageTokens};
      memory_.push_back(std::move(AllocateZeroed(pool.Bytes())).value());
      pool.data = memory_.back().data();
      pools_.push_back(pool);
      static_cast<void>(AppendKvCpu(
          {rows, rows, TensorView(slots.data(), DType::kI32, {tokens}), pool}, isa, threads));
    }
  }
  const KvPool& pool(size_t copy) const { return pools_[copy % pools_.size()]; }
  size_t copies() const { return pools_.size(); }
  int64_t tokens() const { return tokens_; }
  PageLists lists() const {
    return {page_ids_.data(), logical_.data(), offsets_.data(), offsets_.data() + 1, 1};
  }

 private:
  static constexpr int kPageTokens = 64;
  int64_t tokens_;
  std::vector<int32_t> page_ids_, logical_;
  std::vector<int64_t> offsets_;
  std::vector<Buffer> memory_;
  std::vector<KvPool> pools_;
};

class Rows final {
 public:
  Rows(const Shape& shape, DType dtype, int64_t rows)
      : q_(static_cast<size_t>(rows * shape.q_heads * shape.head_dim) * DTypeBytes(dtype)),
        out_(q_.size()) {
    std::mt19937 random(2);
    std::uniform_real_distribution<float> uniform(-2.0f, 2.0f);
    for (size_t i = 0; i < q_.size(); i += 2) {
      const BF16 value = ToBF16(uniform(random));
      std::memcpy(&q_[i], &value, 2);
    }
    q = TensorView(q_.data(), dtype, {rows, shape.q_heads, shape.head_dim});
    out = TensorView(out_.data(), dtype, {rows, shape.q_heads, shape.head_dim});
  }
  uint64_t Hash() const {  // FNV-1a
    uint64_t hash = 14695981039346656037ull;
    for (std::byte b : out_) hash = (hash ^ static_cast<uint64_t>(b)) * 1099511628211ull;
    return hash;
  }
  TensorView q, out;

 private:
  std::vector<std::byte> q_, out_;
};

struct Machine final {
  ThreadPool& pool;
  AttentionScratch& scratch;
  Isa isa;
  DType dtype;
  double peak_gflops, read_gbps;
};

void BenchPrefill(const Machine& machine, const Shape& shape, int64_t depth) {
  const Cache cache(shape, machine.dtype, depth + kChunk, 1, machine.isa, machine.pool);
  const Rows rows(shape, machine.dtype, kChunk);
  const PrefillChunk chunk{0, kChunk, static_cast<int32_t>(depth)};
  AttendPrefillArgs args;
  args.q = rows.q;
  args.pool = cache.pool(0);
  args.chunks = {&chunk, 1};
  args.lists = cache.lists();
  args.out = rows.out;
  args.params.scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
  const double seconds = Best(0.3, [&] {
    static_cast<void>(AttendPrefillCpu(args, machine.isa, false, machine.pool, machine.scratch));
  });
  const double scores = kChunk * (static_cast<double>(depth) + (kChunk + 1) / 2.0) * shape.q_heads;
  const double gflops = scores * 4.0 * shape.head_dim / seconds * 1e-9;
  std::printf("prefill %-10s depth %6ld  %9.0f tokens/s  %7.1f GFLOP/s  %5.1f %% of peak  %016lx\n",
              shape.name, static_cast<long>(depth), kChunk / seconds, gflops,
              100.0 * gflops / machine.peak_gflops, static_cast<unsigned long>(rows.Hash()));
}

void BenchDecode(const Machine& machine, const Shape& shape, int64_t depth, bool deterministic) {
  const int64_t bytes =
      2 * depth * shape.kv_heads * shape.head_dim * static_cast<int64_t>(DTypeBytes(machine.dtype));
  const int copies = static_cast<int>((kColdBytes + bytes - 1) / bytes);
  const Cache cache(shape, machine.dtype, depth, copies, machine.isa, machine.pool);
  const Rows rows(shape, machine.dtype, 1);
  int32_t position = static_cast<int32_t>(depth) - 1;
  AttendDecodeArgs args;
  args.q = rows.q;
  args.out = rows.out;
  args.positions = TensorView(&position, DType::kI32, {1});
  args.lists = cache.lists();
  args.params.scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
  const double seconds =
      Best(0.3,
           [&] {
             for (size_t copy = 0; copy < cache.copies(); ++copy) {
               args.pool = cache.pool(copy);
               static_cast<void>(AttendDecodeCpu(args, machine.isa, deterministic, machine.pool,
                                                 machine.scratch));
             }
           }) /
      copies;
  const double gbps = static_cast<double>(bytes) / seconds * 1e-9;
  std::printf(
      "decode%s %-10s depth %6ld  %9.0f tokens/s  %7.2f GB/s     %5.1f %% of read  %016lx\n",
      deterministic ? "=" : " ", shape.name, static_cast<long>(depth), 1.0 / seconds, gbps,
      100.0 * gbps / machine.read_gbps, static_cast<unsigned long>(rows.Hash()));
}

// 4096 tokens in groups of 16 out of `depth`, the same number in each page.
void BenchSparseDecode(const Machine& machine, const Shape& shape, int64_t depth) {
  constexpr int64_t kListed = 4096;
  const int64_t groups = 4 * kListed / depth;  // of each page's four
  const int64_t bytes =
      2 * depth * shape.kv_heads * shape.head_dim * static_cast<int64_t>(DTypeBytes(machine.dtype));
  const int copies = static_cast<int>((kColdBytes + bytes - 1) / bytes);
  const Cache cache(shape, machine.dtype, depth, copies, machine.isa, machine.pool);
  const Rows rows(shape, machine.dtype, 1);
  std::mt19937 random(3);
  std::vector<uint64_t> masks;
  for (int64_t page = 0; page < depth / 64; ++page) {
    std::vector<int> order{0, 1, 2, 3};
    std::shuffle(order.begin(), order.end(), random);
    uint64_t mask = 0;
    for (int64_t i = 0; i < groups; ++i) {
      mask |= uint64_t{0xffff} << (16 * order[static_cast<size_t>(i)]);
    }
    masks.push_back(mask);
  }
  int32_t position = static_cast<int32_t>(depth) - 1;
  AttendDecodeArgs args;
  args.q = rows.q;
  args.out = rows.out;
  args.positions = TensorView(&position, DType::kI32, {1});
  args.lists = cache.lists();
  args.lists.masks = masks.data();
  args.params.scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
  const double seconds = Best(0.3,
                              [&] {
                                for (size_t copy = 0; copy < cache.copies(); ++copy) {
                                  args.pool = cache.pool(copy);
                                  static_cast<void>(AttendDecodeCpu(args, machine.isa, false,
                                                                    machine.pool, machine.scratch));
                                }
                              }) /
                         copies;
  const double gbps =
      static_cast<double>(bytes) * kListed / static_cast<double>(depth) / seconds * 1e-9;
  std::printf(
      "sparse  %-10s 4096 of %6ld %7.0f tokens/s  %7.2f GB/s     %5.1f %% of read  %016lx\n",
      shape.name, static_cast<long>(depth), 1.0 / seconds, gbps, 100.0 * gbps / machine.read_gbps,
      static_cast<unsigned long>(rows.Hash()));
}

// Random 128 x 128 blocks, `percent` of each head's, beside the diagonal ones.
void BenchSparsePrefill(const Machine& machine, const Shape& shape, int64_t depth, int percent) {
  constexpr int64_t kQueries = 2048, kBlock = 128;
  const Cache cache(shape, machine.dtype, depth + kQueries, 1, machine.isa, machine.pool);
  const Rows rows(shape, machine.dtype, kQueries);
  std::mt19937 random(4);
  std::vector<int32_t> begin, end;
  std::vector<int64_t> offsets{0};
  double scores = 0.0;
  for (int head = 0; head < shape.q_heads; ++head) {
    size_t row_begin = 0, row_end = 0;  // the ranges of the current row of blocks
    for (int64_t query = 0; query < kQueries; query += KeyRanges::kQueryTileTokens) {
      if (query % kBlock == 0) {
        row_begin = begin.size();
        for (int64_t key = 0; key <= depth + query; key += kBlock) {
          const bool diagonal = key == depth + query;
          if (!diagonal && static_cast<int>(random() % 100) >= percent) continue;
          begin.push_back(static_cast<int32_t>(key));
          end.push_back(static_cast<int32_t>(key + kBlock));
        }
        row_end = begin.size();
      } else {
        for (size_t i = row_begin; i < row_end; ++i) {
          begin.push_back(begin[i]);
          end.push_back(end[i]);
        }
      }
      const auto below = static_cast<double>(row_end - row_begin - 1);
      const auto own = static_cast<double>(query % kBlock);
      scores += KeyRanges::kQueryTileTokens *
                (below * kBlock + own + (KeyRanges::kQueryTileTokens + 1) / 2.0);
      offsets.push_back(static_cast<int64_t>(begin.size()));
    }
  }
  const int64_t first_list = 0;
  const KeyRanges ranges{begin.data(), end.data(), offsets.data(), offsets.data() + 1, &first_list};
  const PrefillChunk chunk{0, kQueries, static_cast<int32_t>(depth)};
  AttendPrefillArgs args;
  args.q = rows.q;
  args.pool = cache.pool(0);
  args.chunks = {&chunk, 1};
  args.lists = cache.lists();
  args.params.scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
  args.out = rows.out;
  const double dense_scores = kQueries * (static_cast<double>(depth) + (kQueries + 1) / 2.0) *
                              static_cast<double>(shape.q_heads);
  for (const KeyRanges* used : {static_cast<const KeyRanges*>(nullptr), &ranges}) {
    args.ranges = used;
    const double seconds = Best(0.3, [&] {
      static_cast<void>(AttendPrefillCpu(args, machine.isa, false, machine.pool, machine.scratch));
    });
    const double done = used == nullptr ? dense_scores : scores;
    const double gflops = done * 4.0 * shape.head_dim / seconds * 1e-9;
    std::printf(
        "ranges  %-10s depth %6ld  %5.1f %% read  %8.1f ms  %7.1f GFLOP/s  %5.1f %% of peak  "
        "%016lx\n",
        shape.name, static_cast<long>(depth), 100.0 * done / dense_scores, seconds * 1e3, gflops,
        100.0 * gflops / machine.peak_gflops, static_cast<unsigned long>(rows.Hash()));
  }
}

int Main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 2;
  const Result<Isa> isa = ParseIsa(argc > 2 ? argv[2] : "auto");
  const std::string only = argc > 4 ? argv[4] : "";
  const DType dtype = argc > 3 && std::string(argv[3]) == "f32" ? DType::kF32 : DType::kBF16;
  if (threads < 1 || !isa.ok()) {
    std::fprintf(stderr,
                 "usage: attention_bench [threads] [isa_max] [bf16|f32] [prefill|decode|sparse]\n");
    return 2;
  }
  const Isa used = std::min(*isa, DetectIsa());
  ThreadPool pool(threads, true);
  AttentionScratch scratch(threads);
  const Machine machine{pool, scratch, used, dtype, PeakGflops(pool, used), ReadGbps(pool)};
  std::printf("%s %s, %d threads: peak %.0f GFLOP/s (bf16 register loop), read %.1f GB/s\n",
              std::string(IsaName(used)).c_str(), std::string(DTypeName(dtype)).c_str(), threads,
              machine.peak_gflops, machine.read_gbps);
  const Shape shapes[] = {
      {"16/4 d64", 16, 4, 64}, {"8/2 d64", 8, 2, 64}, {"16/4 d128", 16, 4, 128}};
  for (const Shape& shape : shapes) {
    if (only == "decode" || only == "sparse") continue;
    for (int64_t depth : {0, 4096, 16384, 32768}) BenchPrefill(machine, shape, depth);
  }
  for (const Shape& shape : shapes) {
    if (only == "prefill" || only == "sparse") continue;
    for (int64_t depth : {512, 4096, 16384, 32768}) BenchDecode(machine, shape, depth, false);
    BenchDecode(machine, shape, 16384, true);
  }
  for (const Shape& shape : shapes) {
    if (only == "prefill" || only == "decode") continue;
    BenchDecode(machine, shape, 4096, false);
    for (int64_t depth : {4096, 8192, 16384}) BenchSparseDecode(machine, shape, depth);
    BenchSparsePrefill(machine, shape, 30720, 25);
  }
  return 0;
}

}  // namespace
}  // namespace lacuna::kernels::cpu

int main(int argc, char** argv) { return lacuna::kernels::cpu::Main(argc, argv); }
