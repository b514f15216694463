// Any text as a config: it ends in values within their bounds or in one-line errors, and what is
// printed reads back to the same. The first line, when it begins with '=', is an override.
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>
#include <vector>

#include "server/config/server_config.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view text(reinterpret_cast<const char*>(data), size);
  std::vector<std::string> overrides;
  if (text.starts_with("=")) {
    const size_t end = text.find('\n');
    overrides.emplace_back(text.substr(1, end == std::string_view::npos ? end : end - 1));
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
  }
  const lacuna::server::LoadedConfig loaded = lacuna::server::ParseConfig(text, "fuzz", overrides);
  for (const std::string& line : loaded.errors) {
    if (line.find('\n') != std::string::npos) std::abort();
  }
  if (!loaded.errors.empty()) return 0;
  const std::string printed = lacuna::server::PrintConfig(loaded.config);
  const lacuna::server::LoadedConfig again = lacuna::server::ParseConfig(printed, "printed");
  // Text that is no UTF-8 can come from an override only, and is printed as U+FFFD.
  if (!again.errors.empty()) std::abort();
  if (overrides.empty() && lacuna::server::PrintConfig(again.config) != printed) std::abort();
  return 0;
}
