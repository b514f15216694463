// `lacuna bench offline`: speed of a model without a server, like llama-bench.
//
// Prefill: P tokens of one sequence behind D cached ones, in steps of step_tokens. Decode: G tokens
// in each of S sequences, one a step, from depth D on. The D cached tokens are random keys and
// values written through AppendKv (their values do not matter for speed), so that deep runs start
// at once.
#pragma once

#include <cstdint>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "engine/loader/model_config.h"
#include "engine/model/model.h"
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
  std::string sparse_profile;      // empty: dense
  std::vector<std::string> dials;  // of it, "budget_tokens=2048"
  std::string profile_dir;         // further profiles
  std::string artefacts;           // file; empty: the model folder's, for random weights made up
  bool compare_dense = false;      // beside the profile
  bool drop_streaming = false;     // streaming heads keep only what they see
  double dense_tflops = 0;         // of dense attention, to compute its time from; 0: not told
  bool graphs = true;              // where the device records
  bool engine = false;             // real prompts of `depth` tokens through the server's engine
  DeviceOptions device;
  std::string json;  // file to write, or empty
};

// config.json of the options' model. One of random weights takes sequences of `context_tokens`,
// whatever its file says.
Result<engine::ModelConfig> BenchModelConfig(const BenchOfflineOptions& options,
                                             int64_t context_tokens);
// The model, from files or of random weights; the last two as LoadModel takes them.
Result<std::unique_ptr<engine::Model>> LoadBenchModel(const BenchOfflineOptions& options,
                                                      const engine::ModelConfig& config,
                                                      kernels::Backend& backend,
                                                      int64_t context_tokens,
                                                      const kvcache::SparsePlan* residency);
// The plan, if streaming heads are to keep only what they see. kInvalidArgument: it has none.
Result<const kvcache::SparsePlan*> ResidencyOf(const BenchOfflineOptions& options,
                                               const kvcache::SparsePlan* plan);

// 0, or 2 with one line on `err`.
int RunBenchOffline(const BenchOfflineOptions& options, std::ostream& out, std::ostream& err);

}  // namespace lacuna::server
