// SelectRanges of the CPU backend beside dense prefill attention of the same shape, in turn.
//   ranges_bench [threads] [isa_max] [keys] [queries]
// One chunk of queries at the end of `keys`, 8 query and 2 kv heads of 64 channels, bf16, pages of
// 64 in random order. Each line: median milliseconds, spread of the middle half, and the share of
// dense attention's median.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/cpu/append_kv.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/select_ranges.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/ops/range_limits.h"

namespace lacuna::kernels::cpu {
namespace {

constexpr int64_t kQHeads = 8, kKvHeads = 2, kHeadDim = 64, kPageTokens = 64;
constexpr int kRounds = 9;

std::vector<BF16> Noise(int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<BF16> noise(static_cast<size_t>(count));
  for (BF16& value : noise) value = ToBF16(normal(random));
  return noise;
}

// One sequence of random keys, and the queries of its last chunk.
struct Prompt final {
  Prompt(int64_t keys, int64_t queries, Isa isa, ThreadPool& pool)
      : q_data(Noise(queries * kQHeads * kHeadDim, 1)), out_data(q_data.size()) {
    const int64_t pages = CeilDiv(keys, kPageTokens);
    logical.resize(static_cast<size_t>(pages));
    std::iota(logical.begin(), logical.end(), 0);
    page_ids = logical;
    std::mt19937 random(2);
    std::shuffle(page_ids.begin(), page_ids.end(), random);
    offsets = {0, pages};
    kv = {nullptr, DType::kBF16, pages, kKvHeads, kHeadDim, kPageTokens};
    memory = std::move(AllocateZeroed(kv.Bytes())).value();
    kv.data = memory.data();
    std::vector<BF16> k = Noise(keys * kKvHeads * kHeadDim, 3);
    std::vector<int32_t> slots;
    for (int64_t t = 0; t < keys; ++t) {
      slots.push_back(page_ids[static_cast<size_t>(t / kPageTokens)] * int32_t{kPageTokens} +
                      static_cast<int32_t>(t % kPageTokens));
    }
    const TensorView rows(k.data(), DType::kBF16, {keys, kKvHeads, kHeadDim});
    static_cast<void>(
        AppendKvCpu({rows, rows, TensorView(slots.data(), DType::kI32, {keys}), kv}, isa, pool));
    q = TensorView(q_data.data(), DType::kBF16, {queries, kQHeads, kHeadDim});
    out = TensorView(out_data.data(), DType::kBF16, {queries, kQHeads, kHeadDim});
    chunk = {0, static_cast<int32_t>(queries), static_cast<int32_t>(keys - queries)};
  }
  PageLists lists() const {
    return {page_ids.data(), logical.data(), offsets.data(), offsets.data() + 1, 1};
  }

