// EngineConfig: limits and scheduling knobs of the engine. SEAM.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/core/field_table.h"

namespace lacuna::engine {

// Defaults of step_tokens_max: on a CPU other sequences wait long for a step, on a GPU they do not.
inline constexpr int64_t kStepTokensOfCpu = 2048, kStepTokensOfDevice = 8192;

struct EngineConfig final {
  bool deterministic = false;
  // Tokens of one step; longer prompts are chunked. 0 only in files: the default of the device.
  int64_t step_tokens_max = kStepTokensOfCpu;
  int64_t running_max = 64;            // sequences that hold pages
  int64_t queue_len_max = 1024;        // waiting requests
  int64_t queue_tokens_max = 8 << 20;  // prompt tokens of waiting requests
  int64_t context_tokens_max = 0;      // 0: the model's
  bool cuda_graphs = true;
  int64_t events_max = 256;  // unread events of one request before it is failed
};

inline const std::vector<Field<EngineConfig>>& EngineFields() {
  static const std::vector<Field<EngineConfig>> kFields = {
      {"deterministic", "Temperature 0 gives bit-equal tokens alone or batched, whole or chunked.",
       &EngineConfig::deterministic},
      {"step_tokens_max",
       "Tokens in one step; longer prompts are prefilled in chunks. 0: 2048 on a CPU, 8192 on a "
       "GPU.",
       &EngineConfig::step_tokens_max, 0, 1 << 20},
      {"running_max", "Sequences that run at the same time.", &EngineConfig::running_max, 1, 4096},
      {"queue_len_max", "Requests that may wait; one more is answered 503.",
       &EngineConfig::queue_len_max, 1, 1 << 20},
      {"queue_tokens_max", "Prompt tokens of all waiting requests; more are answered 503.",
       &EngineConfig::queue_tokens_max, 1},
      {"context_tokens_max", "Longest sequence in tokens; 0 takes the model's.",
       &EngineConfig::context_tokens_max, 0, 1 << 24},
      {"cuda_graphs", "Run decode steps as recorded CUDA graphs; false: kernel by kernel.",
       &EngineConfig::cuda_graphs},
      {"events_max", "Unread events of one request before it is failed as too slow a reader.",
       &EngineConfig::events_max, 2, 1 << 20},
  };
  return kFields;
}

}  // namespace lacuna::engine
