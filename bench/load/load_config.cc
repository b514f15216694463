#include "bench/load/load_config.h"

#include <fstream>
#include <iterator>

#include "kernels/core/field_reader.h"
#include "kernels/core/field_table.h"

namespace lacuna::bench {
namespace {

const std::vector<Field<LoadConfig>>& TopFields() {
  using O = LoadConfig;
  static const std::vector<Field<O>> kFields = {
      {"name", "Name of the test in reports.", &O::name, 0, 128},
      {"seed", "Same seed, same prompts, lengths, arrivals and disconnects.", &O::seed, 0},
  };
  return kFields;
}

const std::vector<Field<EndpointOptions>>& EndpointFields() {
  using O = EndpointOptions;
  static const std::vector<Field<O>> kFields = {
      {"api", "Endpoint: token-id prompts or chat.", &O::api, 1, 16, "completions|chat"},
      {"model", "Model name; empty: the first of /v1/models.", &O::model, 0, 256},
      {"api_key_env", "Environment variable that holds the key.", &O::api_key_env, 0, 128},
      {"stream", "Stream the answers.", &O::stream},
      {"timeout_ms", "Longest time of one request.", &O::timeout_ms, 10, 86'400'000},
  };
  return kFields;
}

const std::vector<Field<ArrivalOptions>>& ArrivalFields() {
  using O = ArrivalOptions;
  static const std::vector<Field<O>> kFields = {
      {"mode", "Closed loop, or open with constant or Poisson gaps.", &O::mode, 1, 16,
       "closed|constant|poisson"},
      {"concurrency", "Clients of a closed loop; else most requests in flight.", &O::concurrency, 1,
       4096},
      {"rate_per_s", "Arrivals per second of an open loop.", &O::rate_per_s, 1e-3, 1e5},
      {"requests_max", "Requests to send.", &O::requests_max, 1, 10'000'000},
      {"duration_ms", "No request is sent after this time.", &O::duration_ms, 1, 86'400'000},
      {"warmup_requests", "Sent first and not counted.", &O::warmup_requests, 0, 100'000},
      {"cancel_rate", "Share of clients that disconnect at a random moment.", &O::cancel_rate, 0,
       1},
  };
  return kFields;
}

const std::vector<Field<Distribution>>& DistributionFields() {
  using O = Distribution;
  static const std::vector<Field<O>> kFields = {
      {"dist", "Shape.", &O::dist, 1, 16, "fixed|uniform|lognormal"},
      {"mean", "Mean of the values.", &O::mean, 1, 1 << 24},
      {"stdev", "Standard deviation of the values.", &O::stdev, 0, 1 << 24},
      {"min", "Least value.", &O::min, 1, 1 << 24},
      {"max", "Greatest value.", &O::max, 1, 1 << 24},
  };
  return kFields;
}

const std::vector<Field<RequestOptions>>& RequestFields() {
  using O = RequestOptions;
  static const std::vector<Field<O>> kFields = {
      {"temperature", "0: greedy.", &O::temperature, 0, 2},
      {"ignore_eos", "Generate the whole length.", &O::ignore_eos},
      {"stop", "Stop strings.", &O::stop, 0, 16},
      {"shared_prefix_tokens", "First tokens that all prompts share.", &O::shared_prefix_tokens, 0,
       1 << 24},
      {"vocab_min", "Least token id of prompts.", &O::vocab_min, 0, 1 << 24},
      {"vocab_max", "One above the greatest token id of prompts.", &O::vocab_max, 1, 1 << 24},
  };
  return kFields;
}

const std::vector<Field<SloOptions>>& SloFields() {
  using O = SloOptions;
  static const std::vector<Field<O>> kFields = {
      {"p99_ttft_ms", "p99 of the time to the first token.", &O::p99_ttft_ms, 0},
      {"p99_tpot_ms", "p99 of the time per output token.", &O::p99_tpot_ms, 0},
      {"p99_itl_ms", "p99 of the gaps between chunks.", &O::p99_itl_ms, 0},
      {"p99_e2el_ms", "p99 of the whole time.", &O::p99_e2el_ms, 0},
      {"ttft_ms", "One request's, for goodput.", &O::ttft_ms, 0},
      {"tpot_ms", "One request's, for goodput.", &O::tpot_ms, 0},
      {"e2el_ms", "One request's, for goodput.", &O::e2el_ms, 0},
      {"goodput_min", "Share of the completed requests that are good.", &O::goodput_min, 0, 1},
      {"output_throughput_min", "Output tokens per second.", &O::output_throughput_min, 0},
      {"error_rate_max", "Share of requests that may fail.", &O::error_rate_max, 0, 1},
      {"send_lag_p99_ms_max", "Above it the client was too slow and the run is invalid.",
       &O::send_lag_p99_ms_max, 0},
  };
  return kFields;
}

void CheckDistribution(const std::string& name, const Distribution& d, ConfigErrors& errors) {
  if (d.min > d.max) {
    errors.Add(name + ".min", std::to_string(d.min),
               "at most " + name + ".max (" + std::to_string(d.max) + ")");
  }
}

}  // namespace

LoadedLoadConfig ParseLoadConfig(std::string_view text, const std::string& name) {
  LoadedLoadConfig loaded;
  LoadConfig& config = loaded.config;
  ConfigErrors errors(name);
  const Result<ConfigJson> root = ParseJsonText(text);
  if (!root.ok()) {
    errors.AddLine(root.status().message());
  } else if (!root->is_object()) {
    errors.Add("file", "no object", "an object of sections");
  } else {
    const std::vector<BoundSection> sections = {
        {"endpoint", "", BindFields(EndpointFields(), config.endpoint)},
        {"arrival", "", BindFields(ArrivalFields(), config.arrival)},
        {"prompt_tokens", "", BindFields(DistributionFields(), config.prompt_tokens)},
        {"output_tokens", "", BindFields(DistributionFields(), config.output_tokens)},
        {"request", "", BindFields(RequestFields(), config.request)},
        {"slo", "", BindFields(SloFields(), config.slo)},
    };
    std::vector<std::string_view> nested;
    for (const BoundSection& section : sections) nested.push_back(section.name);
    ReadFields(*root, "", BindFields(TopFields(), config), nested, errors);
    for (const BoundSection& section : sections) {
      const auto found = root->find(section.name);
      if (found == root->end()) continue;
      if (!found->is_object()) {
        errors.Add(section.name, "no object", "an object");
        continue;
      }
      ReadFields(*found, std::string(section.name).append("."), section.fields, {}, errors);
    }
    CheckDistribution("prompt_tokens", config.prompt_tokens, errors);
    CheckDistribution("output_tokens", config.output_tokens, errors);
    if (config.request.vocab_min >= config.request.vocab_max) {
      errors.Add("request.vocab_min", std::to_string(config.request.vocab_min),
                 "less than request.vocab_max (" + std::to_string(config.request.vocab_max) + ")");
    }
  }
  loaded.errors = errors.lines();
  return loaded;
}

LoadedLoadConfig ReadLoadConfig(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) {
    LoadedLoadConfig loaded;
    loaded.errors.push_back(path + ": file: got no such file, need a readable JSON file");
    return loaded;
  }
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  return ParseLoadConfig(text, path);
}

}  // namespace lacuna::bench
