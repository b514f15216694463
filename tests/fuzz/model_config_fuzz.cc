// Any text as config.json (and, after a NUL, generation_config.json): a config within its bounds,
// whose frequencies are finite, or one line of error.
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "engine/loader/model_config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const size_t border = text.find('\0');
  const auto config = lacuna::engine::ParseModelConfig(
      text.substr(0, border), border == std::string_view::npos ? "" : text.substr(border + 1));
  if (!config.ok()) {
    if (config.status().message().find('\n') != std::string::npos) std::abort();
    return 0;
  }
  if (config->q_heads % config->kv_heads != 0) std::abort();
  for (const lacuna::engine::RopeConfig& rope : config->ropes) {
    const auto frequencies =
        lacuna::engine::ComputeRopeFrequencies(rope, config->context_tokens_max);
    for (const double frequency : frequencies.inverse) {
      if (!std::isfinite(frequency)) std::abort();
    }
    if (!std::isfinite(frequencies.attention_factor)) std::abort();
  }
  return 0;
}
