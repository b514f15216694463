// Executor: the StepRunner that runs steps of a model on a backend.
//
// A step goes to the device as one copy (StepImage), and its results come back as one; a step of
// decode rows alone, with plans or without, runs as a recorded graph where the device records
// (StepKind says when not). The host waits once per step. All memory is allocated at creation and
// by Attach, but for steps whose page lists or edits are longer than any so far. Engine thread
// only; the model, the backend and the storages outlive it.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "engine/execute/step_batch.h"
#include "engine/model/model.h"
#include "kernels/core/status.h"
#include "kernels/ops/backend.h"
#include "kvcache/pages/kv_storage.h"
#include "kvcache/sparse/metadata_storage.h"

namespace lacuna::engine {

struct ExecutorLimits final {
  int64_t step_tokens_max = 2048;  // rows of one step, decodes included
  int64_t running_max = 64;        // sequences of one step
  int64_t logit_rows_max = 64;     // rows of logits computed at once
  bool graphs = true;              // record decode steps, if the device can
  // What sequences may bring, resolved for the model, or plans of their paths with other dials.
  std::vector<std::shared_ptr<const kvcache::SparsePlan>> plans = {};
};

class Executor : public StepRunner {
 public:
  // Names the pages that steps read and write, before the first one; records the graphs. Apart
  // from creation, so that the pools can be sized by what the executor left. `metadata`: of all
  // stores that the plans need; null when they need none.
  virtual Status Attach(kvcache::KvStorage& storage,
                        kvcache::MetadataStorage* metadata = nullptr) = 0;
  // All logits [sampled rows, vocab] f32 on the host instead of choices (batch.rows is not read):
  // for comparing with other implementations. No step may be under way. Valid until the next call.
  virtual Result<TensorView> RunForLogits(const StepBatch& batch) = 0;
};

// kInvalidArgument: limits that cannot be; kExhausted: no memory for the workspace.
Result<std::unique_ptr<Executor>> MakeExecutor(Model& model, kernels::Backend& backend,
                                               const ExecutorLimits& limits);

}  // namespace lacuna::engine
