#include "server/commands/bench_offline_command.h"

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <iomanip>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "engine/loader/mapped_file.h"
#include "engine/model/load_model.h"
#include "kernels/core/checked_math.h"
#include "kvcache/sparse/decode_counts.h"
#include "kvcache/sparse/plan_storage.h"
#include "kvcache/sparse/prefill_grain.h"
#include "server/commands/bench_engine.h"
#include "server/commands/bench_sparse.h"
#include "server/commands/solo_runner.h"

namespace lacuna::server {
namespace {

using SteadyTime = std::chrono::steady_clock;

constexpr uint64_t kSeed = 20240229;
constexpr double kMeasureSecondsMin = 1.0;  // short runs are repeated
constexpr int kRunsMax = 5;

double SecondsSince(SteadyTime::time_point start) {
  return std::chrono::duration<double>(SteadyTime::now() - start).count();
}

double Median(std::vector<double> values) {
  std::ranges::sort(values);
  return values.empty() ? 0.0 : values[values.size() / 2];
}

struct Measurement final {
  double seconds = 0.0;  // median of the runs
  int runs = 0;
  int64_t tokens = 0;
  double work = 0.0;  // of dense attention: FLOP of a prefill, bytes read of a decode; 0: unknown
  ReadCounts reads;   // of one run
};

// FNV-1a over token ids: two builds that compute the same thing print the same hash.
class OutputHash final {
 public:
  void Add(TokenId token) {
    for (int shift = 0; shift < 32; shift += 8) {
      hash_ = (hash_ ^ ((static_cast<uint32_t>(token) >> shift) & 0xffu)) * 0x100000001b3u;
    }
  }
  uint64_t value() const { return hash_; }

 private:
  uint64_t hash_ = 0xcbf29ce484222325u;
};

// Dense attention, or the plan.
struct Variant final {
  explicit Variant(bool by_plan) : plan(by_plan) {}
  bool plan;
  OutputHash hash;
  Measurement prefill, decode;
};

class OfflineBench final {
 public:
  explicit OfflineBench(const BenchOfflineOptions& options) : options_(options) {}

  Status Run(std::ostream& out);

 private:
  Status CheckOptions() const;
  Status CheckGrain() const;
  Status Load();
  Status MeasurePrefill(Variant& variant);
  Status MeasureDecode(Variant& variant);
  // One pass over the prompt; adds the next token to the hash.
  Status PrefillOnce(const Variant& variant, OutputHash& hash);
  Status DecodeOnce(const Variant& variant, OutputHash& hash);
  // Runs until it took long enough; the hash is that of the first run.
  template <typename Once>
  Status Repeat(Variant& variant, Measurement& measurement, Once&& once);
  // For the oldest step; its tokens go to tokens_ and to the hash.
  Status Wait(OutputHash& hash);
  nlohmann::ordered_json Report() const;
  void AddTo(nlohmann::ordered_json& report, const Variant& variant) const;
  void Print(std::ostream& out) const;
  void PrintVariant(const Variant& variant, std::ostream& out) const;
  void PrintComparison(std::ostream& out) const;
  // Keys that queries at [depth, depth + count) see, summed over layers.
  double VisibleKeys(int64_t count) const;
  // FLOP of dense attention over the prompt, whatever the model's heads keep.
  double DenseAttentionFlop() const;
  // Of keys and values, were every head to keep all tokens.
  int64_t DenseKvBytes() const;

