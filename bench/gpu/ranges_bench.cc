// Times SelectRanges beside dense AttendPrefill of the same chunk: 32 query and 8 kv heads of 128
// channels, bf16, pages of 64 in random order. One line for each kind of estimate: median, spread
// (10th to 90th percentile), share of dense attention, and for the antidiagonal the rate of its
// product, as if it took all the time. Then a whole prompt in chunks of 8192.
// usage: ranges_bench [repetitions [prompt tokens [kind]]], of the kinds whose names begin so
#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <string>
#include <string_view>

#include "bench/gpu/device_memory.h"
#include "kernels/core/checked_math.h"
#include "kernels/core/dtype.h"
#include "kernels/cuda/matmul/matmul_kernels.h"
#include "kernels/ops/range_limits.h"

namespace lacuna::bench {
namespace {

using namespace lacuna::kernels;

constexpr int kQHeads = 32, kKvHeads = 8, kHeadDim = 128, kPageTokens = 64;
constexpr int kChunkRows = 8192;

// Random numbers of variance 1.
DeviceVector<uint16_t> Random(int64_t count, uint64_t seed) {
  DeviceVector<uint16_t> out(static_cast<size_t>(count));
  Check(cuda::FillRandom(out.data(), DType::kBF16, count, seed, 1.732f, nullptr));
  Check(cudaDeviceSynchronize(), "FillRandom");
  return out;
}

struct Case final {
  const char* name;
  PrefillPath path;
  PrefillDials dials;
  PrefillHead head;
};

Case Pooled(const char* name, PrefillPool pool, PrefillSelectKind select) {
  Case made{name, {}, {}, {.pattern = {}, .p = 0.9f}};
  made.path.estimate = EstimateKind::kPooled;
  made.path.pool = pool;
  made.path.select = select;
  made.dials.sink_tokens = 128;
  made.dials.local_tokens = 256;
  made.dials.low_channels = 96;
  made.dials.high_channels = 64;
  made.dials.fraction = 0.1;
  return made;
}

std::vector<Case> Cases(std::string_view kind) {
  std::vector<Case> cases;
  cases.push_back(
      Pooled("antidiagonal 16 top_p", PrefillPool::kAntidiagonal, PrefillSelectKind::kTopP));
  cases.push_back(
      Pooled("antidiagonal 16 top_k", PrefillPool::kAntidiagonal, PrefillSelectKind::kTopK));
  cases.push_back(
      Pooled("antidiagonal 8 top_p", PrefillPool::kAntidiagonal, PrefillSelectKind::kTopP));
  cases.back().path.stride_tokens = 8;
  cases.push_back(Pooled("mean top_k", PrefillPool::kMean, PrefillSelectKind::kTopK));
  cases.push_back(Pooled("bands top_p", PrefillPool::kBands, PrefillSelectKind::kTopP));
  Case probe = Pooled("vertical_slash", PrefillPool::kMean, PrefillSelectKind::kVerticalSlash);
  probe.path.estimate = EstimateKind::kProbe;
  probe.path.block_tokens = 64;
  probe.path.cell_tokens = 4096;
  probe.head.pattern = {PatternKind::kVerticalSlash, 1000, 6096};
  cases.push_back(probe);
  probe.name = "flexprefill";
  probe.path.estimate = EstimateKind::kProbePooled;
  probe.path.select = PrefillSelectKind::kCover;
  probe.path.scope = ScopeKind::kMap;
  probe.path.block_tokens = 128;
  probe.dials.probe_rows = 128;
  probe.dials.js_threshold = 0.1f;
  probe.dials.min_tokens = 1024;
  cases.push_back(probe);
  probe.name = "sampleattention";
  probe.path.estimate = EstimateKind::kProbe;
  probe.path.scope = ScopeKind::kRow;
  probe.path.probe_place = ProbePlace::kTails;
  probe.dials.probe_rows = 64;
  probe.dials.probe_fraction = 0.05f;
  probe.dials.min_tokens = 0;
  probe.dials.local_tokens = 128;
  probe.dials.local_fraction = 0.08;
  probe.head.p = 0.95f;
  cases.push_back(probe);
  std::erase_if(cases,
                [&](const Case& which) { return !std::string_view(which.name).starts_with(kind); });
  return cases;
}

// A prompt of random keys, and queries that every chunk of it uses.
class Prompt final {
 public:
  explicit Prompt(int tokens)
      : tokens_(tokens),
        traits_(TraitsOfDevice()),
        pages_(CeilDiv(tokens, kPageTokens)),
        q_(Random(int64_t{kChunkRows} * kQHeads * kHeadDim, 1)),
        out_(q_.size()),
        pool_(Random(2 * pages_ * kPageTokens * kKvHeads * kHeadDim, 2)),
        logical_(Order(false)),
        page_ids_(Order(true)),
        workspace_(static_cast<size_t>(WorkspaceBytes())) {}

