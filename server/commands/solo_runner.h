// SoloRunner: one sequence on one model, without an engine: for verify and the offline benchmark.
// Page i of every group holds tokens [i * page_tokens, ...). One thread.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/execute/step_batch.h"
#include "engine/model/model.h"
#include "kernels/core/ids.h"
#include "kernels/core/status.h"
#include "kernels/ops/backend.h"
#include "kvcache/pages/kv_storage.h"

namespace lacuna::server {

// From the command line's words to a backend.
struct DeviceOptions final {
  std::string device = "cpu";      // cpu | cuda
  std::string precision = "bf16";  // bf16 | fp32
  int threads = 0;                 // 0: one per physical core
};
Result<std::unique_ptr<kernels::Backend>> MakeBackendFor(const DeviceOptions& options);

class SoloRunner final {
 public:
  // Room for `tokens_max` tokens; steps of at most `step_tokens_max`, with logits of
  // `logit_rows_max` rows at once. `model` and `backend` outlive the runner.
  static Result<std::unique_ptr<SoloRunner>> Create(engine::Model& model, kernels::Backend& backend,
                                                    int64_t tokens_max, int64_t step_tokens_max,
                                                    int64_t logit_rows_max);

  // Runs the tokens from `first_position` on, in one step. Logits [wanted, vocab] f32 of the tokens
  // from `logits_from` on (-1: none); valid until the next call.
  Result<TensorView> RunStep(std::span<const TokenId> tokens, int64_t first_position, bool decode,
                             int32_t logits_from);
  // Fills the first `tokens` positions of every layer with random keys and values, through
  // AppendKv.
  Status FillRandom(int64_t tokens, uint64_t seed);

 private:
  SoloRunner(engine::Model& model, kernels::Backend& backend) : model_(model), backend_(backend) {}
  Status FillLayer(const kernels::KvPool& pool, int64_t tokens, std::span<const float> noise);

  engine::Model& model_;
  kernels::Backend& backend_;
  std::unique_ptr<kvcache::KvStorage> storage_;
  std::unique_ptr<engine::StepRunner> executor_;
  std::vector<int32_t> page_index_;  // 0, 1, 2, ...: both the pages and their logical indices
};

// The most likely token of a row; ties: the lowest id.
TokenId ArgMax(std::span<const float> logits);

}  // namespace lacuna::server
