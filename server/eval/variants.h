// What an evaluation compares: profiles at their defaults and scaled to budgets. Dials come from
// the server (/v1/sparse/profiles), so that its own profiles are known too. Pure functions.
#pragma once

#include <map>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/core/status.h"

namespace lacuna::server {

inline constexpr const char* kEvalDense = "dense";

struct EvalVariant final {
  std::string label;  // "quest", "quest 10 %"
  std::string profile;
  double fraction = 0;            // budget of tokens; 0: the profile's defaults
  nlohmann::ordered_json sparse;  // the request's field; null: leave it out
};

struct ServedProfiles final {
  bool known = false;                                     // false: not one of our servers
  std::map<std::string, std::vector<std::string>> dials;  // by profile
  std::map<std::string, std::string> left_out;            // profile -> reason
};
// Of the page's text. kInvalidArgument when it is something else.
Result<ServedProfiles> ParseServedProfiles(std::string_view page);

struct EvalPlan final {
  std::vector<EvalVariant> variants;  // dense first
  std::vector<std::string> notes;     // what has no budget, and what the server leaves out
};
// `profiles`: names, or "all". A fraction sets budget_fraction and prefill_fraction where a profile
// has them. kInvalidArgument names the flag and what exists.
Result<EvalPlan> PlanVariants(std::span<const std::string> profiles,
                              std::span<const double> fractions, const ServedProfiles& served);

// 0.05 -> "5 %", 0.125 -> "12.5 %"
std::string Percent(double share);

}  // namespace lacuna::server
