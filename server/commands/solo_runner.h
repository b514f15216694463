// SoloRunner: a few sequences of equal length on one model, without an engine: for verify and the
// offline benchmark. One thread.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/execute/executor.h"
#include "engine/model/model.h"
#include "kernels/core/ids.h"
#include "kernels/core/status.h"
#include "kernels/ops/backend.h"
#include "kvcache/pages/kv_storage.h"

namespace lacuna::server {

struct SoloLimits final {
  int64_t sequences = 1;
  int64_t tokens_max = 1;       // of one sequence
  int64_t step_tokens_max = 1;  // of one step
  int64_t logit_rows_max = 1;   // computed at once
  bool graphs = true;
};

class SoloRunner final {
 public:
  // `model` and `backend` outlive the runner.
  static Result<std::unique_ptr<SoloRunner>> Create(engine::Model& model, kernels::Backend& backend,
                                                    const SoloLimits& limits);

  // Whether steps overlap: Launch returns before the step is done.
  bool asynchronous() const { return executor_->asynchronous(); }
  // Runs tokens of sequence 0 from `first_position` on, in one step. Logits [wanted, vocab] f32 of
  // the tokens from `logits_from` on; valid until the next call.
  Result<TensorView> RunForLogits(std::span<const TokenId> tokens, int64_t first_position,
                                  bool decode, int32_t logits_from);
  // Starts a step with tokens of one sequence; greedy choice after the last of them if `sample`.
  Status LaunchPrefill(int64_t sequence, std::span<const TokenId> tokens, int64_t first_position,
                       bool sample);
  // Starts a decode step of all sequences: at `position` each, with its token of `tokens`; empty:
  // with those that the step before chose, which nobody has to have waited for.
  Status LaunchDecode(std::span<const TokenId> tokens, int64_t position);
  // Of the oldest step not waited for; see StepRunner.
  Result<std::span<const kernels::SampleResult>> Wait() { return executor_->Wait(); }
  int64_t graph_steps() const { return graph_steps_; }

  // Fills the first `tokens` positions of every layer and sequence with random keys and values,
  // through AppendKv.
  Status FillRandom(int64_t tokens, uint64_t seed);

 private:
  SoloRunner(engine::Model& model, kernels::Backend& backend, const SoloLimits& limits)
      : model_(model), backend_(backend), limits_(limits) {}
  // Appends the sequence to batch_.
  void Add(int64_t sequence, engine::StepSequence step, int64_t tokens);
  Status Launch();

  engine::Model& model_;
  kernels::Backend& backend_;
  SoloLimits limits_;
  int64_t sequence_pages_ = 0;
  std::unique_ptr<kvcache::KvStorage> storage_;
  std::unique_ptr<engine::Executor> executor_;
  // 0, 1, 2, ...: page i of sequence s is s * sequence_pages_ + i, and holds its tokens
  // [i * page_tokens, ...).
  std::vector<int32_t> numbers_;
  engine::StepBatch batch_;
  std::vector<kvcache::PageSpan> spans_;  // [sequences, groups] of the batch
  int64_t graph_steps_ = 0;
};

// The most likely token of a row; ties: the lowest id.
TokenId ArgMax(std::span<const float> logits);

}  // namespace lacuna::server
