// `lacuna serve`: wires config, model, engine and the two listeners together, and runs until a
// signal.
//
// Order of a start: config -> files -> memory -> bind -> ready. A failure in any prints one line
// and returns 2 (config), 4 (model) or 5 (device). The first SIGTERM or SIGINT drains, a second one
// ends the process at once; SIGHUP reads the key file again.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <ostream>
#include <string>
#include <vector>

#include "engine/execute/step_batch.h"

namespace lacuna::server {

struct ServeOptions final {
  std::string model;        // folder; empty: the config's, or the embedded model
  std::string load_format;  // these empty: the config's
  std::string device, precision;
  std::string sparse_profile;
  std::string config;  // file; empty: defaults
  std::string host;    // of both listeners; empty: the config's
  std::optional<int> port, grpc_port;
  std::vector<std::string> overrides;  // "section.key=value"
  // For tests: see AssemblyOptions.
  std::function<std::unique_ptr<engine::StepRunner>(std::unique_ptr<engine::StepRunner>)>
      wrap_runner;
};

int RunServe(const ServeOptions& options, std::ostream& out, std::ostream& err);

}  // namespace lacuna::server
