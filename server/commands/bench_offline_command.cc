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
#include "kvcache/pages/kv_storage.h"
#include "server/commands/bench_engine.h"
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
  double work = 0.0;  // FLOP of a prefill, bytes read of a decode
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

class OfflineBench final {
 public:
  explicit OfflineBench(const BenchOfflineOptions& options) : options_(options) {}

  Status Run(std::ostream& out);

 private:
  Status CheckOptions() const;
  Status Load();
  Status MeasurePrefill();
  Status MeasureDecode();
  // One pass over the prompt; adds the next token to the hash.
  Status PrefillOnce(OutputHash& hash);
  Status DecodeOnce(OutputHash& hash);
  // For the oldest step; its tokens go to tokens_ and to the hash.
  Status Wait(OutputHash& hash);
  nlohmann::ordered_json Report() const;
  void Print(std::ostream& out) const;
  // Keys that queries at [depth, depth + count) see, summed over layers.
  double VisibleKeys(int64_t count) const;

  const BenchOfflineOptions& options_;
  std::unique_ptr<kernels::Backend> backend_;
  std::unique_ptr<engine::Model> model_;
  std::unique_ptr<SoloRunner> runner_;
  std::string name_;
  std::vector<TokenId> prompt_, tokens_;
  OutputHash hash_;
  Measurement prefill_, decode_;
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
  return OkStatus();
}

Status OfflineBench::Load() {
  LACUNA_RETURN_IF_ERROR(CheckOptions());
  LACUNA_ASSIGN_OR_RETURN(backend_, MakeBackendFor(options_.device));
  LACUNA_ASSIGN_OR_RETURN(model_, LoadBenchModel(options_, *backend_, /*context_tokens=*/0));
  std::filesystem::path path(options_.shape.empty() ? options_.model : options_.shape);
  if (!path.has_filename()) path = path.parent_path();  // "models/x/"
  name_ = options_.shape.empty() ? path.filename().string() : path.stem().string();
  const int64_t prompt = std::max<int64_t>(options_.prompt, 1);
  LACUNA_ASSIGN_OR_RETURN(
      runner_, SoloRunner::Create(
                   *model_, *backend_,
                   {.sequences = options_.sequences,
                    .tokens_max = options_.depth + std::max(options_.prompt, options_.generate),
                    .step_tokens_max = std::min(options_.step_tokens, prompt),
                    .logit_rows_max = options_.sequences,
                    .graphs = options_.graphs}));
  for (int64_t i = 0; i < std::max(prompt, options_.sequences); ++i) {
    prompt_.push_back(static_cast<TokenId>((i * 2654435761 + 17) % model_->info().vocab_size));
  }
  return runner_->FillRandom(options_.depth, kSeed);
}

