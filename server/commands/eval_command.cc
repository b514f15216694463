#include "server/commands/eval_command.h"

#include <chrono>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <utility>

#include "kernels/core/clock.h"
#include "server/client/http_client.h"
#include "server/commands/calibrate_prompts.h"
#include "server/commands/server_process.h"
#include "server/eval/figures.h"
#include "server/eval/html_report.h"
#include "server/eval/reference.h"
#include "server/eval/runner.h"
#include "server/eval/tables.h"

namespace lacuna::server {
namespace {

namespace asio = boost::asio;
namespace fs = std::filesystem;

constexpr int kOk = 0, kFailed = 1, kBad = 2, kNoServer = 3;
constexpr double kReferenceSlackPoints = 2;
constexpr const char* kAnswersFile = "answers.jsonl";

int Fail(int code, const Status& status, std::ostream& err) {
  err << "lacuna eval: " << status.message() << std::endl;
  return code;
}

Status CheckOptions(const EvalOptions& options) {
  for (const double fraction : options.fractions) {
    if (fraction > 0 && fraction <= 1) continue;
    return InvalidArgument("--budget-fractions: got " + Percent(fraction) +
                           ", need shares above 0 and up to 1");
  }
  const bool own = !options.model.empty() || !options.config.empty() || !options.device.empty() ||
                   !options.precision.empty() || !options.overrides.empty();
  if (!options.url.empty() && own) {
    return InvalidArgument("--url: got options of a server too, need one or the other");
  }
  if (options.url.empty() && !options.api_key_env.empty()) {
    return InvalidArgument("--api-key-env: got it without --url, need both");
  }
  if (options.resume && options.out.empty()) {
    return InvalidArgument("--resume: got no --out, need the folder of the former run");
  }
  return OkStatus();
}

Result<std::vector<EvalQuestion>> ReadQuestions(const EvalOptions& options) {
  LACUNA_ASSIGN_OR_RETURN(const std::string text, ReadTextFile(options.suite));
  LACUNA_ASSIGN_OR_RETURN(std::vector<EvalQuestion> suite, ParseSuite(text, options.suite));
  return ChooseQuestions(std::move(suite), {options.lengths, options.tasks, options.limit});
}

Result<EvalReference> ReadReference(const std::string& path) {
  if (path.empty()) return EvalReference{};
  LACUNA_ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path));
  return ParseReference(text, path);
}

Result<std::vector<EvalRecord>> ReadAnswers(const fs::path& file) {
  std::vector<EvalRecord> records;
  std::ifstream in(file);
  int64_t number = 0;
  for (std::string line; std::getline(in, line);) {
    ++number;
    // A run that was cut off may have left half a line at the end.
    if (in.eof()) break;
    Result<EvalRecord> record = ParseRecord(line);
    if (!record.ok()) {
      return InvalidArgument(file.string() + ": line " + std::to_string(number) + ": " +
                             record.status().message());
    }
    if (record->error.empty()) records.push_back(std::move(*record));
  }
  return records;
}

// The folder of a run, and what it holds already. Its answers are written anew, so that none is
// there twice.
class OutFolder final {
 public:
  static Result<OutFolder> Open(const std::string& path, bool resume,
                                std::vector<EvalRecord>& records) {
    OutFolder folder;
    if (path.empty()) return folder;
    folder.path_ = path;
    std::error_code error;
    fs::create_directories(path, error);
    const fs::path answers = folder.path_ / kAnswersFile;
    if (resume) {
      LACUNA_ASSIGN_OR_RETURN(records, ReadAnswers(answers));
    } else if (fs::exists(answers, error)) {
      return InvalidArgument("--out: got " + path +
                             ", which holds a run, need another folder or --resume");
    }
    folder.answers_.open(answers);
    for (const EvalRecord& record : records) folder.Add(record);
    if (!folder.answers_.flush()) {
      return InvalidArgument("--out: got " + path + ", need a folder that can be written");
    }
    return folder;
  }

  void Add(const EvalRecord& record) {
    if (answers_.is_open()) answers_ << RecordJson(record).dump() << std::endl;
  }

  Status Write(const EvalReport& report) {
    if (path_.empty()) return OkStatus();
    const std::pair<const char*, std::string> files[] = {
        {"report.json", EvalReportJson(report).dump(1) + "\n"},
        {"report.md", EvalMarkdown(report)},
        {"index.html", EvalHtml(report)},
    };
    for (const auto& [name, text] : files) {
      std::ofstream file(path_ / name);
      file << text;
      if (!file.flush()) {
        return InvalidArgument((path_ / name).string() + ": got an error, need to write it");
      }
    }
    return answers_.flush() ? OkStatus() : InvalidArgument("--out: answers could not be written");
  }

 private:
  fs::path path_;
  std::ofstream answers_;
};

Result<std::unique_ptr<ServerProcess>> StartServer(const EvalOptions& options) {
  ServeOptions serve;
  serve.model = options.model;
  serve.config = options.config;
  serve.device = options.device;
  serve.precision = options.precision;
  serve.port = 0;
  serve.overrides = {"grpc.enabled=false", "log.level=warn"};
  serve.overrides.insert(serve.overrides.end(), options.overrides.begin(), options.overrides.end());
  return ServerProcess::Start(serve);
}

Result<ServedProfiles> ProfilesOf(asio::io_context& io, const HttpTarget& target) {
  const Result<std::string> page = Fetch(io, target, "/v1/sparse/profiles");
  if (page.ok()) return ParseServedProfiles(*page);
  if (page.status().code() == StatusCode::kNotFound) return ServedProfiles{};
  return page.status();
}

