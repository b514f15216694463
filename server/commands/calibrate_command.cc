#include "server/commands/calibrate_command.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <utility>

#include "engine/calibrate/calibrator.h"
#include "engine/model/load_model.h"
#include "kernels/core/field_reader.h"
#include "kernels/core/field_table.h"
#include "kvcache/sparse/kinds.h"
#include "kvcache/sparse/profile_set.h"
#include "kvcache/sparse/resolve.h"
#include "server/commands/calibrate_prompts.h"
#include "server/commands/device_options.h"
#include "server/commands/served_model.h"
#include "server/commands/solo_runner.h"

namespace lacuna::server {
namespace {

using kvcache::ArtefactKind;

constexpr int64_t kAnswerTokensMax = 48;
constexpr auto kLastKind = ArtefactKind::kThresholds;

// Methods with a table that no shipped profile of their name reads.
constexpr std::array<std::pair<std::string_view, ArtefactKind>, 5> kMethods = {{
    {"delta", ArtefactKind::kPlannerLayers},
    {"tidaldecode", ArtefactKind::kPlannerLayers},
    {"lessismore", ArtefactKind::kPlannerLayers},
    {"xattention", ArtefactKind::kPrefillP},
    {"top-theta", ArtefactKind::kThresholds},
}};

// A bar over work that is known in advance, with the time that is left.
class Progress final {
 public:
  Progress(double work, bool quiet, std::ostream& err)
      : work_(work), quiet_(quiet), err_(err), start_(std::chrono::steady_clock::now()) {}

  void Add(double work, size_t prompt, size_t prompts) {
    done_ += work;
    if (quiet_) return;
    constexpr int kWidth = 30;
    const double share = std::min(done_ / work_, 1.0);
    const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start_;
    const int left_s = static_cast<int>(std::lround(spent.count() * (1 - share) / share));
    const int full = static_cast<int>(share * kWidth);
    char text[160];
    std::snprintf(text, sizeof text, "\r[%s%s] %3.0f %%, prompt %zu of %zu, %d:%02d left ",
                  std::string(static_cast<size_t>(full), '=').c_str(),
                  std::string(static_cast<size_t>(kWidth - full), ' ').c_str(), share * 100, prompt,
                  prompts, left_s / 60, left_s % 60);
    err_ << text << std::flush;
  }
  ~Progress() {
    if (!quiet_ && done_ > 0) err_ << "\n";
  }

 private:
  double work_, done_ = 0;
  bool quiet_;
  std::ostream& err_;
  std::chrono::steady_clock::time_point start_;
};

Result<engine::CalibrateOptions> ParseSet(const std::vector<std::string>& texts) {
  engine::CalibrateOptions options;
  for (const std::string& text : texts) {
    const size_t equals = std::min(text.find('='), text.size());
    const std::string name = text.substr(0, equals);
    const std::string number = equals < text.size() ? text.substr(equals + 1) : "";
    std::string names;
    const engine::CalibrateDial* found = nullptr;
    for (const engine::CalibrateDial& dial : engine::AllCalibrateDials()) {
      if (dial.name == name) found = &dial;
      names.append(names.empty() ? "" : ", ").append(dial.name);
    }
    if (found == nullptr) {
      return InvalidArgument("--set: got " + ShownJson(name) + ", need one of " + names);
    }
    char* end = nullptr;
    const double value = std::strtod(number.c_str(), &end);
    const bool good = !number.empty() && *end == '\0' && value >= found->min &&
                      value <= found->max && (!found->whole || value == std::floor(value));
    if (!good) {
      return InvalidArgument("--set: " + name + ": got " + ShownJson(number) + ", need " +
                             NeedRange(found->min, found->max) +
                             (found->whole ? ", a whole number" : ""));
    }
    options.*found->value = value;
  }
  return options;
}

// What is in the file so far; nothing if there is none.
Result<kvcache::SparseArtefacts> ReadExisting(const std::string& path,
                                              const kvcache::AttentionShape& shape) {
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return kvcache::SparseArtefacts{};
  LACUNA_ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path));
  return kvcache::ReadArtefacts(text, path, shape);
}