  int tokens() const { return tokens_; }
  const cuda::DeviceTraits& traits() const { return traits_; }
  TensorView q() const { return {q_.data(), DType::kBF16, {kChunkRows, kQHeads, kHeadDim}}; }
  TensorView out() const { return {out_.data(), DType::kBF16, {kChunkRows, kQHeads, kHeadDim}}; }
  KvPool pool() const {
    return {pool_.data(), DType::kBF16, pages_, kKvHeads, kHeadDim, kPageTokens};
  }
  cuda::Workspace workspace() const {
    return {workspace_.data(), static_cast<int64_t>(workspace_.size())};
  }
  // All pages up to `end`.
  PageLists Lists(const DeviceVector<int64_t>& offsets) const {
    return {page_ids_.data(), logical_.data(), offsets.data(), offsets.data() + 1, 1};
  }

 private:
  std::vector<int32_t> Order(bool shuffled) const {
    std::vector<int32_t> order(static_cast<size_t>(pages_));
    std::iota(order.begin(), order.end(), 0);
    if (shuffled) std::ranges::shuffle(order, std::mt19937(3));
    return order;
  }
  int64_t WorkspaceBytes() const {
    return std::max(
        cuda::PrefillWorkspaceBytes(traits_, kChunkRows, 1, kQHeads, tokens_),
        cuda::SelectRangesWorkspaceBytes(DType::kBF16, kChunkRows, kQHeads, kHeadDim, tokens_));
  }

  int tokens_;
  cuda::DeviceTraits traits_;
  int64_t pages_;
  DeviceVector<uint16_t> q_, out_, pool_;
  DeviceVector<int32_t> logical_, page_ids_;
  DeviceVector<std::byte> workspace_;
};

// One chunk that ends at `end`: what both ops are given.
class Chunk final {
 public:
  Chunk(const Prompt& prompt, int end)
      : prompt_(prompt),
        chunk_{0, std::min(kChunkRows, end), end - std::min(kChunkRows, end)},
        offsets_(std::vector<int64_t>{0, CeilDiv(end, kPageTokens)}) {}

  void Attend(cudaStream_t stream) const {
    AttendPrefillArgs args;
    args.q = prompt_.q();
    args.pool = prompt_.pool();
    args.chunks = {&chunk_, 1};
    args.lists = prompt_.Lists(offsets_);
    args.params.scale = Scale();
    args.out = prompt_.out();
    Check(cuda::AttendPrefill(args, prompt_.traits(), false, prompt_.workspace(), stream));
  }

  // Arrays for the lists of one case.
  struct Room final {
    DeviceVector<int32_t> begin, end;
    DeviceVector<int64_t> begins, ends, zero;
    DeviceVector<PrefillHead> heads;
    int64_t stride;
  };
  Room MakeRoom(const Case& which) const {
    const int64_t lists = kQHeads * CeilDiv(chunk_.rows, 64);
    const int64_t stride = RangesMax(which.path, chunk_.first_position + chunk_.rows);
    const auto entries = static_cast<size_t>(lists * stride);
    const auto count = static_cast<size_t>(lists);
    return {DeviceVector<int32_t>(entries),
            DeviceVector<int32_t>(entries),
            DeviceVector<int64_t>(count),
            DeviceVector<int64_t>(count),
            DeviceVector<int64_t>(std::vector<int64_t>{0}),
            DeviceVector<PrefillHead>(std::vector<PrefillHead>(kQHeads, which.head)),
            stride};
  }
  void Select(const Case& which, const Room& room, cudaStream_t stream) const {
    const RangeChunk part{chunk_, prompt_.tokens(), which.dials};
    SelectRangesArgs args;
    args.q = prompt_.q();
    args.pool = prompt_.pool();
    args.chunks = {&part, 1};
    args.lists = prompt_.Lists(offsets_);
    args.path = which.path;
    args.heads = room.heads.data();
    args.scale = Scale();
    args.out = {room.begin.data(), room.end.data(), room.begins.data(),
                room.ends.data(),  room.stride,     room.zero.data()};
    Check(cuda::SelectRanges(args, prompt_.traits(), prompt_.workspace(), stream));
  }
  // Operations of the antidiagonal's product, of the causal part.
  double ProductFlop(int stride) const {
    const double rows = double{static_cast<double>(chunk_.rows)} / stride;
    const double keys = (chunk_.first_position + chunk_.rows / 2.0) / stride;
    return 2.0 * rows * keys * stride * kHeadDim * kQHeads;
  }

