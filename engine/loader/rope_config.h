// RopeConfig: the rotary embedding of some layers, and the frequencies that it stands for.
// Pure functions, as Hugging Face's modeling_rope_utils computes them; any thread.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "kernels/core/status.h"

namespace lacuna::engine {

class FieldReader;

enum class RopeType { kDefault, kLinear, kLlama3, kYarn, kLongRope };

struct RopeConfig final {
  RopeType type = RopeType::kDefault;
  int64_t rotary_dim = 0;  // channels of a head that turn; even
  double theta = 10000.0;
  double factor = 1.0;
  int64_t original_context_tokens = 0;          // llama3, yarn, longrope
  double low_freq_factor = 1.0;                 // llama3 (Grattafiori et al. 2024)
  double high_freq_factor = 4.0;                // llama3
  double beta_fast = 32.0;                      // yarn (Peng et al. 2023)
  double beta_slow = 1.0;                       // yarn
  bool truncate = true;                         // yarn: whole-channel borders of the ramp
  double mscale = 0.0, mscale_all_dim = 0.0;    // yarn, when both are set (DeepSeek)
  std::vector<double> short_factor = {};        // longrope (Ding et al. 2024): per channel pair
  std::vector<double> long_factor = {};         // longrope
  std::optional<double> attention_factor = {};  // yarn, longrope: in place of the computed one

  bool operator==(const RopeConfig&) const = default;
};

struct RopeFrequencies final {
  std::vector<double> inverse;    // [rotary_dim / 2], radians per position
  double attention_factor = 1.0;  // multiplies the cosines and sines
};

// `context_tokens` is the longest sequence that will be served: longrope takes its long factors
// when that exceeds the original context (Hugging Face switches in mid-sequence, which would leave
// keys of two kinds in the cache).
RopeFrequencies ComputeRopeFrequencies(const RopeConfig& config, int64_t context_tokens,
                                       bool round_to_bf16 = false);

struct RopeDefaults final {
  int64_t head_dim = 0;
  double theta = 10000.0;
  double partial_rotary_factor = 1.0;
  int64_t context_tokens_max = 0;       // max_position_embeddings
  int64_t original_context_tokens = 0;  // of the config's top level; 0: none
};

// Reads `rope_parameters` (new spelling, theta inside) or `rope_scaling` (old). An error is left in
// the reader.
RopeConfig ReadRopeConfig(FieldReader& reader, const RopeDefaults& defaults);

}  // namespace lacuna::engine
