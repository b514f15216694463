#include "server/eval/variants.h"

#include <algorithm>
#include <cstdio>
#include <utility>

namespace lacuna::server {
namespace {

using Json = nlohmann::json;

std::string StringOf(const Json& object, const char* key) {
  const auto value = object.find(key);
  return value != object.end() && value->is_string() ? value->get<std::string>() : "";
}

// The list under `key`, of objects only; empty when it is something else.
std::vector<Json> ObjectsOf(const Json& object, const char* key) {
  std::vector<Json> list;
  const auto value = object.find(key);
  if (value == object.end() || !value->is_array()) return list;
  std::ranges::copy_if(*value, std::back_inserter(list),
                       [](const Json& j) { return j.is_object(); });
  return list;
}

Status Unknown(const std::string& name, const ServedProfiles& served) {
  const auto reason = served.left_out.find(name);
  if (reason != served.left_out.end()) {
    return InvalidArgument("--profiles: got " + name +
                           ", which this server lacks: " + reason->second);
  }
  std::string names = "all, dense";
  for (const auto& [known, dials] : served.dials) names += ", " + known;
  return InvalidArgument("--profiles: got " + name + ", need of " + names);
}

Result<std::vector<std::string>> Names(std::span<const std::string> asked,
                                       const ServedProfiles& served) {
  std::vector<std::string> names = {kEvalDense};  // what the others are compared with
  const auto add = [&](const std::string& name) {
    if (std::ranges::find(names, name) == names.end()) names.push_back(name);
  };
  for (const std::string& name : asked) {
    if (name == "all") {
      for (const auto& [known, dials] : served.dials) add(known);
    } else if (name == kEvalDense || served.dials.contains(name)) {
      add(name);
    } else {
      return Unknown(name, served);
    }
  }
  return names;
}

EvalVariant Default(const std::string& name, const ServedProfiles& served) {
  EvalVariant variant{name, name, 0, nullptr};
  if (served.known) variant.sparse = {{"profile", name}, {"usage", true}};
  return variant;
}

}  // namespace

std::string Percent(double share) {
  char text[32];
  std::snprintf(text, sizeof text, "%.4g %%", 100 * share);
  return text;
}

Result<ServedProfiles> ParseServedProfiles(std::string_view page) {
  const Json json = Json::parse(page, nullptr, false);
  if (!json.is_object() || !json.contains("data")) {
    return InvalidArgument("/v1/sparse/profiles: got an answer without data, need a list");
  }
  ServedProfiles served{true, {}, {}};
  for (const Json& profile : ObjectsOf(json, "data")) {
    std::vector<std::string>& dials = served.dials[StringOf(profile, "id")];
    for (const Json& dial : ObjectsOf(profile, "dials")) dials.push_back(StringOf(dial, "name"));
  }
  for (const Json& profile : ObjectsOf(json, "left_out")) {
    served.left_out[StringOf(profile, "id")] = StringOf(profile, "reason");
  }
  served.dials.erase(kEvalDense);
  return served;
}

Result<EvalPlan> PlanVariants(std::span<const std::string> profiles,
                              std::span<const double> fractions, const ServedProfiles& served) {
  LACUNA_ASSIGN_OR_RETURN(const std::vector<std::string> names, Names(profiles, served));
  EvalPlan plan;
  std::string fixed, decode_only;
  for (const std::string& name : names) {
    plan.variants.push_back(Default(name, served));
    if (name == kEvalDense) continue;
    const std::vector<std::string>& dials = served.dials.at(name);
    const auto has = [&](const char* dial) {
      return std::ranges::find(dials, dial) != dials.end();
    };
    const bool decode = has("budget_fraction"), prefill = has("prefill_fraction");
    const bool sparse_prefill = has("prefill_sink_tokens");
    if (!decode && !prefill) fixed += (fixed.empty() ? "" : ", ") + name;
    if (decode && !prefill && sparse_prefill) {
      decode_only += (decode_only.empty() ? "" : ", ") + name;
    }
    for (const double fraction : fractions) {
      if (!decode && !prefill) break;
      EvalVariant variant = Default(name, served);
      variant.label.append(" ").append(Percent(fraction));
      variant.fraction = fraction;
      if (decode) variant.sparse["budget_fraction"] = fraction;
      if (prefill) variant.sparse["prefill_fraction"] = fraction;
      plan.variants.push_back(std::move(variant));
    }
  }
  if (!fractions.empty() && !fixed.empty()) {
    plan.notes.push_back("Without a dial for a budget, so at their defaults only: " + fixed + ".");
  }
  if (!fractions.empty() && !decode_only.empty()) {
    plan.notes.push_back("The budget is decode's alone, prefill at its default: " + decode_only +
                         ".");
  }
  if (std::ranges::find(profiles, "all") != profiles.end()) {
    std::map<std::string, std::string> by_reason;
    for (const auto& [name, reason] : served.left_out) {
      std::string& list = by_reason[reason];
      list += (list.empty() ? "" : ", ") + name;
    }
    for (const auto& [reason, list] : by_reason) {
      plan.notes.push_back("Not on this server: " + list + " (" + reason + ").");
    }
  }
  return plan;
}

}  // namespace lacuna::server
