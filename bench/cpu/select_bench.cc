// AppendMetadata and SelectKeys of the CPU backend.
//   select_bench [threads] [isa_max] [tokens] [copies] [method]
// One layer of one decode row, 8 query heads, 2 kv heads, head_dim 64, pages of 64: median, 10th
// and 90th percentile of microseconds per call, and GB/s of what is scored, over copies of the
// layer that exceed the second-level caches (copies 1: one that stays in them). The hash covers the
// lists. Then the stages of that call, each on one thread: plan (queries, tasks), scores, choice
// with lists.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

#include "kernels/core/checked_math.h"
#include "kernels/cpu/append_kv.h"
#include "kernels/cpu/append_metadata.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/select_call.h"
#include "kernels/cpu/select_keys.h"
#include "kernels/cpu/thread_pool.h"

namespace lacuna::kernels::cpu {
namespace {

constexpr int kLabelChannels = 16;
constexpr int kQHeads = 8, kKvHeads = 2, kHeadDim = 64, kPageTokens = 64;
constexpr int64_t kColdBytes = 48 << 20;
constexpr int kCalls = 400;

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

struct Times final {
  double median_us, low_us, high_us;
};

template <typename Fn>
Times Measure(int calls, Fn&& fn) {
  for (int i = 0; i < 8; ++i) fn(i);
  std::vector<double> times;
  for (int i = 0; i < calls; ++i) {
    const double start = Now();
    fn(i);
    times.push_back((Now() - start) * 1e6);
  }
  std::ranges::sort(times);
  const auto at = [&](size_t percent) { return times[times.size() * percent / 100]; };
  return {at(50), at(10), at(90)};
}

struct Method final {
  const char* name;
  DecodePath path;
  int32_t budget_units, sink_units, local_units;
};

MetadataSpec Spec(MetadataKind kind, MetadataPrecision precision, int32_t sub) {
  MetadataSpec spec;
  spec.kind = kind;
  spec.precision = precision;
  spec.sub_tokens = spec.window_tokens = sub;
  return spec;
}

DecodePath Path(ScoreKind score, int32_t unit, const MetadataSpec& metadata) {
  DecodePath path;
  path.metadata = metadata;
  path.score = score;
  path.unit_tokens = unit;
  path.pool = score == ScoreKind::kBound && unit > 16 ? PoolKind::kMax : PoolKind::kNone;
  path.select = SelectKind::kTopK;
  return path;
}

std::vector<Method> Methods(int32_t tokens) {
  const MetadataSpec int8 = Spec(MetadataKind::kMinMax, MetadataPrecision::kInt8, 16);
  const MetadataSpec bf16 = Spec(MetadataKind::kMinMax, MetadataPrecision::kBf16, 16);
  const int32_t share = (512 + tokens * 6 / 100) / 64;
  MetadataSpec labels = Spec(MetadataKind::kLabels, MetadataPrecision::kInt4, 1);
  labels.channels = kLabelChannels;
  Method balanced{"balanced", Path(ScoreKind::kDot, 64, labels), share, 1, 4};
  balanced.path.pool = PoolKind::kMax;
  Method safe = balanced;
  safe.name = "safe";
  safe.path.metadata = Spec(MetadataKind::kLowBit, MetadataPrecision::kInt4, 1);
  Method bounds{"bounds", Path(ScoreKind::kBound, 64, int8), tokens / 1000, 1, 4};
  Method quest{"quest", Path(ScoreKind::kBound, 16, bf16), 128, 0, 1};
  Method twilight{"twilight-quest", Path(ScoreKind::kBound, 16, bf16), 512, 0, 1};
  twilight.path.refine = RefineKind::kTopP;
  twilight.path.refine_unit_tokens = 1;
  twilight.path.refine_metadata = Spec(MetadataKind::kLowBit, MetadataPrecision::kInt4, 1);
  Method kinetics{
      "kinetics",
      Path(ScoreKind::kDot, 16, Spec(MetadataKind::kMean, MetadataPrecision::kBf16, 16)), 64, 1, 1};
  kinetics.path.query = QueryForm::kGroupMean;
  kinetics.path.reduce = ReduceKind::kMean;
  Method tokenselect{"tokenselect", Path(ScoreKind::kKeys, 1, {}), 2048, 128, 512};
  tokenselect.path.normalise = true;
  tokenselect.path.owner = OwnerKind::kLayer;
  tokenselect.path.reduce = ReduceKind::kSum;
  Method tidal{"tidaldecode", Path(ScoreKind::kLogits, 1, {}), 256, 0, 1};
  return {balanced, safe, bounds, quest, twilight, kinetics, tokenselect, tidal};
}

// One layer per copy: its keys, its metadata, and pages in random order.
class Layers final {
 public:
  Layers(int64_t tokens, const DecodePath& path, int copies, Isa isa, ThreadPool& threads)
      : tokens_(tokens), pages_(CeilDiv(tokens, int64_t{kPageTokens})) {
    std::mt19937 random(1);
    for (int64_t i = 0; i < pages_; ++i) logical_.push_back(static_cast<int32_t>(i));
    ids_ = logical_;
    std::shuffle(ids_.begin(), ids_.end(), random);
    offsets_[1] = pages_;
    for (int i = 0; i < kKvHeads * kLabelChannels; ++i) {
      channels_.push_back(static_cast<int16_t>(i % kLabelChannels * 4 + i / kLabelChannels));
    }
    std::normal_distribution<float> normal(0.0f, 1.0f);
    std::vector<uint16_t> keys(static_cast<size_t>(tokens * kKvHeads * kHeadDim));
    for (auto& key : keys) key = ToBF16(normal(random)).bits;
    for (int64_t t = 0; t < tokens; ++t) {
      slots_.push_back(ids_[static_cast<size_t>(t / kPageTokens)] * kPageTokens +
                       static_cast<int32_t>(t % kPageTokens));
    }
    const TensorView rows(keys.data(), DType::kBF16, {tokens, kKvHeads, kHeadDim});
    for (int i = 0; i < copies; ++i) {
      KvPool pool{nullptr, DType::kBF16, pages_, kKvHeads, kHeadDim, kPageTokens};
      pool.data = Own(pool.Bytes());
      pools_.push_back(pool);
      static_cast<void>(AppendKvCpu({rows, rows, slots(), pool}, isa, threads));
      for (const MetadataSpec* spec : {&path.metadata, &path.refine_metadata}) {
        MetadataPool metadata{nullptr,  *spec,       pages_,          kKvHeads,
                              kHeadDim, kPageTokens, channels_.data()};
        if (spec->any()) {
          metadata.data = Own(metadata.Bytes());
          static_cast<void>(
              AppendMetadataCpu({slots(), {}, pool, metadata}, isa, threads, scratch_));
        }
        metadata_.push_back(metadata);
      }
    }
  }
  TensorView slots() { return {slots_.data(), DType::kI32, {tokens_}}; }
  TensorView last_slot() { return {&slots_.back(), DType::kI32, {1}}; }
  PageLists lists() const { return {ids_.data(), logical_.data(), offsets_, offsets_ + 1, 1}; }
  int64_t pages() const { return pages_; }
  const KvPool& pool(size_t i) const { return pools_[i % pools_.size()]; }
  const MetadataPool& metadata(size_t i) const { return metadata_[i % pools_.size() * 2]; }
  const MetadataPool& refine(size_t i) const { return metadata_[i % pools_.size() * 2 + 1]; }
  AppendMetadataScratch& scratch() { return scratch_; }

