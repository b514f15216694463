// Front door of engine/model: from a folder, or from a config with random weights, to a Model.
// One thread, at start.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "engine/loader/mapped_file.h"
#include "engine/loader/model_config.h"
#include "engine/model/head_order.h"
#include "engine/model/model.h"
#include "kernels/core/status.h"
#include "kernels/ops/backend.h"

namespace lacuna::engine {

// `context_tokens` is the longest sequence that will be served (0: the model's own maximum): it
// decides which factors a longrope model uses and bounds ModelInfo.context_tokens_max.
// `bf16_rope` rounds the rotary frequencies to bf16, as a Hugging Face module has them after
// .to(bfloat16): for comparing with logits made that way. Trained models want the exact ones.
// `residency`: its streaming heads keep only what they see, see HeadOrder; null: every head keeps
// all pages. kInvalidArgument: it is of another shape, or some head's window is not fixed.
Result<std::unique_ptr<Model>> LoadModel(const Folder& folder, kernels::Backend& backend,
                                         int64_t context_tokens = 0, bool bf16_rope = false,
                                         const kvcache::SparsePlan* residency = nullptr);

// A model without weights: `path` is a file like config.json, or a folder with one.
Result<ModelConfig> ReadShape(const std::string& path);

// Weights are a function of (config, seed) and the kind of device, where they are made: for
// benchmarks, where only shapes matter. `context_tokens` as above.
Result<std::unique_ptr<Model>> MakeRandomModel(ModelConfig config, uint64_t seed,
                                               kernels::Backend& backend,
                                               int64_t context_tokens = 0,
                                               const kvcache::SparsePlan* residency = nullptr);

// What a folder holds, checked as a load checks it (every tensor, every shape), with no weight
// prepared. weight_bytes are those of the files.
struct ModelSummary final {
  ModelConfig config;
  ModelInfo info;
  std::vector<kvcache::KvGroup> groups;
};
Result<ModelSummary> SummarizeModel(const Folder& folder);

// One group of all heads that keep all pages, one of all layers of each window and one of streaming
// heads, in the order of their first layer. `heads` may be null. A streaming group keeps the wider
// window of prompt and output.
std::vector<kvcache::KvGroup> MakeKvGroups(const ModelConfig& config,
                                           const HeadOrder* heads = nullptr);

}  // namespace lacuna::engine
