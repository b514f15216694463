#include "engine/loader/rope_config.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <string>

#include "engine/loader/bounded_json.h"
#include "kernels/core/dtype.h"

namespace lacuna::engine {
namespace {

constexpr double kFactorMax = 1e6;

// Slow channels are interpolated, fast ones kept, those between blended by wavelength.
void ScaleLlama3(const RopeConfig& config, std::vector<double>& inverse) {
  const double original = static_cast<double>(config.original_context_tokens);
  for (double& frequency : inverse) {
    const double wavelength = 2.0 * std::numbers::pi / frequency;
    if (wavelength > original / config.low_freq_factor) {
      frequency /= config.factor;
    } else if (wavelength >= original / config.high_freq_factor) {
      const double smooth = (original / wavelength - config.low_freq_factor) /
                            (config.high_freq_factor - config.low_freq_factor);
      frequency = (1.0 - smooth) * frequency / config.factor + smooth * frequency;
    }
  }
}

// The same blend, linear in the channel index between two numbers of rotations.
void ScaleYarn(const RopeConfig& config, std::vector<double>& inverse) {
  const double dim = static_cast<double>(config.rotary_dim);
  const auto channel = [&](double rotations) {
    return dim *
           std::log(static_cast<double>(config.original_context_tokens) /
                    (rotations * 2.0 * std::numbers::pi)) /
           (2.0 * std::log(config.theta));
  };
  double low = channel(config.beta_fast);
  double high = channel(config.beta_slow);
  if (config.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, dim - 1.0);
  if (low == high) high += 0.001;
  for (size_t i = 0; i < inverse.size(); ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    inverse[i] = inverse[i] / config.factor * ramp + inverse[i] * (1.0 - ramp);
  }
}

double YarnAttentionFactor(const RopeConfig& config) {
  const auto mscale = [&](double weight) {
    return config.factor <= 1.0 ? 1.0 : 0.1 * weight * std::log(config.factor) + 1.0;
  };
  if (config.mscale != 0.0 && config.mscale_all_dim != 0.0) {
    return mscale(config.mscale) / mscale(config.mscale_all_dim);
  }
  return mscale(1.0);
}

double LongRopeAttentionFactor(const RopeConfig& config) {
  if (config.factor <= 1.0) return 1.0;
  return std::sqrt(1.0 + std::log(config.factor) /
                             std::log(static_cast<double>(config.original_context_tokens)));
}

std::vector<double> ReadFactors(FieldReader& reader, const char* key, int64_t size) {
  std::vector<double> factors;
  const nlohmann::json* array = reader.Array(key, 4096);
  if (array != nullptr) {
    for (const nlohmann::json& value : *array) {
      const double factor = value.is_number() ? value.get<double>() : 0.0;
      if (!(factor > 0.0 && factor <= kFactorMax)) break;
      factors.push_back(factor);
    }
  }
  if (factors.size() != static_cast<size_t>(size)) {
    reader.Fail(key, std::to_string(size) + " positive numbers",
                std::to_string(factors.size()) + " good ones");
  }
  return factors;
}

std::optional<RopeType> ParseType(const std::string& name) {
  if (name == "default") return RopeType::kDefault;
  if (name == "linear") return RopeType::kLinear;
  if (name == "llama3") return RopeType::kLlama3;
  if (name == "yarn") return RopeType::kYarn;
  if (name == "longrope" || name == "su") return RopeType::kLongRope;
  return std::nullopt;
}

// The fields that only some types have; `rope` reads the rope object, whose type is set already.
void ReadScaling(FieldReader& rope, const RopeDefaults& defaults, RopeConfig& config) {
  constexpr int64_t kContextMax = 1 << 24;
  const bool has_original = config.type == RopeType::kLlama3 || config.type == RopeType::kYarn ||
                            config.type == RopeType::kLongRope;
  if (has_original) {
    const int64_t fallback = defaults.original_context_tokens > 0 ? defaults.original_context_tokens
                                                                  : defaults.context_tokens_max;
    config.original_context_tokens =
        rope.Int("original_max_position_embeddings", 2, kContextMax, fallback);
  }
  const double ratio = config.original_context_tokens == 0
                           ? 1.0
                           : static_cast<double>(defaults.context_tokens_max) /
                                 static_cast<double>(config.original_context_tokens);
  if (config.type == RopeType::kLongRope) {
    // A ratio that the config states by its two context lengths wins over `factor`.
    config.factor = defaults.original_context_tokens > 0
                        ? ratio
                        : rope.Double("factor", 1e-3, kFactorMax, ratio);
    config.short_factor = ReadFactors(rope, "short_factor", config.rotary_dim / 2);
    config.long_factor = ReadFactors(rope, "long_factor", config.rotary_dim / 2);
  } else if (config.type == RopeType::kYarn) {
    config.factor = rope.Double("factor", 1e-3, kFactorMax, ratio);
    config.beta_fast = rope.Double("beta_fast", 1e-6, kFactorMax, 32.0);
    config.beta_slow = rope.Double("beta_slow", 1e-6, kFactorMax, 1.0);
    config.truncate = rope.Bool("truncate", true);
    config.mscale = rope.Double("mscale", 0.0, kFactorMax, 0.0);
    config.mscale_all_dim = rope.Double("mscale_all_dim", 0.0, kFactorMax, 0.0);
  } else {
    config.factor = rope.Double("factor", 1e-3, kFactorMax);
  }
  if (config.type == RopeType::kLlama3) {
    config.low_freq_factor = rope.Double("low_freq_factor", 1e-6, kFactorMax);
    config.high_freq_factor = rope.Double("high_freq_factor", 1e-6, kFactorMax);
    if (config.high_freq_factor <= config.low_freq_factor) {
      rope.Fail("high_freq_factor", "more than low_freq_factor", "less or the same");
    }
  }
  if (rope.Has("attention_factor") &&
      (config.type == RopeType::kYarn || config.type == RopeType::kLongRope)) {
    config.attention_factor = rope.Double("attention_factor", 1e-6, kFactorMax);
  }
}

}  // namespace

RopeFrequencies ComputeRopeFrequencies(const RopeConfig& config, int64_t context_tokens,
                                       bool round_to_bf16) {
  RopeFrequencies out;
  out.inverse.resize(static_cast<size_t>(config.rotary_dim / 2));
  for (size_t i = 0; i < out.inverse.size(); ++i) {
    out.inverse[i] = std::pow(
        config.theta, -2.0 * static_cast<double>(i) / static_cast<double>(config.rotary_dim));
  }
  switch (config.type) {
    case RopeType::kDefault:
      break;
    case RopeType::kLinear:
      for (double& frequency : out.inverse) frequency /= config.factor;
      break;
    case RopeType::kLlama3:
      ScaleLlama3(config, out.inverse);
      break;
    case RopeType::kYarn:
      ScaleYarn(config, out.inverse);
      out.attention_factor = config.attention_factor.value_or(YarnAttentionFactor(config));
      break;
    case RopeType::kLongRope: {
      const std::vector<double>& factors = context_tokens > config.original_context_tokens
                                               ? config.long_factor
                                               : config.short_factor;
      for (size_t i = 0; i < out.inverse.size(); ++i) out.inverse[i] /= factors[i];
      out.attention_factor = config.attention_factor.value_or(LongRopeAttentionFactor(config));
      break;
    }
  }
  if (round_to_bf16) {
    for (double& frequency : out.inverse) {
      frequency = static_cast<double>(ToFloat(ToBF16(static_cast<float>(frequency))));
    }
  }
  return out;
}

RopeConfig ReadRopeConfig(FieldReader& reader, const RopeDefaults& defaults) {
  RopeConfig config;
  const nlohmann::json empty = nlohmann::json::object();
  const bool is_new = reader.Has("rope_parameters");
  const char* const key = is_new ? "rope_parameters" : "rope_scaling";
  const nlohmann::json* object = reader.Object(key);
  FieldReader rope(object != nullptr ? *object : empty, reader.path() + key + ".");

  const double outer_theta = reader.Double("rope_theta", 1.0 + 1e-6, 1e12, defaults.theta);
  config.theta = rope.Double("rope_theta", 1.0 + 1e-6, 1e12, outer_theta);
  const double outer_partial =
      reader.Double("partial_rotary_factor", 1e-3, 1.0, defaults.partial_rotary_factor);
  const double partial = rope.Double("partial_rotary_factor", 1e-3, 1.0, outer_partial);
  config.rotary_dim = static_cast<int64_t>(static_cast<double>(defaults.head_dim) * partial);
  if (config.rotary_dim < 2 || config.rotary_dim % 2 != 0) {
    rope.Fail("partial_rotary_factor", "an even number of rotary channels",
              std::to_string(config.rotary_dim));
  }
  const std::string name = rope.String("rope_type", rope.String("type", "default"));
  const std::optional<RopeType> type = ParseType(name);
  if (!type) {
    rope.Fail("rope_type", "default, linear, llama3, yarn or longrope",
              Describe(nlohmann::json(name)));
  } else if (*type != RopeType::kDefault && rope.status().ok()) {
    config.type = *type;
    ReadScaling(rope, defaults, config);
  }
  reader.Fail(rope.status());
  return config;
}

}  // namespace lacuna::engine