 private:
  void* Own(int64_t bytes) {
    memory_.push_back(std::move(AllocateZeroed(bytes)).value());
    return memory_.back().data();
  }

  int64_t tokens_, pages_;
  std::vector<int32_t> ids_, logical_, slots_;
  std::vector<int16_t> channels_;
  int64_t offsets_[2] = {0, 0};
  std::vector<Buffer> memory_;
  std::vector<KvPool> pools_;
  std::vector<MetadataPool> metadata_;
  AppendMetadataScratch scratch_;
};

// Of one row that chooses without a softmax.
void PrintStages(const Method& method, SelectKeysArgs args, Layers& layers, Isa isa) {
  SelectKeysScratch scratch(1);
  SelectKeysScratch::Worker& worker = scratch.workers[0];
  std::vector<double> plan, score, choose;
  for (size_t i = 0; i < kCalls; ++i) {
    args.pool = layers.pool(i);
    args.metadata = layers.metadata(i);
    args.refine_metadata = layers.refine(i);
    const double start = Now();
    SelectCall call(args, SelectKernelsOf(isa), scratch);
    static_cast<void>(call.PlanRow(0));
    call.LayOut(0, 1);
    const double planned = Now();
    for (const SelectKeysScratch::Task& task : scratch.tasks) call.ScoreChunk(task, worker);
    const double scored = Now();
    for (int64_t owner = 0; owner < call.owners(); ++owner) call.Choose(0, owner, worker);
    plan.push_back((planned - start) * 1e6);
    score.push_back((scored - planned) * 1e6);
    choose.push_back((Now() - scored) * 1e6);
  }
  for (auto* times : {&plan, &score, &choose}) std::ranges::sort(*times);
  const auto median = [](const std::vector<double>& times) { return times[times.size() / 2]; };
  std::printf(
      "stages %-15s one thread: plan %.1f us, scores %.1f us (%.1f at best), choice %.1f us\n",
      method.name, median(plan), median(score), score.front(), median(choose));
}

void Bench(const Method& method, int32_t tokens, int copies, Isa isa, ThreadPool& threads) {
  const int64_t pages = CeilDiv(int64_t{tokens}, int64_t{kPageTokens});
  const bool keys = !method.path.metadata.any();
  const int64_t bytes =
      pages * kKvHeads *
      (keys ? kPageTokens * kHeadDim * 2
            : MetadataPool::SlabBytes(method.path.metadata, kHeadDim, kPageTokens));
  if (copies == 0) copies = static_cast<int>(std::min<int64_t>(CeilDiv(kColdBytes, bytes), 24));
  Layers layers(tokens, method.path, copies, isa, threads);
  std::vector<uint16_t> q(kQHeads * kHeadDim);
  std::mt19937 random(2);
  std::normal_distribution<float> normal(0.0f, 1.0f);
  for (auto& value : q) value = ToBF16(normal(random)).bits;
  SelectRow row;
  row.counts.dense = false;
  row.counts.units = static_cast<int32_t>(CeilDiv(tokens, method.path.unit_tokens));
  row.counts.sink_units = method.sink_units;
  row.counts.local_units = method.local_units;
  row.counts.ranked_units_min = row.counts.ranked_units_max = method.budget_units;
  row.refine_p = 0.85f;
  std::vector<uint64_t> choice(static_cast<size_t>(pages * kKvHeads)), masks(choice.size());
  std::vector<int32_t> out_pages(choice.size()), out_logical(choice.size());
  int64_t begins[kKvHeads], ends[kKvHeads];
  SelectStats stats[kKvHeads];
  int32_t position = tokens - 1;
  SelectKeysArgs args;
  args.q = TensorView(q.data(), DType::kBF16, {1, kQHeads, kHeadDim});
  args.positions = TensorView(&position, DType::kI32, {1});
  args.pages = layers.lists();
  args.path = method.path;
  args.rows = &row;
  args.scale = 0.125f;
  args.choices = {choice.data(), method.path.owner == OwnerKind::kLayer ? 1 : kKvHeads, pages,
                  nullptr};
  args.out = {out_pages.data(), out_logical.data(), masks.data(), begins, ends, pages};
  args.stats = stats;
  SelectKeysScratch scratch(threads.threads());
  const Times times = Measure(kCalls, [&](int call) {
    args.pool = layers.pool(static_cast<size_t>(call));
    args.metadata = layers.metadata(static_cast<size_t>(call));
    args.refine_metadata = layers.refine(static_cast<size_t>(call));
    const Status status = SelectKeysCpu(args, isa, threads, scratch);
    if (!status.ok()) std::printf("%s\n", status.ToString().c_str());
  });
  uint64_t hash = 14695981039346656037ull;  // FNV-1a
  for (int kv = 0; kv < kKvHeads; ++kv) {
    for (int64_t i = begins[kv]; i < ends[kv]; ++i) {
      hash = (hash ^ masks[static_cast<size_t>(i)]) * 1099511628211ull;
      hash = (hash ^ static_cast<uint64_t>(out_logical[static_cast<size_t>(i)])) * 1099511628211ull;
    }
  }
  std::printf("select %-15s %6d tokens  %8.1f us (%.1f to %.1f)  %6.1f GB/s  %5ld pages  %016lx\n",
              method.name, tokens, times.median_us, times.low_us, times.high_us,
              static_cast<double>(bytes) / times.median_us * 1e-3,
              static_cast<long>(ends[0] - begins[0]), static_cast<unsigned long>(hash));
  if (!method.path.normalise) PrintStages(method, args, layers, isa);
  if (keys) return;
  const Times step = Measure(kCalls, [&](int call) {
    const auto i = static_cast<size_t>(call);
    static_cast<void>(
        AppendMetadataCpu({layers.last_slot(), {}, layers.pool(i), layers.metadata(i)}, isa,
                          threads, layers.scratch()));
  });
  const Times prompt = Measure(20, [&](int call) {
    const auto i = static_cast<size_t>(call);
    static_cast<void>(AppendMetadataCpu({layers.slots(), {}, layers.pool(i), layers.metadata(i)},
                                        isa, threads, layers.scratch()));
  });
  std::printf("append %-15s  one token %6.2f us (%.2f to %.2f)  all %8.1f us (%.1f ns a token)\n",
              method.name, step.median_us, step.low_us, step.high_us, prompt.median_us,
              prompt.median_us * 1e3 / tokens);
}

int Main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 2;
  const Result<Isa> isa = ParseIsa(argc > 2 ? argv[2] : "auto");
  const int tokens = argc > 3 ? std::atoi(argv[3]) : 0;
  const int copies = argc > 4 ? std::atoi(argv[4]) : 0;
  if (threads < 1 || !isa.ok() || tokens < 0 || tokens > 1 << 20 || copies < 0) {
    std::fprintf(stderr, "usage: select_bench [threads] [isa_max] [tokens] [copies] [method]\n");
    return 2;
  }
  const Isa used = std::min(*isa, DetectIsa());
  ThreadPool pool(threads, true);
  std::printf("%s, %d threads\n", std::string(IsaName(used)).c_str(), threads);
  for (const int length : {32768, 65536}) {
    if (tokens != 0 && length != 32768) break;
    const int used_tokens = tokens != 0 ? tokens : length;
    for (const Method& method : Methods(used_tokens)) {
      if (argc > 5 && std::string(argv[5]) != method.name) continue;
      Bench(method, used_tokens, copies, used, pool);
    }
  }
  return 0;
}

}  // namespace
}  // namespace lacuna::kernels::cpu

int main(int argc, char** argv) { return lacuna::kernels::cpu::Main(argc, argv); }
