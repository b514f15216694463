// GenerationFields: the parameters that completions and chat share, validated. Pure parsing.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/sample/params.h"
#include "server/api/api_limits.h"
#include "server/api/field_reader.h"
#include "server/api/sparse_fields.h"

namespace lacuna::server {

struct GenerationFields final {
  std::string model;
  engine::SamplingParams sampling;    // max_tokens and logprobs are set by the endpoint
  std::optional<int64_t> max_tokens;  // nothing: the endpoint's default
  bool has_seed = false;
  int32_t n = 1;
  std::vector<std::string> stop;
  bool include_stop = false;
  bool skip_special_tokens = true;
  bool stream = false;
  bool include_usage = false;
  bool continuous_usage = false;
  int32_t priority = 0;
  int64_t deadline_ms = 0;  // 0: the server's
  std::string cache_salt;
  SparseFields sparse;
};

// What a request must not exceed besides ApiLimits.
struct ModelBounds final {
  int64_t vocab_size = 0;
  int64_t context_tokens_max = 0;
};

// Reads them all; errors stay in `reader`.
GenerationFields ReadGenerationFields(FieldReader& reader, const ApiLimits& limits,
                                      const ModelBounds& bounds);

}  // namespace lacuna::server
