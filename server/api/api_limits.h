// ApiLimits: bounds of every field of a request, and defaults (section "limits" of the config).
// A plain struct with its field table; server/config fills it, HTTP and gRPC both apply it.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/core/field_table.h"

namespace lacuna::server {

struct ApiLimits final {
  int64_t json_depth_max = 32;
  int64_t json_nodes_max = 200'000;
  int64_t messages_max = 1024;
  int64_t prompts_max = 16;
  int64_t n_max = 8;
  int64_t choices_max = 32;
  int64_t logprobs_max = 20;
  int64_t logit_bias_max = 1024;
  int64_t stop_strings_max = 16;
  int64_t stop_bytes_max = 256;
  int64_t stop_token_ids_max = 64;
  int64_t template_output_bytes_max = 8 << 20;
  int64_t template_steps_max = 1'000'000;
  int64_t max_tokens_default = 4096;
  int64_t deadline_ms = 600'000;
  int64_t text_workers = 1;
  int64_t text_queue_len_max = 256;
  bool clamp_max_tokens = true;
  bool strict_fields = false;
};

inline const std::vector<Field<ApiLimits>>& ApiLimitFields() {
  using L = ApiLimits;
  static const std::vector<Field<L>> kFields = {
      {"json_depth_max", "Nesting of a JSON body.", &L::json_depth_max, 4, 256},
      {"json_nodes_max", "Values in a JSON body.", &L::json_nodes_max, 16, 1 << 26},
      {"messages_max", "Messages of one chat request.", &L::messages_max, 1, 1 << 20},
      {"prompts_max", "Prompts of one completions request.", &L::prompts_max, 1, 4096},
      {"n_max", "Choices per prompt.", &L::n_max, 1, 128},
      {"choices_max", "Choices of one request, over all its prompts.", &L::choices_max, 1, 4096},
      {"logprobs_max", "Alternatives per token.", &L::logprobs_max, 0, 20},
      {"logit_bias_max", "Entries of logit_bias.", &L::logit_bias_max, 0, 1 << 20},
      {"stop_strings_max", "Stop strings.", &L::stop_strings_max, 0, 1024},
      {"stop_bytes_max", "Bytes of one stop string.", &L::stop_bytes_max, 1, 1 << 16},
      {"stop_token_ids_max", "Stop token ids.", &L::stop_token_ids_max, 0, 1 << 16},
      {"template_output_bytes_max", "Bytes that a chat template may write.",
       &L::template_output_bytes_max, 64, 1 << 30},
      {"template_steps_max", "Work that a chat template may do.", &L::template_steps_max, 100,
       1 << 30},
      {"max_tokens_default",
       "Tokens generated when a chat request names no limit; 0: up to the context.",
       &L::max_tokens_default, 0, 1 << 24},
      {"deadline_ms", "A request is ended after this time.", &L::deadline_ms, 1, 86'400'000},
      {"text_workers", "Threads for JSON, templates and tokenizing.", &L::text_workers, 1, 64},
      {"text_queue_len_max", "Requests that wait for such a thread; one more is answered 503.",
       &L::text_queue_len_max, 1, 1 << 20},
      {"clamp_max_tokens", "Cut max_tokens to what the context leaves; false: answer 400 instead.",
       &L::clamp_max_tokens},
      {"strict_fields", "Answer 400 to unknown fields instead of ignoring them.",
       &L::strict_fields},
  };
  return kFields;
}

}  // namespace lacuna::server
