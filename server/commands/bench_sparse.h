// The sparse plan of a benchmark: a shipped profile with dials, for a model that may have no
// weights and so no artefacts. One thread.
#pragma once

#include <memory>

#include "engine/loader/model_config.h"
#include "kernels/core/status.h"
#include "kvcache/sparse/plan.h"
#include "server/commands/bench_offline_command.h"

namespace lacuna::server {

struct BenchPlan final {
  std::shared_ptr<const kvcache::SparsePlan> plan;  // null: dense
  bool made_up = false;  // tables of heads are made up: they say nothing of a trained model
};

// Of options.sparse_profile for the model of `config`. kInvalidArgument: one line.
Result<BenchPlan> MakeBenchPlan(const BenchOfflineOptions& options,
                                const engine::ModelConfig& config, int64_t page_tokens);

}  // namespace lacuna::server
