// `lacuna check-config` and `lacuna print-config`. Neither touches a device.
#pragma once

#include <ostream>
#include <string>
#include <vector>

namespace lacuna::server {

struct CheckConfigOptions final {
  std::string file;
};
// 0 and "FILE: ok", or 2 and a line per error.
int RunCheckConfig(const CheckConfigOptions& options, std::ostream& out, std::ostream& err);

struct PrintConfigOptions final {
  std::string config;                  // file; empty: the defaults
  std::vector<std::string> overrides;  // "section.key=value"
  bool reference = false;              // the text of configs/serve.json instead
};
int RunPrintConfig(const PrintConfigOptions& options, std::ostream& out, std::ostream& err);

}  // namespace lacuna::server
