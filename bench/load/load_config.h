// LoadConfig: what a load test does, read from configs/bench/*.json. Plain values; frozen after
// load.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace lacuna::bench {

// A number of tokens per request.
struct Distribution final {
  std::string dist = "fixed";      // fixed | uniform | lognormal
  double mean = 128;               // fixed: the value; lognormal: of the values, not of their logs
  double stdev = 0;                // lognormal only
  int64_t min = 1, max = 1 << 20;  // values are clamped to these; uniform draws between them
};

struct EndpointOptions final {
  std::string api = "completions";  // completions (token-id prompts, exact) | chat (words)
  std::string model;                // empty: the first of /v1/models
  std::string api_key_env;          // environment variable that holds the key; empty: no key
  bool stream = true;
  int64_t timeout_ms = 600'000;  // of one request
};

struct RequestOptions final {
  double temperature = 0.0;
  bool ignore_eos = true;
  std::vector<std::string> stop;
  int64_t shared_prefix_tokens = 0;         // the first tokens of every prompt, equal for all
  int64_t vocab_min = 64, vocab_max = 512;  // token ids of prompts: [vocab_min, vocab_max)
};

struct ArrivalOptions final {
  std::string mode = "closed";   // closed | constant | poisson
  int64_t concurrency = 8;       // closed: clients; else the most requests in flight
  double rate_per_s = 1.0;       // constant, poisson
  int64_t requests_max = 100;    // of the measured phase
  int64_t duration_ms = 60'000;  // of the measured phase; whichever of both comes first
  int64_t warmup_requests = 0;   // sent first, not counted
  double cancel_rate = 0.0;      // share of clients that disconnect at a random moment
};

// 0 switches a row off.
struct SloOptions final {
  double p99_ttft_ms = 0, p99_tpot_ms = 0, p99_itl_ms = 0, p99_e2el_ms = 0;
  double ttft_ms = 0, tpot_ms = 0, e2el_ms = 0;  // of one request, for goodput
  double goodput_min = 0;                        // share of completed requests, 0 .. 1
  double output_throughput_min = 0;              // tokens/s
  double error_rate_max = 0;                     // share of requests; always checked
  double send_lag_p99_ms_max = 1000;             // above it the run is invalid: we were too slow
};

struct LoadConfig final {
  std::string name;
  int64_t seed = 1;
  EndpointOptions endpoint;
  ArrivalOptions arrival;
  Distribution prompt_tokens, output_tokens;
  RequestOptions request;
  SloOptions slo;
};

// Every error at once, one line each: "FILE: key: got X, need Y".
struct LoadedLoadConfig final {
  LoadConfig config;
  std::vector<std::string> errors;
};
LoadedLoadConfig ReadLoadConfig(const std::string& path);
LoadedLoadConfig ParseLoadConfig(std::string_view text, const std::string& name);

}  // namespace lacuna::bench
