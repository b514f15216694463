// Executor: runs a StepBatch on a model: fills the step's arrays, calls Forward, gives back logits.
//
// All of its memory is allocated at creation; only a step that wants more rows of logits than
// logit_rows_max (prompt logprobs) may enlarge the host buffer that returns them. Engine thread
// only; the model, the backend and the storage outlive it.
#pragma once

#include <cstdint>
#include <memory>

#include "engine/execute/step_batch.h"
#include "engine/model/model.h"
#include "kernels/core/status.h"
#include "kernels/ops/backend.h"
#include "kvcache/pages/kv_storage.h"

namespace lacuna::engine {

struct ExecutorLimits final {
  int64_t step_tokens_max = 2048;  // rows of one step, decodes included
  int64_t running_max = 64;        // sequences of one step
  int64_t logit_rows_max = 64;     // rows of logits computed at once
};

// kInvalidArgument: limits that cannot be; kExhausted: no memory for the workspace.
Result<std::unique_ptr<StepRunner>> MakeExecutor(Model& model, kernels::Backend& backend,
                                                 kvcache::KvStorage& storage,
                                                 const ExecutorLimits& limits);

}  // namespace lacuna::engine