// Whole or not at all.
Status WriteFile(const std::string& path, const std::string& text) {
  const std::string partial = path + ".partial";
  std::ofstream file(partial, std::ios::binary | std::ios::trunc);
  file << text;
  file.close();
  std::error_code error;
  if (file) std::filesystem::rename(partial, path, error);
  if (!file || error) {
    std::filesystem::remove(partial, error);
    return InvalidArgument("--out: got " + ShownJson(path) + ", need a file that can be written");
  }
  return OkStatus();
}

// One calibration: prompts through the model, watched.
class Run final {
 public:
  Run(const CalibrateCommandOptions& options, std::ostream& err) : options_(options), err_(err) {}

  Result<kvcache::SparseArtefacts> Go(const engine::Folder& folder,
                                      const engine::CalibrateOptions& numbers,
                                      std::span<const ArtefactKind> kinds) {
    LACUNA_ASSIGN_OR_RETURN(served_, LoadServedModel(folder));
    LACUNA_ASSIGN_OR_RETURN(const engine::ModelConfig config, FolderShape(folder));
    const kvcache::AttentionShape shape = AttentionShapeOf(config, 64);
    LACUNA_ASSIGN_OR_RETURN(kvcache::SparseArtefacts artefacts, ReadExisting(options_.out, shape));
    const SampleLimits limits{
        .prompts_max = options_.prompts > 0 ? options_.prompts : int64_t{1} << 20,
        .tokens_max = std::min(options_.tokens, config.context_tokens_max - kAnswerTokensMax)};
    LACUNA_ASSIGN_OR_RETURN(const std::vector<SamplePrompt> prompts,
                            ReadSamplePrompts(options_.data, served_, limits));
    LACUNA_ASSIGN_OR_RETURN(backend_, MakeBackendFor({.device = "cpu",
                                                      .precision = options_.precision,
                                                      .threads = options_.threads}));
    LACUNA_ASSIGN_OR_RETURN(model_, engine::LoadModel(folder, *backend_));
    engine::Calibrator calibrator(shape,
                                  {.scale = static_cast<float>(config.attention_scale),
                                   .softcap = static_cast<float>(config.attention_softcap)},
                                  numbers, kinds);
    model_->SetObserver(&calibrator);
    LACUNA_RETURN_IF_ERROR(Watch(prompts, calibrator));
    LACUNA_RETURN_IF_ERROR(calibrator.Finish(artefacts));
    artefacts.model = served_.name;
    const std::string text = kvcache::WriteArtefacts(artefacts, shape);
    LACUNA_RETURN_IF_ERROR(WriteFile(options_.out, text));
    return artefacts;
  }

 private:
  Status Watch(const std::vector<SamplePrompt>& prompts, engine::Calibrator& calibrator) {
    const auto work = [](size_t tokens) { return static_cast<double>(tokens * (tokens + 4096)); };
    double all = 0;
    for (const SamplePrompt& prompt : prompts) all += work(prompt.tokens.size());
    Progress progress(all, options_.quiet, err_);
    for (size_t i = 0; i < prompts.size(); ++i) {
      const size_t prompt_tokens = prompts[i].tokens.size();
      const double layer_work = work(prompt_tokens) / static_cast<double>(model_->info().layers);
      LACUNA_RETURN_IF_ERROR(WatchPrompt(prompts[i], calibrator, [&](int32_t) {
        progress.Add(layer_work, i + 1, prompts.size());
      }));
    }
    return OkStatus();
  }

  // The model's own answer belongs to what is watched, as with MoA.
  Status WatchPrompt(const SamplePrompt& prompt, engine::Calibrator& calibrator,
                     const std::function<void(int32_t)>& on_layer) {
    std::vector<TokenId> tokens = prompt.tokens;
    const auto tokens_max = static_cast<int64_t>(tokens.size()) + kAnswerTokensMax;
    LACUNA_ASSIGN_OR_RETURN(
        const std::unique_ptr<SoloRunner> runner,
        SoloRunner::Create(
            *model_, *backend_,
            {.tokens_max = tokens_max, .step_tokens_max = tokens_max, .graphs = false}));
    if (!prompt.answers.empty()) LACUNA_RETURN_IF_ERROR(Answer(*runner, tokens));
    calibrator.Begin(MarkAnswers(tokens, static_cast<int64_t>(prompt.tokens.size()), prompt.answers,
                                 *served_.tokenizer),
                     on_layer);
    const auto last = static_cast<int32_t>(tokens.size()) - 1;
    Status status = runner->RunForLogits(tokens, 0, /*decode=*/false, last).status();
    calibrator.End();
    return status;
  }