 private:
  static float Scale() { return 1.0f / std::sqrt(static_cast<float>(kHeadDim)); }

  const Prompt& prompt_;
  PrefillChunk chunk_;
  DeviceVector<int64_t> offsets_;
};

void BenchChunk(const Prompt& prompt, int end, const std::vector<Case>& cases, int repetitions,
                cudaStream_t stream) {
  const Chunk chunk(prompt, end);
  const Timing dense = TimeRuns([&](cudaStream_t s) { chunk.Attend(s); }, stream, repetitions, 2);
  std::printf("queries %d, keys %d: dense attention %8.3f ms [%.3f %.3f]\n",
              std::min(kChunkRows, end), end, dense.median_ms, dense.low_ms, dense.high_ms);
  for (const Case& which : cases) {
    const Chunk::Room room = chunk.MakeRoom(which);
    const Timing timing =
        TimeRuns([&](cudaStream_t s) { chunk.Select(which, room, s); }, stream, repetitions, 2);
    std::printf("  %-22s %8.3f ms [%.3f %.3f] %5.1f %% of dense", which.name, timing.median_ms,
                timing.low_ms, timing.high_ms, 100.0 * timing.median_ms / dense.median_ms);
    if (which.path.pool == PrefillPool::kAntidiagonal) {
      std::printf("  %5.1f TFLOP/s",
                  chunk.ProductFlop(which.path.stride_tokens) / timing.median_ms * 1e-9);
    }
    std::printf("\n");
    std::fflush(stdout);
  }
}

// All chunks of the prompt, in turn.
void BenchPrompt(const Prompt& prompt, const std::vector<Case>& cases, cudaStream_t stream) {
  std::vector<Chunk> chunks;
  for (int end = kChunkRows; end <= prompt.tokens(); end += kChunkRows) {
    chunks.emplace_back(prompt, end);
  }
  const Timing dense = TimeRuns(
      [&](cudaStream_t s) {
        for (const Chunk& chunk : chunks) chunk.Attend(s);
      },
      stream, 3, 1);
  std::printf("prompt of %d in chunks of %d: dense attention %8.1f ms\n", prompt.tokens(),
              kChunkRows, dense.median_ms);
  for (const Case& which : cases) {
    const Chunk::Room room = chunks.back().MakeRoom(which);
    const Timing timing = TimeRuns(
        [&](cudaStream_t s) {
          for (const Chunk& chunk : chunks) chunk.Select(which, room, s);
        },
        stream, 5, 1);
    std::printf("  %-22s %8.2f ms %5.1f %% of dense\n", which.name, timing.median_ms,
                100.0 * timing.median_ms / dense.median_ms);
    std::fflush(stdout);
  }
}

}  // namespace
}  // namespace lacuna::bench

int main(int argc, char** argv) {
  using namespace lacuna::bench;
  const int repetitions = argc > 1 ? std::atoi(argv[1]) : 15;
  const int tokens = argc > 2 ? std::atoi(argv[2]) : 131072;
  if (repetitions < 1 || tokens < kChunkRows || tokens > 1 << 21) {
    std::fprintf(stderr, "usage: ranges_bench [repetitions [prompt tokens [kind]]]\n");
    return 2;
  }
  const std::vector<Case> cases = Cases(argc > 3 ? argv[3] : "");
  cudaStream_t stream;
  Check(cudaStreamCreate(&stream), "cudaStreamCreate");
  const Prompt prompt(tokens);
  for (const int end : {32768, tokens}) {
    if (end <= tokens) BenchChunk(prompt, end, cases, repetitions, stream);
  }
  BenchPrompt(prompt, cases, stream);
  Check(cudaStreamDestroy(stream), "cudaStreamDestroy");
  return 0;
}
