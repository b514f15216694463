// `lacuna inspect`: what a model folder holds. Loads no weight; checks every tensor's name and
// shape as a load would.
#pragma once

#include <ostream>
#include <string>

namespace lacuna::server {

struct InspectOptions final {
  std::string model;  // folder
};

// 0, or 2 with one line on `err`.
int RunInspect(const InspectOptions& options, std::ostream& out, std::ostream& err);

}  // namespace lacuna::server
