// `lacuna profiles`: the sparse profiles, what they say, and what they come to for a model. Loads
// no weight and touches no device.
#pragma once

#include <ostream>
#include <string>
#include <vector>

#include "kernels/core/status.h"
#include "kvcache/sparse/resolve.h"

namespace lacuna::server {

// "budget_tokens=2048", each. kInvalidArgument: "--set: got X, need dial=number".
Result<std::vector<kvcache::DialValue>> ParseDials(const std::vector<std::string>& texts);

struct ProfilesOptions final {
  std::string folder;      // further profiles; those of equal name replace the shipped ones
  bool schema = false;     // print the text of configs/sparse/schema.json instead
  bool reference = false;  // print the text of docs/profiles.md instead
};
// Lists the profiles. 0, or 2 and a line per error.
int RunProfiles(const ProfilesOptions& options, std::ostream& out, std::ostream& err);

struct ShowProfileOptions final {
  std::string folder;
  std::string name;
  std::string model;      // folder or config.json; empty: the embedded recall-12m
  std::string artefacts;  // file; empty: those that the model's folder holds
  int page_tokens = 64;
  std::vector<std::string> dials;  // "budget_tokens=2048"
};
// The profile and its plan for the model. 0, or 2 and a line per error.
int RunShowProfile(const ShowProfileOptions& options, std::ostream& out, std::ostream& err);

}  // namespace lacuna::server