  // Appends the greedy continuation, without the token that ends it.
  Status Answer(SoloRunner& runner, std::vector<TokenId>& tokens) {
    const size_t prompt_tokens = tokens.size();
    const auto last = static_cast<int32_t>(prompt_tokens) - 1;
    LACUNA_ASSIGN_OR_RETURN(TensorView logits, runner.RunForLogits(tokens, 0, false, last));
    for (;;) {
      const TokenId next = ArgMax({logits.as<const float>(), static_cast<size_t>(logits.dim(1))});
      if (std::ranges::find(model_->info().eos, next) != model_->info().eos.end())
        return OkStatus();
      tokens.push_back(next);
      if (tokens.size() == prompt_tokens + static_cast<size_t>(kAnswerTokensMax)) return OkStatus();
      LACUNA_ASSIGN_OR_RETURN(
          logits, runner.RunForLogits(std::span(tokens).last(1),
                                      static_cast<int64_t>(tokens.size()) - 1, /*decode=*/true, 0));
    }
  }

  const CalibrateCommandOptions& options_;
  std::ostream& err_;
  ServedModel served_;
  std::unique_ptr<kernels::Backend> backend_;
  std::unique_ptr<engine::Model> model_;
};

}  // namespace

Result<std::vector<ArtefactKind>> TablesOf(const std::string& method) {
  std::vector<ArtefactKind> kinds;
  std::string names = "all";
  for (uint8_t i = 0; i <= static_cast<uint8_t>(kLastKind); ++i) {
    const std::string_view name = kvcache::WordAt(kvcache::kArtefactNames, ArtefactKind{i});
    if (method == "all" || method == name) kinds.push_back(ArtefactKind{i});
    names.append(", ").append(name);
  }
  for (const auto& [name, kind] : kMethods) {
    if (method == name) kinds.push_back(kind);
    names.append(", ").append(name);
  }
  const kvcache::ProfileSet::Loaded loaded = kvcache::ProfileSet::Load(kvcache::ShippedProfiles());
  for (const kvcache::SparseProfile& profile : loaded.set.all()) {
    const std::vector<ArtefactKind> needed = kvcache::NeededArtefacts(profile);
    if (needed.empty()) continue;
    names.append(", ").append(profile.name);
    if (method == profile.name) kinds.insert(kinds.end(), needed.begin(), needed.end());
  }
  std::ranges::sort(kinds);
  kinds.erase(std::unique(kinds.begin(), kinds.end()), kinds.end());
  if (kinds.empty()) {
    return InvalidArgument("--method: got " + ShownJson(method) + ", need one of " + names);
  }
  return kinds;
}

int RunCalibrate(const CalibrateCommandOptions& options, std::ostream& out, std::ostream& err) {
  const auto run = [&]() -> Status {
    LACUNA_ASSIGN_OR_RETURN(const std::vector<ArtefactKind> kinds, TablesOf(options.method));
    LACUNA_ASSIGN_OR_RETURN(const engine::CalibrateOptions numbers, ParseSet(options.set));
    LACUNA_ASSIGN_OR_RETURN(const std::unique_ptr<engine::Folder> folder,
                            OpenModelFolder(options.model));
    LACUNA_RETURN_IF_ERROR(Run(options, err).Go(*folder, numbers, kinds).status());
    out << options.out << ":";
    for (const ArtefactKind kind : kinds) {
      out << " " << kvcache::WordAt(kvcache::kArtefactNames, kind);
    }
    out << "\n";
    return OkStatus();
  };
  const Status status = run();
  if (status.ok()) return 0;
  err << "lacuna calibrate: " << status.message() << "\n";
  return 2;
}

std::string CalibrateDialHelp() {
  const engine::CalibrateOptions defaults;
  std::string text = "What --set takes:\n";
  for (const engine::CalibrateDial& dial : engine::AllCalibrateDials()) {
    char value[32];
    std::snprintf(value, sizeof value, "%g", defaults.*dial.value);
    text.append("  ").append(dial.name).append(" [").append(value).append("]: ");
    text.append(dial.meaning).append("\n");
  }
  return text;
}

}  // namespace lacuna::server
