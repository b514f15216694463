#include "bench/load/bench_serve.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>
#include <utility>

#include "bench/load/load_config.h"
#include "bench/load/report.h"
#include "bench/load/runner.h"
#include "bench/load/schedule.h"
#include "bench/load/server_metrics.h"
#include "server/client/http_client.h"
#include "server/client/url.h"

namespace lacuna::bench {
namespace {

namespace asio = boost::asio;

constexpr int kOk = 0, kMissed = 1, kBadConfig = 2, kInvalid = 3;

// Waits until the server is idle: what our disconnects cancelled is retired a step later.
std::optional<ServerFigures> IdleFigures(asio::io_context& io, const ClientContext& context) {
  std::optional<ServerFigures> figures;
  for (int i = 0; i < 100; ++i) {
    const Result<std::string> page = server::Fetch(io, context.target, "/metrics");
    if (!page.ok()) return figures;
    figures = ParseMetrics(*page);
    if (!figures->known) return std::nullopt;
    if (figures->idle() && figures->pages_used == 0) return figures;
    std::this_thread::sleep_for(std::chrono::milliseconds(100));
  }
  return figures;
}

std::string Bar(const Progress& progress) {
  constexpr size_t kWidth = 30;
  const size_t full = progress.planned == 0 ? 0 : progress.ended * kWidth / progress.planned;
  char tail[96];
  std::snprintf(tail, sizeof tail, " %zu/%zu, %zu in flight, %zu failed, %.0f s", progress.ended,
                progress.planned, progress.sent - progress.ended, progress.failed,
                progress.elapsed_s);
  return "\r[" + std::string(full, '#') + std::string(kWidth - full, '.') + "]" + tail + "  ";
}

// The address, key and model of the run; an exit code when one cannot be had.
int Prepare(asio::io_context& io, const LoadConfig& config, server::Url url, ClientContext& context,
            std::ostream& err) {
  std::string api_key;
  if (!config.endpoint.api_key_env.empty()) {
    const char* key = std::getenv(config.endpoint.api_key_env.c_str());
    if (key == nullptr) {
      err << "endpoint.api_key_env: got an unset variable, need one that holds the key\n";
      return kBadConfig;
    }
    api_key = key;
  }
  Result<server::HttpTarget> target = server::ResolveTarget(io, std::move(url));
  if (!target.ok()) {
    err << "bench serve: " << target.status().message() << "\n";
    return kInvalid;
  }
  context.target = std::move(*target);
  context.target.api_key = std::move(api_key);
  context.target.user_agent = "lacuna-bench";
  context.target.timeout_ms = config.endpoint.timeout_ms;
  context.model = config.endpoint.model;
  if (!context.model.empty()) return kOk;
  Result<std::string> model = server::FirstModel(io, context.target);
  if (!model.ok()) {
    err << "bench serve: " << model.status().message() << "\n";
    return kInvalid;
  }
  context.model = std::move(*model);
  return kOk;
}

PhaseResult Measure(asio::io_context& io, const LoadConfig& config, const ClientContext& context,
                    bool quiet, std::ostream& err) {
  if (config.arrival.warmup_requests > 0) {
    LoadConfig warm = config;
    warm.arrival.mode = "closed";
    warm.arrival.cancel_rate = 0;
    const ClientContext warm_context{warm, context.target, context.model};
    RunPhase(io, warm_context, MakeSchedule(warm, config.arrival.warmup_requests, 1),
             static_cast<double>(config.arrival.duration_ms) * 1e-3, {});
  }
  std::function<void(const Progress&)> show;
  if (!quiet) show = [&err](const Progress& progress) { err << Bar(progress) << std::flush; };
  PhaseResult result = RunPhase(io, context, MakeSchedule(config, config.arrival.requests_max, 2),
                                static_cast<double>(config.arrival.duration_ms) * 1e-3, show);
  if (!quiet) err << "\n";
  return result;
}

// False when the file cannot be written.
bool WriteReport(const BenchServeOptions& options, const LoadConfig& config, const Report& report,
                 const nlohmann::ordered_json& server, std::ostream& out) {
  nlohmann::ordered_json json = ReportJson(config, report);
  json["server"] = server;
  if (options.json_path == "-") {
    out << json.dump(2) << "\n";
    return true;
  }
  out << ReportTable(config, report);
  if (!server.is_null()) out << "server: " << server.dump() << "\n";
  if (options.json_path.empty()) return true;
  std::ofstream file(options.json_path);
  file << json.dump(2) << "\n";
  return static_cast<bool>(file.flush());
}

}  // namespace

int RunBenchServe(const BenchServeOptions& options, std::ostream& out, std::ostream& err) {
  const LoadedLoadConfig loaded = ReadLoadConfig(options.config_path);
  for (const std::string& line : loaded.errors) err << line << "\n";
  Result<server::Url> url = server::ParseUrl(options.url);
  if (!url.ok()) err << url.status().message() << "\n";
  if (!loaded.errors.empty() || !url.ok()) return kBadConfig;

  const LoadConfig& config = loaded.config;
  asio::io_context io(1);
  ClientContext context{config, {}, ""};
  if (const int code = Prepare(io, config, std::move(*url), context, err); code != kOk) return code;
  const std::optional<ServerFigures> before = IdleFigures(io, context);
  const PhaseResult result = Measure(io, config, context, options.quiet, err);
  const std::optional<ServerFigures> after = IdleFigures(io, context);

  const Report report = MakeReport(config, result.samples, result.duration_s);
  nlohmann::ordered_json server = nullptr;
  bool sound = true;
  if (before && after) {
    const ServerVerdict verdict = Compare(*before, *after);
    server = ServerJson(*after, verdict);
    sound = verdict.lost == 0 && verdict.leaked_pages == 0;
  }
  if (!WriteReport(options, config, report, server, out)) {
    err << options.json_path << ": cannot be written\n";
    return kInvalid;
  }
  if (!sound) err << "bench serve: the server lost requests or leaked pages\n";
  if (report.invalid) return kInvalid;
  return report.slo_missed.empty() && sound ? kOk : kMissed;
}

}  // namespace lacuna::bench
