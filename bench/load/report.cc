#include "bench/load/report.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <numeric>
#include <utility>

namespace lacuna::bench {
namespace {

std::string Number(double value) {
  char text[48];
  std::snprintf(text, sizeof text, "%.6g", value);
  return text;
}

// One request's time per output token after the first; 0 when it has no second.
double TpotSeconds(const Sample& sample) {
  if (sample.output_tokens < 2) return 0;
  return (sample.e2el_s - sample.ttft_s) / static_cast<double>(sample.output_tokens - 1);
}

bool IsGood(const SloOptions& slo, const Sample& sample) {
  const auto within = [](double limit_ms, double seconds) {
    return limit_ms <= 0 || seconds * 1e3 <= limit_ms;
  };
  return within(slo.ttft_ms, sample.ttft_s) && within(slo.tpot_ms, TpotSeconds(sample)) &&
         within(slo.e2el_ms, sample.e2el_s);
}

void CheckSlo(const SloOptions& slo, int64_t good, Report& report) {
  const auto at_most = [&](const char* name, double limit, double value, bool always) {
    if ((limit > 0 || always) && value > limit) {
      report.slo_missed.push_back(std::string(name) + ": got " + Number(value) + ", need at most " +
                                  Number(limit));
    }
  };
  const auto at_least = [&](const char* name, double limit, double value) {
    if (limit > 0 && value < limit) {
      report.slo_missed.push_back(std::string(name) + ": got " + Number(value) +
                                  ", need at least " + Number(limit));
    }
  };
  at_most("p99_ttft_ms", slo.p99_ttft_ms, report.ttft_ms.p99, false);
  at_most("p99_tpot_ms", slo.p99_tpot_ms, report.tpot_ms.p99, false);
  at_most("p99_itl_ms", slo.p99_itl_ms, report.itl_ms.p99, false);
  at_most("p99_e2el_ms", slo.p99_e2el_ms, report.e2el_ms.p99, false);
  const double completed = static_cast<double>(std::max<int64_t>(report.completed, 1));
  at_least("goodput_min", slo.goodput_min, static_cast<double>(good) / completed);
  at_least("output_throughput_min", slo.output_throughput_min, report.output_throughput);
  const double all = static_cast<double>(
      std::max<int64_t>(report.completed + report.failed + report.cancelled, 1));
  at_most("error_rate_max", slo.error_rate_max, static_cast<double>(report.failed) / all, true);
}

using Named = std::pair<const char*, const Figures Report::*>;
constexpr std::array<Named, 4> kLatencies = {
    Named{"ttft", &Report::ttft_ms}, Named{"tpot", &Report::tpot_ms}, Named{"itl", &Report::itl_ms},
    Named{"e2el", &Report::e2el_ms}};

}  // namespace

double Percentile(const std::vector<double>& sorted, double percent) {
  if (sorted.empty()) return 0;
  const double at = percent / 100 * static_cast<double>(sorted.size() - 1);
  const auto low = static_cast<size_t>(at);
  const size_t high = std::min(low + 1, sorted.size() - 1);
  return sorted[low] + (at - static_cast<double>(low)) * (sorted[high] - sorted[low]);
}

Figures FiguresOf(std::vector<double> values) {
  Figures figures;
  if (values.empty()) return figures;
  std::sort(values.begin(), values.end());
  figures.mean =
      std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
  figures.median = figures.p50 = Percentile(values, 50);
  figures.p90 = Percentile(values, 90);
  figures.p99 = Percentile(values, 99);
  return figures;
}

Report MakeReport(const LoadConfig& config, const std::vector<Sample>& samples, double duration_s) {
  Report report;
  report.duration_s = duration_s;
  std::vector<double> ttft, tpot, itl, e2el, lag;
  int64_t good = 0;
  for (const Sample& sample : samples) {
    lag.push_back(sample.send_lag_s * 1e3);
    report.cancelled += sample.end == Sample::End::kCancelled;
    if (sample.end == Sample::End::kFailed) {
      ++report.failed;
      ++report.errors[sample.error];
    }
    // Tokens of clients that went away were made all the same, but vLLM counts completed ones.
    if (sample.end != Sample::End::kCompleted) continue;
    ++report.completed;
    good += IsGood(config.slo, sample);
    report.total_input_tokens += sample.input_tokens;
    report.total_output_tokens += sample.output_tokens;
    ttft.push_back(sample.ttft_s * 1e3);
    e2el.push_back(sample.e2el_s * 1e3);
    if (sample.output_tokens > 1) tpot.push_back(TpotSeconds(sample) * 1e3);
    for (const double gap : sample.itl_s) itl.push_back(gap * 1e3);
  }
  if (duration_s > 0) {
    const auto rate = [&](int64_t count) { return static_cast<double>(count) / duration_s; };
    report.request_throughput = rate(report.completed);
    report.request_goodput = rate(good);
    report.output_throughput = rate(report.total_output_tokens);
    report.total_token_throughput = rate(report.total_output_tokens + report.total_input_tokens);
  }
  report.ttft_ms = FiguresOf(std::move(ttft));
  report.tpot_ms = FiguresOf(std::move(tpot));
  report.itl_ms = FiguresOf(std::move(itl));
  report.e2el_ms = FiguresOf(std::move(e2el));
  report.send_lag_p99_ms = FiguresOf(std::move(lag)).p99;
  report.invalid = samples.empty() || report.send_lag_p99_ms > config.slo.send_lag_p99_ms_max;
  CheckSlo(config.slo, good, report);
  return report;
}

nlohmann::ordered_json ReportJson(const LoadConfig& config, const Report& report) {
  nlohmann::ordered_json json = {{"name", config.name},
                                 {"seed", config.seed},
                                 {"duration", report.duration_s},
                                 {"completed", report.completed},
                                 {"failed", report.failed},
                                 {"cancelled", report.cancelled},
                                 {"total_input_tokens", report.total_input_tokens},
                                 {"total_output_tokens", report.total_output_tokens},
                                 {"request_throughput", report.request_throughput},
                                 {"request_goodput", report.request_goodput},
                                 {"output_throughput", report.output_throughput},
                                 {"total_token_throughput", report.total_token_throughput}};
  for (const auto& [name, member] : kLatencies) {
    const Figures& figures = report.*member;
    const std::string tail = std::string("_").append(name).append("_ms");
    json["mean" + tail] = figures.mean;
    json["median" + tail] = figures.median;
    json["p50" + tail] = figures.p50;
    json["p90" + tail] = figures.p90;
    json["p99" + tail] = figures.p99;
  }
  json["send_lag_p99_ms"] = report.send_lag_p99_ms;
  json["errors"] = report.errors;
  json["slo_missed"] = report.slo_missed;
  json["invalid"] = report.invalid;
  return json;
}

std::string ReportTable(const LoadConfig& config, const Report& report) {
  char line[160];
  std::string table;
  const auto add = [&](const char* name, double value, const char* unit) {
    std::snprintf(line, sizeof line, "%-22s %14.2f %s\n", name, value, unit);
    table += line;
  };
  if (!config.name.empty()) table += config.name + "\n";
  add("duration", report.duration_s, "s");
  add("completed", static_cast<double>(report.completed), "requests");
  add("failed", static_cast<double>(report.failed), "requests");
  add("cancelled by us", static_cast<double>(report.cancelled), "requests");
  add("input", static_cast<double>(report.total_input_tokens), "tokens");
  add("output", static_cast<double>(report.total_output_tokens), "tokens");
  add("request throughput", report.request_throughput, "requests/s");
  add("request goodput", report.request_goodput, "requests/s");
  add("output throughput", report.output_throughput, "tokens/s");
  add("total throughput", report.total_token_throughput, "tokens/s");
  add("send lag p99", report.send_lag_p99_ms, "ms");
  std::snprintf(line, sizeof line, "%-6s %12s %12s %12s %12s\n", "ms", "mean", "p50", "p90", "p99");
  table += line;
  for (const auto& [name, member] : kLatencies) {
    const Figures& figures = report.*member;
    std::snprintf(line, sizeof line, "%-6s %12.2f %12.2f %12.2f %12.2f\n", name, figures.mean,
                  figures.p50, figures.p90, figures.p99);
    table += line;
  }
  for (const auto& [error, count] : report.errors) {
    table += "error: " + error + " x " + std::to_string(count) + "\n";
  }
  for (const std::string& missed : report.slo_missed) table += "SLO missed: " + missed + "\n";
  if (report.invalid) table += "invalid: the client could not keep its schedule, or sent nothing\n";
  return table;
}

}  // namespace lacuna::bench