  std::vector<BF16> q_data, out_data;
  std::vector<int32_t> page_ids, logical;
  std::vector<int64_t> offsets;
  Buffer memory;
  KvPool kv;
  TensorView q, out;
  PrefillChunk chunk;
};

// The lists of one chunk.
struct Lists final {
  Lists(const PrefillPath& path, const PrefillChunk& chunk)
      : stride(RangesMax(path, chunk.first_position + chunk.rows)) {
    const auto lists = static_cast<size_t>(kQHeads * CeilDiv(chunk.rows, 64));
    begin.resize(lists * static_cast<size_t>(stride));
    end.resize(begin.size());
    begins.resize(lists);
    ends.resize(lists);
  }
  RangeArrays arrays() {
    return {begin.data(), end.data(), begins.data(), ends.data(), stride, &zero};
  }
  int64_t stride, zero = 0;
  std::vector<int32_t> begin, end;
  std::vector<int64_t> begins, ends;
};

double Seconds(const std::function<void()>& fn) {
  const auto start = std::chrono::steady_clock::now();
  fn();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

struct Case final {
  const char* name;
  PrefillPath path;
  PrefillDials dials;
};

std::vector<Case> Cases() {
  std::vector<Case> cases;
  Case one{"antidiagonal 16", {}, {}};
  one.path.estimate = EstimateKind::kPooled;
  one.path.pool = PrefillPool::kAntidiagonal;
  one.path.select = PrefillSelectKind::kTopP;
  one.dials.sink_tokens = 128;
  one.dials.local_tokens = 256;
  cases.push_back(one);
  one.name = "antidiagonal 8";
  one.path.stride_tokens = 8;
  cases.push_back(one);
  one.name = "bands";
  one.path.pool = PrefillPool::kBands;
  one.dials.low_channels = 48;
  one.dials.high_channels = 32;
  cases.push_back(one);
  one.name = "probe 64";
  one.path.estimate = EstimateKind::kProbe;
  one.path.select = PrefillSelectKind::kVerticalSlash;
  cases.push_back(one);
  one.name = "probe 128, map";
  one.path.estimate = EstimateKind::kProbePooled;
  one.path.pool = PrefillPool::kMean;
  one.path.select = PrefillSelectKind::kCover;
  one.path.scope = ScopeKind::kMap;
  one.dials.probe_rows = 128;
  one.dials.js_threshold = 0.1f;
  cases.push_back(one);
  return cases;
}

void Print(const char* name, std::vector<double> seconds, double dense) {
  std::ranges::sort(seconds);
  const double median = seconds[seconds.size() / 2];
  const double spread = seconds[seconds.size() * 3 / 4] - seconds[seconds.size() / 4];
  std::printf("%-16s %8.2f ms  +- %6.2f", name, median * 1e3, spread * 1e3);
  std::printf(dense > 0 ? "  %5.1f %% of dense\n" : "\n", 100 * median / dense);
}

int Main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 2;
  const Result<Isa> wanted = ParseIsa(argc > 2 ? argv[2] : "auto");
  const int64_t keys = argc > 3 ? std::atoll(argv[3]) : 32768;
  const int64_t queries = argc > 4 ? std::atoll(argv[4]) : 2048;
  if (threads < 1 || !wanted.ok() || queries < 1 || keys < queries || keys > (1 << 24)) {
    std::fprintf(stderr, "usage: ranges_bench [threads] [isa_max] [keys] [queries]\n");
    return 2;
  }
  const Isa isa = std::min(*wanted, DetectIsa());
  ThreadPool pool(threads, true);
  AttentionScratch attention(threads);
  SelectRangesScratch scratch(threads);
  Prompt prompt(keys, queries, isa, pool);
  const float scale = 1.0f / std::sqrt(static_cast<float>(kHeadDim));
  AttendPrefillArgs attend;
  attend.q = prompt.q;
  attend.pool = prompt.kv;
  attend.chunks = {&prompt.chunk, 1};
  attend.lists = prompt.lists();
  attend.params.scale = scale;
  attend.out = prompt.out;
  const std::vector<Case> cases = Cases();
  std::vector<Lists> lists;
  std::vector<RangeChunk> chunks;
  const std::vector<PrefillHead> heads(
      kQHeads, PrefillHead{.pattern = {PatternKind::kVerticalSlash, 1000, 6096}, .p = 0.9f});
  for (const Case& one : cases) {
    lists.emplace_back(one.path, prompt.chunk);
    chunks.push_back({prompt.chunk, static_cast<int32_t>(keys), one.dials});
  }
  std::vector<std::vector<double>> seconds(cases.size());
  std::vector<double> dense;
  for (int round = 0; round < kRounds; ++round) {
    dense.push_back(
        Seconds([&] { static_cast<void>(AttendPrefillCpu(attend, isa, false, pool, attention)); }));
    for (size_t i = 0; i < cases.size(); ++i) {
      SelectRangesArgs args;
      args.q = prompt.q;
      args.pool = prompt.kv;
      args.chunks = {&chunks[i], 1};
      args.lists = prompt.lists();
      args.path = cases[i].path;
      args.heads = heads.data();
      args.scale = scale;
      args.out = lists[i].arrays();
      seconds[i].push_back(
          Seconds([&] { static_cast<void>(SelectRangesCpu(args, isa, pool, scratch)); }));
    }
  }
  std::printf("%s, %d threads, %ld queries at the end of %ld keys, heads 8/2 of 64\n",
              std::string(IsaName(isa)).c_str(), threads, static_cast<long>(queries),
              static_cast<long>(keys));
  Print("dense attention", dense, 0);
  std::ranges::sort(dense);
  for (size_t i = 0; i < cases.size(); ++i) {
    Print(cases[i].name, seconds[i], dense[dense.size() / 2]);
  }
  return 0;
}

}  // namespace
}  // namespace lacuna::kernels::cpu

int main(int argc, char** argv) { return lacuna::kernels::cpu::Main(argc, argv); }
