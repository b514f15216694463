// `lacuna bench offline`: speed of a model without a server, like llama-bench.
//
// Prefill: P tokens of one sequence behind D cached ones, in steps of step_tokens. Decode: G tokens
// in each of S sequences, one a step, from depth D on. The D cached tokens are random keys and
// values written through AppendKv (their values do not matter for speed), so that deep runs start
// at once.
#pragma once

#include <cstdint>
#include <ostream>
#include <string>

#include "server/commands/device_options.h"

namespace lacuna::server {

struct BenchOfflineOptions final {
  std::string shape;   // a config.json: random weights; or
  std::string model;   // a folder
  bool dummy = false;  // random weights for `model` too
  int64_t depth = 0;
  int64_t prompt = 512;   // 0: no prefill
  int64_t generate = 64;  // 0: no decode
  int64_t step_tokens = 2048;
  int64_t sequences = 1;
  bool graphs = true;  // where the device records
  DeviceOptions device;
  std::string json;  // file to write, or empty
};

// 0, or 2 with one line on `err`.
int RunBenchOffline(const BenchOfflineOptions& options, std::ostream& out, std::ostream& err);

}  // namespace lacuna::server
