// Checks the prefill attention of the GPU against double precision on odd shapes, and that the bits
// of a row do not depend on how its prompt was cut. Prints a line per case; exits 1 if one fails.
#include <cuda_runtime.h>

#include <cmath>
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "bench/gpu/prefill_case.h"
#include "kernels/cuda/attend/attend_prefill_sm90.h"

namespace lacuna::bench {
namespace {

using kernels::cuda::DeviceTraits;
using kernels::cuda::Workspace;

bool Attend(const AttendPrefillArgs& args) {
  static const DeviceArray kMemory(size_t{1} << 20);
  cudaDeviceProp properties{};
  cudaGetDeviceProperties(&properties, 0);
  const DeviceTraits traits{0, properties.major, properties.minor, properties.multiProcessorCount,
                            static_cast<int64_t>(properties.sharedMemPerBlockOptin)};
  const Workspace workspace{kMemory.data(), int64_t{1} << 20};
  if (!kernels::cuda::PrefillSm90Serves(args, traits)) {
    std::printf("not served\n");
    return false;
  }
  const Status status = kernels::cuda::AttendPrefillSm90(args, traits, workspace, nullptr);
  const cudaError_t error = cudaDeviceSynchronize();
  if (!status.ok() || error != cudaSuccess) {
    std::printf("failed: %s, %s\n", status.ToString().c_str(), cudaGetErrorString(error));
    std::fflush(stdout);
    if (error != cudaSuccess) std::exit(1);
    return false;
  }
  return true;
}

struct Named final {
  const char* name;
  PrefillShape shape;
};

std::vector<Named> Cases() {
  const auto f16 = DType::kF16;
  std::vector<Named> cases;
  const auto add = [&](const char* name, const PrefillShape& shape) {
    cases.push_back({name, shape});
  };
  add("one tile", {.q_heads = 1, .kv_heads = 1, .chunks = {{64, 0}}});
  add("two tiles", {.q_heads = 1, .kv_heads = 1, .chunks = {{128, 0}}});
  add("512", {.chunks = {{512, 0}}});
  add("one row", {.chunks = {{1, 0}, {1, 63}, {1, 64}, {1, 1000}}});
  add("odd", {.q_heads = 6, .kv_heads = 2, .chunks = {{77, 0, 5}, {129, 300, 1}, {200, 63}}});
  add("f16", {.dtype = f16, .chunks = {{300, 411}}});
  add("d64", {.head_dim = 64, .q_heads = 8, .kv_heads = 2, .chunks = {{130, 1}, {65, 900}}});
  add("d64 f16", {.dtype = f16, .head_dim = 64, .chunks = {{190, 37}}});
  add("window", {.chunks = {{333, 700}, {20, 1500}}, .shape = {100, 0}});
  add("window sink", {.chunks = {{333, 700}, {64, 5000}}, .shape = {200, 5}});
  add("window 1", {.chunks = {{140, 10}}, .shape = {1, 0}});
  add("long sink", {.chunks = {{100, 3000}}, .shape = {64, 2200}});
  add("softcap", {.chunks = {{150, 200}}, .softcap = 5.0f, .q_scale = 3.0f});
  add("sink logit", {.chunks = {{150, 200}}, .shape = {70, 0}, .sink_logits = true});
  add("granules", {.chunks = {{200, 1777}, {64, 100}}, .ranges = RangeKind::kGranules});
  add("granules thin", {.chunks = {{200, 6000}}, .ranges = RangeKind::kGranules, .density = 0.01});
  add("granules dense", {.chunks = {{300, 3000}}, .ranges = RangeKind::kGranules, .density = 0.9});
  add("blocks", {.chunks = {{256, 4096}}, .ranges = RangeKind::kBlocks, .density = 0.2});
  add("empty lists", {.chunks = {{400, 500}, {40, 9}}, .ranges = RangeKind::kSomeEmpty});
  add("ranges window", {.head_dim = 64,
                        .chunks = {{300, 2000}},
                        .shape = {700, 33},
                        .sink_logits = true,
                        .ranges = RangeKind::kGranules});
  const std::vector<ChunkShape> mixed = {{300, 1500}, {64, 700}, {33, 0, 2}, {140, 900}, {1, 350}};
  add("shapes", {.q_heads = 12, .kv_heads = 6, .chunks = mixed, .shapes_per_head = true});
  add("shapes d64", {.head_dim = 64,
                     .q_heads = 12,
                     .kv_heads = 6,
                     .chunks = mixed,
                     .shapes_per_head = true,
                     .softcap = 5.0f});
  add("shapes ranges", {.q_heads = 6,
                        .kv_heads = 3,
                        .chunks = mixed,
                        .shapes_per_head = true,
                        .sink_logits = true,
                        .ranges = RangeKind::kGranules});
  add("holes", {.chunks = {{100, 2300}, {100, 0}}, .lists = ListKind::kHoles});
  add("holes ranges",
      {.chunks = {{150, 4000}}, .ranges = RangeKind::kGranules, .lists = ListKind::kHoles});
  add("recent", {.chunks = {{90, 2000}}, .shape = {300, 0}, .lists = ListKind::kRecent});
  add("peaked", {.chunks = {{200, 500}}, .q_scale = 12.0f});
  add("mha", {.q_heads = 3, .kv_heads = 3, .chunks = {{30, 700}, {129, 0}}});
  add("group 16", {.q_heads = 16, .kv_heads = 1, .chunks = {{33, 517}, {1, 90}}});
  PrefillShape many{.q_heads = 2, .kv_heads = 1};
  for (int i = 0; i < 210; ++i) many.chunks.push_back({i % 7 == 3 ? 0 : i % 90 + 1, i * 3 % 200});
  add("210 chunks", many);
  PrefillShape long_list{.q_heads = 2, .kv_heads = 1, .chunks = {{140, 9000}}};
  add("long", long_list);
  return cases;
}

struct Errors final {
  double relative = 0.0;  // norm of the difference over the norm
  double worst = 0.0;     // largest difference
  double lse = 0.0;
  int touched = 0;  // rows that belong to no chunk and were written
};

Errors Compare(const PrefillCase& problem, const PrefillCase::Outputs& got,
               const PrefillCase::Outputs& want) {
  Errors errors;
  const std::vector<bool> rows = problem.RowsOfChunks();
  const size_t width = got.out.size() / rows.size();
  const size_t heads = got.lse.size() / rows.size();
  double difference = 0.0, norm = 0.0;
  for (size_t row = 0; row < rows.size(); ++row) {
    for (size_t i = row * width; i < (row + 1) * width; ++i) {
      if (!rows[row]) {
        errors.touched += got.bits[i] != 0x7f7f ? 1 : 0;
        continue;
      }
      const double delta = double{got.out[i]} - double{want.out[i]};
      difference += delta * delta;
      norm += double{want.out[i]} * double{want.out[i]};
      if (!(std::abs(delta) <= errors.worst)) errors.worst = std::abs(delta);
    }
    for (size_t i = row * heads; rows[row] && i < (row + 1) * heads; ++i) {
      if (got.lse[i] == want.lse[i]) continue;  // -inf too
      const double delta = std::abs(double{got.lse[i]} - double{want.lse[i]});
      if (!(delta <= errors.lse)) errors.lse = delta;
    }
  }
  errors.relative = std::sqrt(difference / std::max(norm, 1e-30));
  return errors;
}

bool CheckCase(const Named& named) {
  PrefillCase problem(named.shape);
  problem.PoisonOutputs();
  if (!Attend(problem.Args())) return false;
  const PrefillCase::Outputs got = problem.Fetch();
  const Errors errors = Compare(problem, got, problem.Reference());
  problem.PoisonOutputs();
  if (!Attend(problem.Args())) return false;
  const bool same = problem.Fetch().bits == got.bits;
  const double limit = named.shape.dtype == DType::kF16 ? 1e-3 : 6e-3;
  const bool ok = errors.relative < limit && errors.worst < 0.05 && errors.lse < 1e-3 &&
                  errors.touched == 0 && same;
  std::printf("%-16s rel %.2e worst %.2e lse %.2e touched %d repeat %s  %s\n", named.name,
              errors.relative, errors.worst, errors.lse, errors.touched, same ? "same" : "DIFFERS",
              ok ? "ok" : "FAILED");
  return ok;
}

// The same prompt whole and in pieces, with another prompt beside it in the second case.
bool CheckPieces(int head_dim, StaticShape shape, const std::vector<int>& pieces) {
  int rows = 0;
  for (const int piece : pieces) rows += piece;
  PrefillCase problem({.head_dim = head_dim, .chunks = {{rows, 0}, {97, 450}}, .shape = shape});
  AttendPrefillArgs args = problem.Args();
  const std::span<const PrefillChunk> both = args.chunks;
  problem.PoisonOutputs();
  args.chunks = both.first(1);
  if (!Attend(args)) return false;
  const PrefillCase::Outputs whole = problem.Fetch();
  problem.PoisonOutputs();
  int at = 0;
  for (const int piece : pieces) {
    // The list of a piece is that of the prompt: list 0.
    const PrefillChunk chunks[] = {{at, piece, at}, both[1]};
    args.chunks = std::span<const PrefillChunk>(chunks, at % 2 == 0 ? 2 : 1);
    if (!Attend(args)) return false;
    at += piece;
  }
  const PrefillCase::Outputs cut = problem.Fetch();
  const size_t count = static_cast<size_t>(rows) * (whole.bits.size() / problem.tokens());
  const bool ok = std::memcmp(whole.bits.data(), cut.bits.data(), count * 2) == 0;
  std::printf("pieces of %d, D=%d, window %d: %s\n", rows, head_dim, shape.window_tokens,
              ok ? "same bits" : "FAILED");
  return ok;
}

// Ranges that hold every key, and shapes as the parameters have, change no bit.
bool CheckNeutral(int head_dim, StaticShape shape) {
  const PrefillShape plain{
      .head_dim = head_dim, .chunks = {{300, 2000}, {64, 100}, {130, 0}}, .shape = shape};
  PrefillShape full = plain;
  full.ranges = RangeKind::kGranules;
  full.density = 2.0;  // all of them
  PrefillCase problem(plain), ranged(full);
  const std::vector<StaticShape> shapes(plain.chunks.size() * 2, shape);
  const DeviceArray shapes_memory(shapes.data(), shapes.size() * sizeof(StaticShape));
  AttendPrefillArgs args = ranged.Args();
  args.shapes = static_cast<const StaticShape*>(shapes_memory.data());
  problem.PoisonOutputs();
  ranged.PoisonOutputs();
  if (!Attend(problem.Args()) || !Attend(args)) return false;
  const bool ok = problem.Fetch().bits == ranged.Fetch().bits;
  std::printf("full ranges and shapes, D=%d, window %d: %s\n", head_dim, shape.window_tokens,
              ok ? "same bits" : "FAILED");
  return ok;
}

int Main(int argc, char** argv) {
  bool ok = true;
  for (const Named& named : Cases()) {
    if (argc > 1 && std::string(named.name).find(argv[1]) == std::string::npos) continue;
    ok = CheckCase(named) && ok;
    std::fflush(stdout);
  }
  ok = CheckPieces(128, {}, {1, 63, 100, 128, 37, 300, 5, 256}) && ok;
  ok = CheckPieces(64, {90, 4}, {17, 64, 128, 333, 50}) && ok;
  for (const int head_dim : {64, 128}) {
    ok = CheckNeutral(head_dim, {}) && ok;
    ok = CheckNeutral(head_dim, {200, 5}) && ok;
  }
  std::printf(ok ? "all ok\n" : "SOME FAILED\n");
  return ok ? 0 : 1;
}

}  // namespace
}  // namespace lacuna::bench

int main(int argc, char** argv) { return lacuna::bench::Main(argc, argv); }