  const BenchOfflineOptions& options_;
  std::unique_ptr<kernels::Backend> backend_;
  BenchPlan plan_;
  std::unique_ptr<engine::Model> model_;
  std::unique_ptr<SoloRunner> runner_;
  std::string name_;
  std::vector<TokenId> prompt_, tokens_;
  std::vector<Variant> variants_;
};

Status OfflineBench::CheckOptions() const {
  if (options_.shape.empty() == options_.model.empty()) {
    return InvalidArgument("need one of --shape FILE and --model DIR");
  }
  if (options_.depth < 0 || options_.prompt < 0 || options_.generate < 0 ||
      options_.step_tokens < 1 ||
      std::max({options_.depth, options_.prompt, options_.generate, options_.step_tokens}) >
          (1 << 24)) {
    return InvalidArgument("--depth, --prompt and --generate: need 0 to 16777216 tokens");
  }
  if (options_.sequences < 1 || options_.sequences > 4096) {
    return InvalidArgument("--sequences: need 1 to 4096");
  }
  if (options_.sparse_profile.empty() && (options_.compare_dense || !options_.dials.empty())) {
    return InvalidArgument("--compare-dense and --set: need --sparse-profile");
  }
  if (options_.compare_dense && options_.drop_streaming) {
    return InvalidArgument(
        "--compare-dense: got --drop-streaming too, whose keys dense attention would lack; "
        "--dense-tflops computes its time");
  }
  return OkStatus();
}

// A sparse prompt is cut at whole grains alone.
Status OfflineBench::CheckGrain() const {
  if (plan_.plan == nullptr || options_.prompt == 0) return OkStatus();
  if (kvcache::DensePrefill(*plan_.plan, options_.depth + options_.prompt)) return OkStatus();
  const int64_t grain = kvcache::PrefillGrainTokens(*plan_.plan);
  const bool whole = options_.step_tokens >= options_.prompt || options_.step_tokens % grain == 0;
  if (options_.depth % grain == 0 && whole) return OkStatus();
  return InvalidArgument("--depth and --step-tokens: prefill of profile " + plan_.plan->name +
                         " needs multiples of " + std::to_string(grain));
}

Status OfflineBench::Load() {
  LACUNA_RETURN_IF_ERROR(CheckOptions());
  const int64_t tokens = options_.depth + std::max(options_.prompt, options_.generate);
  LACUNA_ASSIGN_OR_RETURN(const engine::ModelConfig config, BenchModelConfig(options_, tokens));
  LACUNA_ASSIGN_OR_RETURN(plan_, MakeBenchPlan(options_, config, SoloRunner::kPageTokens));
  LACUNA_RETURN_IF_ERROR(CheckGrain());
  LACUNA_ASSIGN_OR_RETURN(const auto* const residency, ResidencyOf(options_, plan_.plan.get()));
  LACUNA_ASSIGN_OR_RETURN(backend_, MakeBackendFor(options_.device));
  LACUNA_ASSIGN_OR_RETURN(
      model_, LoadBenchModel(options_, config, *backend_, /*context_tokens=*/0, residency));
  std::filesystem::path path(options_.shape.empty() ? options_.model : options_.shape);
  if (!path.has_filename()) path = path.parent_path();  // "models/x/"
  name_ = options_.shape.empty() ? path.filename().string() : path.stem().string();
  const int64_t prompt = std::max<int64_t>(options_.prompt, 1);
  LACUNA_ASSIGN_OR_RETURN(
      runner_, SoloRunner::Create(*model_, *backend_,
                                  {.sequences = options_.sequences,
                                   .tokens_max = tokens,
                                   .step_tokens_max = std::min(options_.step_tokens, prompt),
                                   .logit_rows_max = options_.sequences,
                                   .graphs = options_.graphs,
                                   .plan = plan_.plan}));
  for (int64_t i = 0; i < std::max(prompt, options_.sequences); ++i) {
    prompt_.push_back(static_cast<TokenId>((i * 2654435761 + 17) % model_->info().vocab_size));
  }
  if (plan_.plan == nullptr || options_.compare_dense) variants_.emplace_back(/*plan=*/false);
  if (plan_.plan != nullptr) variants_.emplace_back(/*plan=*/true);
  return OkStatus();
}

double OfflineBench::VisibleKeys(int64_t count) const {
  double keys = 0.0;  // of a layer, where a head is its share of one
  for (const kvcache::KvGroup& group : model_->groups()) {
    double of_layer = 0.0;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t all = options_.depth + i + 1;
      of_layer += static_cast<double>(
          group.full() ? all : std::min<int64_t>(all, group.window_tokens + group.sink_tokens));
    }
    int64_t heads = 0;
    for (const kvcache::KvLayer& layer : group.layers) heads += layer.kv_heads;
    keys += of_layer * static_cast<double>(heads) / static_cast<double>(model_->info().kv_heads);
  }
  return keys;
}

double OfflineBench::DenseAttentionFlop() const {
  const engine::ModelInfo& info = model_->info();
  const auto depth = static_cast<double>(options_.depth);
  const auto prompt = static_cast<double>(options_.prompt);
  return 4.0 * static_cast<double>(info.q_heads * info.head_dim * info.layers) *
         (depth + (prompt + 1.0) / 2.0) * prompt;
}

int64_t OfflineBench::DenseKvBytes() const {
  const engine::ModelInfo& info = model_->info();
  const int64_t tokens = options_.depth + std::max(options_.prompt, options_.generate);
  const int64_t page_bytes = 2 * info.layers * info.kv_heads * info.head_dim *
                             SoloRunner::kPageTokens *
                             static_cast<int64_t>(DTypeBytes(backend_->act_dtype()));
  return options_.sequences * CeilDiv(tokens, SoloRunner::kPageTokens) * page_bytes;
}

Status OfflineBench::Wait(OutputHash& hash) {
  LACUNA_ASSIGN_OR_RETURN(const std::span<const kernels::SampleResult> results, runner_->Wait());
  tokens_.clear();
  for (const kernels::SampleResult& result : results) {
    if (result.status != kernels::SampleResult::kOk) {
      return InternalError("the model gave logits that are not numbers");
    }
    hash.Add(result.token);
    tokens_.push_back(result.token);
  }
  return OkStatus();
}

// As the engine does: with a device of its own, the next step is launched before the last one is
// read.
Status OfflineBench::PrefillOnce(const Variant& variant, OutputHash& hash) {
  runner_->Follow(variant.plan, options_.depth + options_.prompt);
  for (int64_t first = 0; first < options_.prompt; first += options_.step_tokens) {
    const int64_t count = std::min(options_.step_tokens, options_.prompt - first);
    const auto tokens =
        std::span(prompt_).subspan(static_cast<size_t>(first), static_cast<size_t>(count));
    if (first > 0 && !runner_->asynchronous()) LACUNA_RETURN_IF_ERROR(Wait(hash));
    LACUNA_RETURN_IF_ERROR(runner_->LaunchPrefill(0, tokens, options_.depth + first,
                                                  first + count == options_.prompt));
    if (first > 0 && runner_->asynchronous()) LACUNA_RETURN_IF_ERROR(Wait(hash));
  }
  return Wait(hash);
}

Status OfflineBench::DecodeOnce(const Variant& variant, OutputHash& hash) {
  runner_->Follow(variant.plan, options_.depth);
  const auto first_tokens = std::span(prompt_).first(static_cast<size_t>(options_.sequences));
  LACUNA_RETURN_IF_ERROR(runner_->LaunchDecode(first_tokens, options_.depth));
  for (int64_t i = 1; i < options_.generate; ++i) {
    if (runner_->asynchronous()) {
      LACUNA_RETURN_IF_ERROR(runner_->LaunchDecode({}, options_.depth + i));
      LACUNA_RETURN_IF_ERROR(Wait(hash));
    } else {
      LACUNA_RETURN_IF_ERROR(Wait(hash));
      LACUNA_RETURN_IF_ERROR(runner_->LaunchDecode(tokens_, options_.depth + i));
    }
  }
  return Wait(hash);
}

template <typename Once>
Status OfflineBench::Repeat(Variant& variant, Measurement& measurement, Once&& once) {
  std::vector<double> seconds;
  double total = 0.0;
  while (seconds.empty() || (total < kMeasureSecondsMin && seconds.size() < kRunsMax)) {
    OutputHash unused;
    const SteadyTime::time_point start = SteadyTime::now();
    LACUNA_RETURN_IF_ERROR(once(seconds.empty() ? variant.hash : unused));
    seconds.push_back(SecondsSince(start));
    total += seconds.back();
  }
  measurement.seconds = Median(seconds);
  measurement.runs = static_cast<int>(seconds.size());
  measurement.reads = runner_->reads();
  return OkStatus();
}

Status OfflineBench::MeasurePrefill(Variant& variant) {
  // Windows hold what the runs before left there.
  LACUNA_RETURN_IF_ERROR(runner_->FillRandom(options_.depth, kSeed));
  const int64_t warm =
      std::min<int64_t>(options_.prompt, std::min<int64_t>(options_.step_tokens, 64));
  OutputHash unused;
  runner_->Follow(/*plan=*/false, options_.depth + options_.prompt);
  LACUNA_RETURN_IF_ERROR(runner_->LaunchPrefill(
      0, std::span(prompt_).first(static_cast<size_t>(warm)), options_.depth, /*sample=*/false));
  LACUNA_RETURN_IF_ERROR(Wait(unused));
  LACUNA_RETURN_IF_ERROR(Repeat(variant, variant.prefill,
                                [&](OutputHash& hash) { return PrefillOnce(variant, hash); }));
  variant.prefill.tokens = options_.prompt;
  if (variant.plan) return OkStatus();
  const engine::ModelInfo& info = model_->info();
  const double matrix = 2.0 *
                        static_cast<double>(info.parameters - 2 * info.vocab_size * info.hidden) *
                        static_cast<double>(options_.prompt);
  const double attention =
      4.0 * static_cast<double>(info.q_heads * info.head_dim) * VisibleKeys(options_.prompt);
  variant.prefill.work = std::max(matrix, 0.0) + attention;
  return OkStatus();
}

Status OfflineBench::MeasureDecode(Variant& variant) {
  LACUNA_RETURN_IF_ERROR(runner_->FillRandom(options_.depth, kSeed));
  OutputHash unused;
  // What is recorded at all is recorded by the second step of its kind.
  for (int i = 0; i < 2; ++i) {
    runner_->Follow(variant.plan, options_.depth);
    LACUNA_RETURN_IF_ERROR(runner_->LaunchDecode(
        std::span(prompt_).first(static_cast<size_t>(options_.sequences)), options_.depth));
    LACUNA_RETURN_IF_ERROR(Wait(unused));
  }
  LACUNA_RETURN_IF_ERROR(
      Repeat(variant, variant.decode, [&](OutputHash& hash) { return DecodeOnce(variant, hash); }));
  variant.decode.tokens = options_.generate * options_.sequences;
  if (variant.plan) return OkStatus();
  const engine::ModelInfo& info = model_->info();
  const double key_bytes = 2.0 * static_cast<double>(info.kv_heads * info.head_dim) *
                           static_cast<double>(DTypeBytes(backend_->act_dtype()));
  variant.decode.work =
      VisibleKeys(options_.generate) * key_bytes * static_cast<double>(options_.sequences) +
      static_cast<double>(info.weight_bytes * options_.generate);
  return OkStatus();
}

double Share(int64_t part, int64_t whole) {
  return whole == 0 ? 1.0 : static_cast<double>(part) / static_cast<double>(whole);
}

void OfflineBench::AddTo(nlohmann::ordered_json& report, const Variant& variant) const {
  const auto add = [&](const char* key, const Measurement& m, const char* work_key) {
    if (m.tokens == 0) return;
    report[key] = {{"tokens", m.tokens},
                   {"runs", m.runs},
                   {"seconds", m.seconds},
                   {"tokens_per_s", static_cast<double>(m.tokens) / m.seconds}};
    if (m.work > 0) report[key][work_key] = m.work / m.seconds / 1e9;
    if (m.reads == ReadCounts{}) return;
    report[key]["pages_read_share"] = Share(m.reads.pages_selected, m.reads.pages_considered);
    report[key]["blocks_read_share"] = Share(m.reads.blocks_selected, m.reads.blocks_considered);
  };
  add("prefill", variant.prefill, "gflop_per_s");
  add("decode", variant.decode, "gigabytes_per_s");
  std::ostringstream hash;
  hash << std::hex << std::setw(16) << std::setfill('0') << variant.hash.value();
  report["output_hash"] = hash.str();
}

nlohmann::ordered_json OfflineBench::Report() const {
  const engine::ModelInfo& info = model_->info();
  nlohmann::ordered_json report = {
      {"model", name_},
      {"architecture", info.architecture},
      {"parameters", info.parameters},
      {"weight_bytes", info.weight_bytes},
      {"backend", backend_->name()},
      {"threads", backend_->threads()},
      {"precision", options_.device.precision},
      {"depth_tokens", options_.depth},
      {"depth_filled_by", "random keys and values through AppendKv"},
      {"step_tokens", options_.step_tokens},
      {"sequences", options_.sequences},
      {"graph_steps", runner_->graph_steps()},
      {"kv_bytes", runner_->kv_bytes()},
      {"kv_bytes_if_all_kept", DenseKvBytes()},
      {"metadata_bytes", runner_->metadata_bytes()},
      {"dense_attention_flop", DenseAttentionFlop()},
  };
  for (const Variant& variant : variants_) {
    nlohmann::ordered_json& part = variant.plan ? report["sparse"] : report;
    if (variant.plan) {
      part["profile"] = options_.sparse_profile;
      part["dials"] = options_.dials;
      part["artefacts_made_up"] = plan_.made_up;
    }
    AddTo(part, variant);
  }
  return report;
}

void OfflineBench::PrintVariant(const Variant& variant, std::ostream& out) const {
  const char* const name = variants_.size() == 1 ? "" : variant.plan ? "sparse " : "dense  ";
  const Measurement &prefill = variant.prefill, &decode = variant.decode;
  if (prefill.tokens > 0) {
    out << name << "prefill  " << std::setw(6) << prefill.tokens << " tokens  "
        << std::setprecision(2) << std::setw(10)
        << static_cast<double>(prefill.tokens) / prefill.seconds << " tokens/s  "
        << std::setprecision(1);
    if (prefill.work > 0) out << prefill.work / prefill.seconds / 1e9 << " GFLOP/s, ";
    if (prefill.reads.blocks_considered > 0) {
      out << 100.0 * Share(prefill.reads.blocks_selected, prefill.reads.blocks_considered)
          << " % of blocks read, ";
    }
    out << std::setprecision(3) << prefill.seconds << " s\n";
  }
  if (decode.tokens == 0) return;
  out << name << "decode   " << std::setw(6) << decode.tokens << " tokens  " << std::setprecision(2)
      << std::setw(10) << static_cast<double>(decode.tokens) / decode.seconds << " tokens/s  "
      << std::setprecision(1);
  if (decode.work > 0) out << decode.work / decode.seconds / 1e9 << " GB/s (weights and KV), ";
  if (decode.reads.pages_considered > 0) {
    out << 100.0 * Share(decode.reads.pages_selected, decode.reads.pages_considered)
        << " % of pages read, ";
  }
  out << std::setprecision(3) << decode.seconds / static_cast<double>(options_.generate) * 1e3
      << " ms a step\n";
}

void OfflineBench::PrintComparison(std::ostream& out) const {
  const Variant& last = variants_.back();
  const auto gigabytes = [](int64_t bytes) { return static_cast<double>(bytes) / 1e9; };
  out << std::setprecision(2) << "KV       " << gigabytes(runner_->kv_bytes()) << " GB, "
      << Share(runner_->kv_bytes(), DenseKvBytes()) << " of what all heads' tokens take; metadata "
      << gigabytes(runner_->metadata_bytes()) << " GB\n";
  if (variants_.size() == 2) {
    const auto ratio = [](const Measurement& dense, const Measurement& sparse) {
      return dense.seconds / sparse.seconds;
    };
    out << "sparse over dense ";
    if (last.prefill.tokens > 0) {
      out << "  prefill " << ratio(variants_[0].prefill, last.prefill) << "x";
    }
    if (last.decode.tokens > 0) {
      out << "  decode " << ratio(variants_[0].decode, last.decode) << "x";
    }
    out << "\n";
  }
  if (options_.dense_tflops <= 0 || last.prefill.tokens == 0) return;
  const double seconds = DenseAttentionFlop() / options_.dense_tflops / 1e12;
  out << "dense attention of the prompt alone, at " << options_.dense_tflops
      << " TFLOP/s: " << seconds << " s, " << seconds / last.prefill.seconds
      << "x the whole prefill above\n";
}

void OfflineBench::Print(std::ostream& out) const {
  const nlohmann::ordered_json report = Report();
  out << "model " << name_ << " (" << report["parameters"] << " parameters), backend "
      << backend_->name() << ", " << backend_->threads() << " threads, "
      << options_.device.precision << ", depth " << options_.depth
      << " (random keys and values), steps of " << options_.step_tokens << ", "
      << options_.sequences << " sequences\n"
      << std::fixed;
  if (plan_.plan != nullptr) {
    out << "profile  " << options_.sparse_profile;
    for (const std::string& dial : options_.dials) out << " " << dial;
    out << (plan_.made_up ? " (made-up tables of heads)" : "") << "\n";
  }
  for (const Variant& variant : variants_) PrintVariant(variant, out);
  if (plan_.plan != nullptr) PrintComparison(out);
  const nlohmann::ordered_json& last = variants_.back().plan ? report["sparse"] : report;
  out << "output hash " << last["output_hash"].get<std::string>() << "\n";
}

Status OfflineBench::Run(std::ostream& out) {
  LACUNA_RETURN_IF_ERROR(Load());
  for (Variant& variant : variants_) {
    if (options_.prompt > 0) LACUNA_RETURN_IF_ERROR(MeasurePrefill(variant));
  }
  // The prompt overwrote nothing before depth, and decode reads nothing after it.
  for (Variant& variant : variants_) {
    if (options_.generate > 0) LACUNA_RETURN_IF_ERROR(MeasureDecode(variant));
  }
  Print(out);
  if (options_.json.empty()) return OkStatus();
  std::ofstream file(options_.json);
  file << Report().dump(2) << "\n";
  return file.good() ? OkStatus() : InvalidArgument(options_.json + ": cannot be written");
}

}  // namespace

