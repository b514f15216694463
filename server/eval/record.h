// EvalRecord: one answer of an evaluation, with what it cost; a line of answers.jsonl. Plain
// values.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "kernels/core/status.h"

namespace lacuna::server {

struct EvalRecord final {
  std::string question, task, variant;
  int64_t context_tokens = 0;
  std::string error;  // empty: answered
  bool right = false;
  std::string text;
  int64_t prompt_tokens = 0, cached_tokens = 0, completion_tokens = 0;
  double ttft_s = 0;    // to the first content
  double decode_s = 0;  // from there to the last: completion_tokens - 1 steps
  // As the server counts them (usage.sparse); zeros: it did not say.
  int64_t dense_steps = 0, sparse_steps = 0;
  int64_t pages_considered = 0, pages_selected = 0;
  int64_t blocks_considered = 0, blocks_selected = 0;  // of prefill
  int64_t audited_steps = 0;
  double captured_mass = 0;  // mean over audited steps and layers

  bool operator==(const EvalRecord&) const = default;
  // Most of the prompt was computed for this answer, so that its TTFT tells about prefill.
  bool prefilled() const { return cached_tokens * 20 <= prompt_tokens; }
};

// From a response's usage.
void ReadUsage(const nlohmann::json& usage, EvalRecord& record);

nlohmann::ordered_json RecordJson(const EvalRecord& record);
// kInvalidArgument: "got X, need Y".
Result<EvalRecord> ParseRecord(std::string_view line);

}  // namespace lacuna::server