Result<HttpTarget> FindServer(asio::io_context& io, const EvalOptions& options,
                              const std::string& url_text) {
  LACUNA_ASSIGN_OR_RETURN(Url url, ParseUrl(url_text));
  LACUNA_ASSIGN_OR_RETURN(HttpTarget target, ResolveTarget(io, std::move(url)));
  target.user_agent = "lacuna-eval";
  if (!options.api_key_env.empty()) {
    const char* key = std::getenv(options.api_key_env.c_str());
    if (key == nullptr) {
      return InvalidArgument("--api-key-env: got an unset variable, need one that holds the key");
    }
    target.api_key = key;
  }
  return target;
}

std::string Now() {
  const std::time_t now = std::time(nullptr);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%d %H:%M UTC", std::gmtime(&now));
  return text;
}

// All that is known once the server is; asks, then reports.
class Evaluation final {
 public:
  Evaluation(const EvalOptions& options, std::vector<EvalQuestion> questions,
             EvalReference reference, std::vector<EvalRecord> records, OutFolder folder,
             std::ostream& out, std::ostream& err)
      : options_(options),
        questions_(std::move(questions)),
        reference_(std::move(reference)),
        records_(std::move(records)),
        folder_(std::move(folder)),
        out_(out),
        err_(err) {}

  int Run(const std::string& url) {
    asio::io_context io(1);
    Result<HttpTarget> target = FindServer(io, options_, url);
    if (!target.ok()) return Fail(kBad, target.status(), err_);
    Result<std::string> model = FirstModel(io, *target);
    if (!model.ok()) return Fail(kNoServer, model.status(), err_);
    const Result<ServedProfiles> served = ProfilesOf(io, *target);
    if (!served.ok()) return Fail(kNoServer, served.status(), err_);
    const Result<EvalPlan> plan = PlanVariants(options_.profiles, options_.fractions, *served);
    if (!plan.ok()) return Fail(kBad, plan.status(), err_);

    const Status asked = Ask(io, {.target = *target,
                                  .model = *model,
                                  .questions = questions_,
                                  .variants = plan->variants,
                                  .max_tokens = options_.max_tokens,
                                  .concurrency = options_.concurrency,
                                  .done = {}});
    EvalReport report = MakeEvalReport(records_, *plan);
    report.model = *model;
    report.suite = fs::path(options_.suite).filename().string();
    report.when = Now();
    if (options_.concurrency > 1) {
      report.notes.push_back("Times are of " + std::to_string(options_.concurrency) +
                             " prompts at once.");
    }
    const ReferenceVerdict verdict = CompareWithReference(report, reference_);
    if (!reference_.empty()) report.notes.push_back(verdict.note);
    out_ << EvalText(report);
    const Status written = folder_.Write(report);
    if (!written.ok()) return Fail(kBad, written, err_);
    if (!asked.ok()) return Fail(kNoServer, asked, err_);
    const bool worse = verdict.missing_points() > kReferenceSlackPoints;
    return report.failures.empty() && !worse ? kOk : kFailed;
  }

 private:
  Status Ask(asio::io_context& io, EvalRun run) {
    EvalProgress progress(run.questions, run.variants.size());
    for (const EvalRecord& record : records_) run.done.insert({record.question, record.variant});
    for (const EvalQuestion& question : run.questions) {
      for (const EvalVariant& variant : run.variants) {
        if (!run.done.contains({question.id, variant.label})) continue;
        progress.Add(question.context_tokens, /*asked=*/false, 0);
      }
    }
    const auto start = std::chrono::steady_clock::now();
    size_t failed = 0;
    Status status = RunEval(io, run, [&](EvalRecord record) {
      const double elapsed_s = Seconds(std::chrono::steady_clock::now() - start);
      failed += !record.error.empty();
      progress.Add(record.context_tokens, /*asked=*/true, elapsed_s);
      folder_.Add(record);
      records_.push_back(std::move(record));
      if (!options_.quiet) err_ << progress.Bar(failed, elapsed_s) << std::flush;
    });
    if (!options_.quiet) err_ << "\n";
    return status;
  }

  const EvalOptions& options_;
  const std::vector<EvalQuestion> questions_;
  const EvalReference reference_;
  std::vector<EvalRecord> records_;
  OutFolder folder_;
  std::ostream& out_;
  std::ostream& err_;
};

}  // namespace

int RunEvalCommand(const EvalOptions& options, std::ostream& out, std::ostream& err) {
  const Status sane = CheckOptions(options);
  if (!sane.ok()) return Fail(kBad, sane, err);
  Result<std::vector<EvalQuestion>> questions = ReadQuestions(options);
  if (!questions.ok()) return Fail(kBad, questions.status(), err);
  Result<EvalReference> reference = ReadReference(options.reference);
  if (!reference.ok()) return Fail(kBad, reference.status(), err);
  if (!options.url.empty()) {
    const Result<Url> url = ParseUrl(options.url);
    if (!url.ok()) return Fail(kBad, url.status(), err);
  }
  std::vector<EvalRecord> records;
  Result<OutFolder> folder = OutFolder::Open(options.out, options.resume, records);
  if (!folder.ok()) return Fail(kBad, folder.status(), err);

  std::unique_ptr<ServerProcess> server;
  if (options.url.empty()) {
    Result<std::unique_ptr<ServerProcess>> started = StartServer(options);
    if (!started.ok()) return Fail(kNoServer, started.status(), err);
    server = std::move(*started);
  }
  Evaluation evaluation(options, std::move(*questions), std::move(*reference), std::move(records),
                        std::move(*folder), out, err);
  return evaluation.Run(server == nullptr ? options.url : server->url());
}

}  // namespace lacuna::server
