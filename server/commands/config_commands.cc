#include "server/commands/config_commands.h"

#include "server/config/server_config.h"

namespace lacuna::server {
namespace {

bool TellErrors(const LoadedConfig& loaded, std::ostream& err) {
  for (const std::string& error : loaded.errors) err << error << "\n";
  return !loaded.errors.empty();
}

}  // namespace

int RunCheckConfig(const CheckConfigOptions& options, std::ostream& out, std::ostream& err) {
  if (TellErrors(LoadConfig(options.file), err)) return 2;
  out << options.file << ": ok\n";
  return 0;
}

int RunPrintConfig(const PrintConfigOptions& options, std::ostream& out, std::ostream& err) {
  if (options.reference) {
    out << ReferenceConfig();
    return 0;
  }
  const LoadedConfig loaded = LoadConfig(options.config, options.overrides);
  if (TellErrors(loaded, err)) return 2;
  out << PrintConfig(loaded.config);
  return 0;
}

}  // namespace lacuna::server