double OfflineBench::VisibleKeys(int64_t count) const {
  double keys = 0.0;
  for (const kvcache::KvGroup& group : model_->groups()) {
    double of_layer = 0.0;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t all = options_.depth + i + 1;
      of_layer +=
          static_cast<double>(group.full() ? all : std::min<int64_t>(all, group.window_tokens));
    }
    keys += of_layer * static_cast<double>(group.layers.size());
  }
  return keys;
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
Status OfflineBench::PrefillOnce(OutputHash& hash) {
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

Status OfflineBench::DecodeOnce(OutputHash& hash) {
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

Status OfflineBench::MeasurePrefill() {
  const int64_t warm =
      std::min<int64_t>(options_.prompt, std::min<int64_t>(options_.step_tokens, 64));
  OutputHash unused;
  LACUNA_RETURN_IF_ERROR(runner_->LaunchPrefill(
      0, std::span(prompt_).first(static_cast<size_t>(warm)), options_.depth, /*sample=*/false));
  LACUNA_RETURN_IF_ERROR(Wait(unused));
  std::vector<double> seconds;
  double total = 0.0;
  while (seconds.empty() || (total < kMeasureSecondsMin && seconds.size() < kRunsMax)) {
    OutputHash hash = hash_;
    const SteadyTime::time_point start = SteadyTime::now();
    LACUNA_RETURN_IF_ERROR(PrefillOnce(seconds.empty() ? hash_ : hash));
    seconds.push_back(SecondsSince(start));
    total += seconds.back();
  }
  const engine::ModelInfo& info = model_->info();
  const double matrix = 2.0 *
                        static_cast<double>(info.parameters - 2 * info.vocab_size * info.hidden) *
                        static_cast<double>(options_.prompt);
  const double attention =
      4.0 * static_cast<double>(info.q_heads * info.head_dim) * VisibleKeys(options_.prompt);
  prefill_ = {Median(seconds), static_cast<int>(seconds.size()), options_.prompt,
              std::max(matrix, 0.0) + attention};
  return OkStatus();
}

Status OfflineBench::MeasureDecode() {
  OutputHash unused;
  LACUNA_RETURN_IF_ERROR(runner_->LaunchDecode(
      std::span(prompt_).first(static_cast<size_t>(options_.sequences)), options_.depth));
  LACUNA_RETURN_IF_ERROR(Wait(unused));
  std::vector<double> seconds;
  double total = 0.0;
  while (seconds.empty() || (total < kMeasureSecondsMin && seconds.size() < kRunsMax)) {
    OutputHash hash = hash_;
    const SteadyTime::time_point start = SteadyTime::now();
    LACUNA_RETURN_IF_ERROR(DecodeOnce(seconds.empty() ? hash_ : hash));
    seconds.push_back(SecondsSince(start));
    total += seconds.back();
  }
  const engine::ModelInfo& info = model_->info();
  const double key_bytes = 2.0 * static_cast<double>(info.kv_heads * info.head_dim) *
                           static_cast<double>(DTypeBytes(backend_->act_dtype()));
  decode_ = {Median(seconds), static_cast<int>(seconds.size()),
             options_.generate * options_.sequences,
             VisibleKeys(options_.generate) * key_bytes * static_cast<double>(options_.sequences) +
                 static_cast<double>(info.weight_bytes * options_.generate)};
  return OkStatus();
}

nlohmann::ordered_json OfflineBench::Report() const {
  const engine::ModelInfo& info = model_->info();
  std::ostringstream hash;
  hash << std::hex << std::setw(16) << std::setfill('0') << hash_.value();
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
      {"output_hash", hash.str()},
  };
  const auto add = [&](const char* key, const Measurement& m, const char* work_key) {
    if (m.tokens == 0) return;
    report[key] = {{"tokens", m.tokens},
                   {"runs", m.runs},
                   {"seconds", m.seconds},
                   {"tokens_per_s", static_cast<double>(m.tokens) / m.seconds},
                   {work_key, m.work / m.seconds / 1e9}};
  };
  add("prefill", prefill_, "gflop_per_s");
  add("decode", decode_, "gigabytes_per_s");
  return report;
}

void OfflineBench::Print(std::ostream& out) const {
  const nlohmann::ordered_json report = Report();
  out << "model " << name_ << " (" << report["parameters"] << " parameters), backend "
      << backend_->name() << ", " << backend_->threads() << " threads, "
      << options_.device.precision << ", depth " << options_.depth
      << " (random keys and values), steps of " << options_.step_tokens << ", "
      << options_.sequences << " sequences\n"
      << std::fixed;
  if (prefill_.tokens > 0) {
    out << "prefill  " << std::setw(6) << prefill_.tokens << " tokens  " << std::setprecision(2)
        << std::setw(10) << static_cast<double>(prefill_.tokens) / prefill_.seconds << " tokens/s  "
        << std::setprecision(1) << prefill_.work / prefill_.seconds / 1e9 << " GFLOP/s, "
        << std::setprecision(3) << prefill_.seconds << " s\n";
  }
  if (decode_.tokens > 0) {
    out << "decode   " << std::setw(6) << decode_.tokens << " tokens  " << std::setprecision(2)
        << std::setw(10) << static_cast<double>(decode_.tokens) / decode_.seconds << " tokens/s  "
        << std::setprecision(1) << decode_.work / decode_.seconds / 1e9
        << " GB/s (weights and KV), " << std::setprecision(3)
        << decode_.seconds / static_cast<double>(options_.generate) * 1e3 << " ms a step\n";
  }
  out << "output hash " << report["output_hash"].get<std::string>() << "\n";
}

Status OfflineBench::Run(std::ostream& out) {
  LACUNA_RETURN_IF_ERROR(Load());
  if (options_.prompt > 0) LACUNA_RETURN_IF_ERROR(MeasurePrefill());
  // The prompt overwrote nothing before depth, and decode reads nothing after it.
  if (options_.generate > 0) LACUNA_RETURN_IF_ERROR(MeasureDecode());
  Print(out);
  if (options_.json.empty()) return OkStatus();
  std::ofstream file(options_.json);
  file << Report().dump(2) << "\n";
  return file.good() ? OkStatus() : InvalidArgument(options_.json + ": cannot be written");
}

}  // namespace

Result<std::unique_ptr<engine::Model>> LoadBenchModel(const BenchOfflineOptions& options,
                                                      kernels::Backend& backend,
                                                      int64_t context_tokens) {
  if (!options.shape.empty() || options.dummy) {
    LACUNA_ASSIGN_OR_RETURN(
        engine::ModelConfig config,
        engine::ReadShape(options.shape.empty() ? options.model : options.shape));
    return engine::MakeRandomModel(std::move(config), kSeed, backend, context_tokens);
  }
  LACUNA_ASSIGN_OR_RETURN(const std::unique_ptr<engine::Folder> folder,
                          engine::Folder::Open(options.model));
  return engine::LoadModel(*folder, backend, context_tokens);
}

int RunBenchOffline(const BenchOfflineOptions& options, std::ostream& out, std::ostream& err) {
  const Status status =
      options.engine ? RunEngineBench(options, out) : OfflineBench(options).Run(out);
  if (status.ok()) return 0;
  err << "lacuna bench offline: " << status.message() << "\n";
  return 2;
}

}  // namespace lacuna::server
