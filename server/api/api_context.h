// ApiContext: what the endpoints stand on. Made once at start and frozen, but for `draining`.
// Everything it points to outlives the HTTP server. Any thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "engine/engine.h"
#include "kernels/core/ids.h"
#include "server/admit/admit.h"
#include "server/api/api_limits.h"
#include "server/api/generation_fields.h"
#include "server/api/text_workers.h"
#include "server/metrics/metrics.h"
#include "server/sparse/sparse_service.h"
#include "server/text/chat_template.h"
#include "server/text/tokenizer.h"

namespace lacuna::server {

struct ApiContext final {
  engine::Engine& engine;
  const Tokenizer& tokenizer;
  const ChatTemplate* chat_template;  // null: the model has none
  Admit& admit;
  Metrics& metrics;
  TextWorkers& text_workers;
  ApiLimits limits;
  const SparseService* sparse = nullptr;  // null: dense attention only

  std::string model_name{};
  std::vector<std::string> aliases{};    // further names that requests may use
  std::string bos_token{}, eos_token{};  // for the chat template; may be empty
  int64_t vocab_size = 0;                // the model's
  int64_t created_s = 0;                 // unix time of the load, shown by /v1/models
  std::string system_fingerprint{};      // changes with the weights and the build
  std::string version{};

  std::atomic<bool> draining{false};

  bool KnowsModel(std::string_view name) const;
  bool Ready() const { return engine.healthy() && !draining.load(std::memory_order_relaxed); }
  ModelBounds bounds() const { return {vocab_size, engine.context_tokens_max()}; }
};

}  // namespace lacuna::server