Result<engine::ModelConfig> BenchModelConfig(const BenchOfflineOptions& options,
                                             int64_t context_tokens) {
  LACUNA_ASSIGN_OR_RETURN(engine::ModelConfig config,
                          engine::ReadShape(options.shape.empty() ? options.model : options.shape));
  if (!options.shape.empty() || options.dummy) {
    config.context_tokens_max = std::max(config.context_tokens_max, context_tokens);
  }
  return config;
}

Result<std::unique_ptr<engine::Model>> LoadBenchModel(const BenchOfflineOptions& options,
                                                      const engine::ModelConfig& config,
                                                      kernels::Backend& backend,
                                                      int64_t context_tokens,
                                                      const kvcache::SparsePlan* residency) {
  if (!options.shape.empty() || options.dummy) {
    return engine::MakeRandomModel(config, kSeed, backend, context_tokens, residency);
  }
  LACUNA_ASSIGN_OR_RETURN(const std::unique_ptr<engine::Folder> folder,
                          engine::Folder::Open(options.model));
  return engine::LoadModel(*folder, backend, context_tokens, /*bf16_rope=*/false, residency);
}

Result<const kvcache::SparsePlan*> ResidencyOf(const BenchOfflineOptions& options,
                                               const kvcache::SparsePlan* plan) {
  if (!options.drop_streaming) return nullptr;
  if (plan == nullptr || kvcache::ResidencyOf(*plan).size() < 2) {
    return InvalidArgument("--drop-streaming: need a --sparse-profile with streaming heads");
  }
  return plan;
}

int RunBenchOffline(const BenchOfflineOptions& options, std::ostream& out, std::ostream& err) {
  const Status status =
      options.engine ? RunEngineBench(options, out) : OfflineBench(options).Run(out);
  if (status.ok()) return 0;
  err << "lacuna bench offline: " << status.message() << "\n";
  return 2;
}

}  // namespace lacuna::server
