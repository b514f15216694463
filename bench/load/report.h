// Samples of requests -> the figures of a report, with the names of vLLM's benchmark. Pure.
//
// TTFT: to the first content, from the time the request was due. TPOT: (e2e - TTFT) / (tokens - 1).
// ITL: gaps between content chunks. E2EL: to the last byte. Goodput: requests per second that meet
// every limit of one request in the config.
#pragma once

#include <cstdint>
#include <map>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

#include "bench/load/load_config.h"

namespace lacuna::bench {

struct Sample final {
  enum class End { kCompleted, kFailed, kCancelled };
  End end = End::kFailed;
  std::string error;  // class of the failure: "http 503", "timeout", "truncated", ...
  int64_t input_tokens = 0, output_tokens = 0;
  double send_lag_s = 0;  // from due to sent
  double ttft_s = 0, e2el_s = 0;
  std::vector<double> itl_s;
};

// The value at `percent` of sorted values, linear between neighbours (numpy's default); 0 if empty.
double Percentile(const std::vector<double>& sorted, double percent);

struct Figures final {
  double mean = 0, median = 0, p50 = 0, p90 = 0, p99 = 0;
};
Figures FiguresOf(std::vector<double> values);

struct Report final {
  int64_t completed = 0, failed = 0, cancelled = 0;
  int64_t total_input_tokens = 0, total_output_tokens = 0;
  double duration_s = 0;
  double request_throughput = 0, request_goodput = 0, output_throughput = 0;
  double total_token_throughput = 0;
  Figures ttft_ms, tpot_ms, itl_ms, e2el_ms;
  double send_lag_p99_ms = 0;
  std::map<std::string, int64_t> errors;
  std::vector<std::string> slo_missed;  // "p99_ttft_ms: got 12.5, need at most 10"
  bool invalid = false;                 // the client could not keep its schedule, or nothing ran
};

Report MakeReport(const LoadConfig& config, const std::vector<Sample>& samples, double duration_s);
nlohmann::ordered_json ReportJson(const LoadConfig& config, const Report& report);
std::string ReportTable(const LoadConfig& config, const Report& report);

}  // namespace lacuna::bench
