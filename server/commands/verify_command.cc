#include "server/commands/verify_command.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <iomanip>

#include "engine/loader/checkpoint.h"
#include "engine/model/load_model.h"
#include "server/commands/solo_runner.h"

namespace lacuna::server {
namespace {

constexpr float kTieMargin = 1e-3f;

struct Expected final {
  std::unique_ptr<engine::MappedFile> file;
  std::span<const TokenId> input_ids, greedy;
  TensorView logits;
};

Result<std::span<const TokenId>> Ids(const std::vector<engine::SafetensorsEntry>& entries,
                                     const std::string& file, const char* name, int64_t vocab) {
  LACUNA_ASSIGN_OR_RETURN(const TensorView view,
                          engine::FindTensor(entries, file, name, DType::kI32, 1));
  const std::span<const TokenId> ids(view.as<const TokenId>(), static_cast<size_t>(view.dim(0)));
  const bool in_vocabulary =
      std::ranges::all_of(ids, [vocab](TokenId id) { return id >= 0 && id < vocab; });
  if (ids.empty() || !in_vocabulary) {
    return InvalidArgument(file + ": tensor " + name + ": expected ids under " +
                           std::to_string(vocab) + ", found others or none");
  }
  return ids;
}

Result<Expected> ReadExpected(const std::string& path, int64_t vocab) {
  const std::filesystem::path location(path);
  const std::string file = location.filename().string();
  const std::string folder_path =
      location.has_parent_path() ? location.parent_path().string() : ".";
  LACUNA_ASSIGN_OR_RETURN(const std::unique_ptr<engine::Folder> folder,
                          engine::Folder::Open(folder_path));
  Expected out;
  LACUNA_ASSIGN_OR_RETURN(out.file, folder->Map(file, int64_t{1} << 40));
  LACUNA_ASSIGN_OR_RETURN(const std::vector<engine::SafetensorsEntry> entries,
                          engine::ParseSafetensors(out.file->bytes(), file));
  LACUNA_ASSIGN_OR_RETURN(out.input_ids, Ids(entries, file, "input_ids", vocab));
  LACUNA_ASSIGN_OR_RETURN(out.greedy, Ids(entries, file, "greedy", vocab));
  LACUNA_ASSIGN_OR_RETURN(out.logits, engine::FindTensor(entries, file, "logits", DType::kF32, 2));
  if (out.logits.dim(0) != static_cast<int64_t>(out.input_ids.size()) ||
      out.logits.dim(1) != vocab) {
    return InvalidArgument(file + ": tensor logits: expected [" +
                           std::to_string(out.input_ids.size()) + ", " + std::to_string(vocab) +
                           "], found " + out.logits.ShapeString());
  }
  return out;
}

void CompareLogits(const TensorView& got, const TensorView& expected, VerifyReport& report) {
  const float* a = got.as<const float>();
  const float* b = expected.as<const float>();
  double error = 0.0, norm = 0.0;
  bool broken = false;
  for (int64_t i = 0; i < expected.elements(); ++i) {
    const double difference = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    broken = broken || !std::isfinite(difference);
    error += difference * difference;
    norm += static_cast<double>(b[i]) * static_cast<double>(b[i]);
    report.max_abs = std::max(report.max_abs, std::abs(difference));
  }
  report.rel_error = broken ? INFINITY : std::sqrt(error / norm);
}

Status ContinueGreedily(SoloRunner& runner, const Expected& expected, TensorView logits,
                        VerifyReport& report) {
  const size_t vocab = static_cast<size_t>(logits.dim(1));
  const float* row = logits.as<const float>() + (logits.dim(0) - 1) * logits.dim(1);
  int64_t position = static_cast<int64_t>(expected.input_ids.size());
  report.greedy_tokens = static_cast<int64_t>(expected.greedy.size());
  for (size_t i = 0; i < expected.greedy.size(); ++i) {
    const std::span<const float> scores(row, vocab);
    const TokenId got = ArgMax(scores);
    const TokenId want = expected.greedy[i];
    if (got != want) {
      report.misses.push_back(
          {static_cast<int64_t>(i), got, want,
           scores[static_cast<size_t>(got)] - scores[static_cast<size_t>(want)]});
    }
    if (i + 1 == expected.greedy.size()) break;
    LACUNA_ASSIGN_OR_RETURN(logits, runner.RunForLogits(expected.greedy.subspan(i, 1), position++,
                                                        /*decode=*/true, /*logits_from=*/0));
    row = logits.as<const float>();
  }
  return OkStatus();
}

Result<VerifyReport> RunOnce(const VerifyOptions& options, kernels::Backend& backend,
                             bool bf16_rope) {
  LACUNA_ASSIGN_OR_RETURN(const std::unique_ptr<engine::Folder> folder,
                          engine::Folder::Open(options.model));
  LACUNA_ASSIGN_OR_RETURN(const std::unique_ptr<engine::Model> model,
                          engine::LoadModel(*folder, backend, /*context_tokens=*/0, bf16_rope));
  LACUNA_ASSIGN_OR_RETURN(const Expected expected,
                          ReadExpected(options.expected, model->info().vocab_size));
  const int64_t prompt = static_cast<int64_t>(expected.input_ids.size());
  const int64_t total = prompt + static_cast<int64_t>(expected.greedy.size());
  LACUNA_ASSIGN_OR_RETURN(const std::unique_ptr<SoloRunner> runner,
                          SoloRunner::Create(*model, backend,
                                             {.tokens_max = total,
                                              .step_tokens_max = prompt,
                                              .logit_rows_max = prompt,
                                              .graphs = false}));
  LACUNA_ASSIGN_OR_RETURN(const TensorView logits,
                          runner->RunForLogits(expected.input_ids, 0, /*decode=*/false, 0));
  VerifyReport report;
  report.bf16_rope = bf16_rope;
  CompareLogits(logits, expected.logits, report);
  LACUNA_RETURN_IF_ERROR(ContinueGreedily(*runner, expected, logits, report));
  return report;
}

}  // namespace

bool VerifyReport::Passes(bool fp32) const {
  const bool only_ties =
      std::ranges::all_of(misses, [](const Miss& miss) { return miss.margin < kTieMargin; });
  return fp32 ? rel_error <= 1e-4 && only_ties : rel_error <= 2e-2;
}

Result<VerifyReport> VerifyModel(const VerifyOptions& options) {
  LACUNA_ASSIGN_OR_RETURN(const std::unique_ptr<kernels::Backend> backend,
                          MakeBackendFor(options.device));
  LACUNA_ASSIGN_OR_RETURN(VerifyReport exact, RunOnce(options, *backend, /*bf16_rope=*/false));
  if (exact.Passes(options.device.precision == "fp32")) return exact;
  LACUNA_ASSIGN_OR_RETURN(VerifyReport rounded, RunOnce(options, *backend, /*bf16_rope=*/true));
  rounded.exact_rope_rel_error = exact.rel_error;
  return rounded.rel_error < exact.rel_error ? rounded : exact;
}

int RunVerify(const VerifyOptions& options, std::ostream& out, std::ostream& err) {
  const Result<VerifyReport> report = VerifyModel(options);
  if (!report.ok()) {
    err << "lacuna verify: " << report.status().message() << "\n";
    return 2;
  }
  const int64_t matched = report->greedy_tokens - static_cast<int64_t>(report->misses.size());
  out << std::scientific << std::setprecision(3) << "rel_error=" << report->rel_error
      << " max_abs=" << report->max_abs << " greedy_match=" << matched << "/"
      << report->greedy_tokens << "\n";
  for (const VerifyReport::Miss& miss : report->misses) {
    out << "greedy token " << miss.index << ": got " << miss.got << ", expected " << miss.expected
        << ", margin " << miss.margin << (miss.margin < kTieMargin ? " (under 1e-3: a tie)" : "")
        << "\n";
  }
  if (report->bf16_rope) {
    out << "with rotary frequencies rounded to bf16, as .to(bfloat16) leaves them in the "
           "reference; "
        << "with exact ones rel_error=" << report->exact_rope_rel_error << "\n";
  }
  return report->Passes(options.device.precision == "fp32") ? 0 : 1;
}

}  // namespace lacuna::server
