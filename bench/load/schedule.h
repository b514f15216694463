// The plan of a load test: for each request when it is due, its lengths, its prompt's seed and
// whether its client walks away. Pure and reproducible from the config's seed on any machine: no
// std:: distribution, whose results the standard leaves open.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "bench/load/load_config.h"
#include "kernels/core/random.h"

namespace lacuna::bench {

int64_t Draw(const Distribution& distribution, Random& random);

struct PlannedRequest final {
  double due_s = 0;  // after the start of its phase; 0 in a closed loop
  int64_t prompt_tokens = 0, output_tokens = 0;
  uint64_t prompt_seed = 0;
  // The client disconnects after this share of the expected output; before any when 0.
  std::optional<double> cancel_after;
};

// `count` requests with their arrival times.
std::vector<PlannedRequest> MakeSchedule(const LoadConfig& config, int64_t count, uint64_t salt);

// The ids of one prompt: the shared prefix, then ids from its seed.
std::vector<int32_t> PromptIds(const LoadConfig& config, const PlannedRequest& request);

}  // namespace lacuna::bench
