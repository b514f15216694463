#include "bench/load/schedule.h"

#include <algorithm>
#include <cmath>

namespace lacuna::bench {

int64_t Draw(const Distribution& d, Random& random) {
  double value = d.mean;
  if (d.dist == "uniform") {
    value = static_cast<double>(d.min) +
            std::floor(random.Uniform() * static_cast<double>(d.max - d.min + 1));
  } else if (d.dist == "lognormal") {
    const double variance = std::log(1.0 + d.stdev * d.stdev / (d.mean * d.mean));
    value = std::exp(std::log(d.mean) - variance / 2 + std::sqrt(variance) * random.Normal());
  }
  const double low = static_cast<double>(d.min), high = static_cast<double>(d.max);
  return std::llround(std::clamp(value, low, high));
}

std::vector<PlannedRequest> MakeSchedule(const LoadConfig& config, int64_t count, uint64_t salt) {
  Random random(static_cast<uint64_t>(config.seed) * 0x100000001b3ull + salt);
  const ArrivalOptions& arrival = config.arrival;
  std::vector<PlannedRequest> plan(static_cast<size_t>(count));
  double due_s = 0;
  for (PlannedRequest& request : plan) {
    request.due_s = due_s;
    if (arrival.mode == "constant") due_s += 1.0 / arrival.rate_per_s;
    if (arrival.mode == "poisson") due_s -= std::log(1.0 - random.Uniform()) / arrival.rate_per_s;
    request.prompt_tokens = Draw(config.prompt_tokens, random);
    request.output_tokens = Draw(config.output_tokens, random);
    request.prompt_seed = random.Next();
    // Drawn always, so that cancel_rate changes nothing else.
    const double leaves = random.Uniform(), moment = random.Uniform();
    if (leaves < arrival.cancel_rate) request.cancel_after = moment;
  }
  return plan;
}

std::vector<int32_t> PromptIds(const LoadConfig& config, const PlannedRequest& request) {
  const RequestOptions& options = config.request;
  const auto span = static_cast<uint64_t>(options.vocab_max - options.vocab_min);
  Random shared(static_cast<uint64_t>(config.seed)), own(request.prompt_seed);
  std::vector<int32_t> ids(static_cast<size_t>(request.prompt_tokens));
  for (size_t i = 0; i < ids.size(); ++i) {
    Random& source = static_cast<int64_t>(i) < options.shared_prefix_tokens ? shared : own;
    ids[i] = static_cast<int32_t>(options.vocab_min + static_cast<int64_t>(source.Next() % span));
  }
  return ids;
}

}  // namespace lacuna::bench
