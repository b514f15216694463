// Per-request overrides: a table of dials, each a number of the profile.
#include <algorithm>
#include <cmath>
#include <set>

#include "kvcache/sparse/checker.h"
#include "kvcache/sparse/resolve.h"

namespace lacuna::kvcache {
namespace {

constexpr DialInfo kDials[] = {
    {"budget_tokens", "Keys that a generated token reads.", "decode.select.budget_tokens"},
    {"budget_fraction", "The same as a share of the sequence.", "decode.select.fraction"},
    {"top_p", "Attention mass that a generated token keeps.", "decode.select.p"},
    {"threshold", "Least score that is kept.", "decode.select.threshold"},
    {"refine_tokens", "Keys that the second choice keeps.", "decode.refine.budget_tokens"},
    {"refine_top_p", "Attention mass that the second choice keeps.", "decode.refine.p"},
    {"sink_tokens", "First tokens that are always read.", "decode.force.sink_tokens"},
    {"local_tokens", "Newest tokens that are always read.", "decode.force.local_tokens"},
    {"refresh_steps", "Steps from one choice to the next.", "decode.refresh.steps"},
    {"refresh_cosine", "Cosine of queries at which a choice is kept.", "decode.refresh.cosine"},
    {"dense_below_tokens", "Shorter sequences generate densely.",
     "decode.layers.dense_below_tokens"},
    {"prefill_top_p", "Attention mass that the prompt's queries keep.", "prefill.select.p"},
    {"prefill_fraction", "Share of its keys that a prompt's query reads.",
     "prefill.select.fraction"},
    {"prefill_sink_tokens", "First tokens that the prompt's queries always read.",
     "prefill.force.sink_tokens"},
    {"prefill_local_tokens", "Newest tokens that the prompt's queries always read.",
     "prefill.force.local_tokens"},
    {"prefill_dense_below_tokens", "Shorter prompts are computed densely.",
     "prefill.layers.dense_below_tokens"},
};

bool HasDial(const SparseProfile& p, std::string_view name) {
  const std::string& select = p.decode_select.kind;
  const std::string& prefill = p.prefill_select.kind;
  if (name.starts_with("budget_")) return select == "top_k";
  if (name == "top_p") return select == "top_p";
  if (name == "threshold")
    return select == "threshold" && p.decode_select.threshold_from == "profile";
  if (name == "refine_tokens") return p.decode_refine.kind == "top_k";
  if (name == "refine_top_p") return p.decode_refine.kind == "top_p";
  if (name == "refresh_steps") return p.decode_refresh.kind == "every_n";
  if (name == "refresh_cosine") return p.decode_refresh.kind == "cosine";
  if (name == "local_tokens") return p.sparse_decode() && p.decode_force.budget_share == 0;
  if (name == "prefill_top_p") {
    return (prefill == "top_p" || prefill == "cover") && p.prefill_select.p_from == "profile";
  }
  if (name == "prefill_fraction") return prefill == "top_k";
  return name.starts_with("prefill_") ? p.sparse_prefill() : p.sparse_decode();
}

std::string Names(std::span<const DialInfo> dials) {
  std::string names;
  for (const DialInfo& dial : dials) {
    names += (names.empty() ? "one of " : ", ") + std::string(dial.name);
  }
  return names.empty() ? "no dial: this profile has none" : names;
}

const BoundField* FindField(std::span<const BoundSection> sections, std::string_view key) {
  for (const BoundSection& section : sections) {
    for (const BoundField& field : section.fields) {
      if (key == std::string(section.name) + "." + std::string(field.name)) return &field;
    }
  }
  return nullptr;
}

// Whole numbers as such: a field of whole numbers takes no 2048.0.
ConfigJson NumberJson(double value) {
  constexpr double kExact = 9007199254740992.0;
  if (value == std::floor(value) && std::abs(value) <= kExact) return static_cast<int64_t>(value);
  return value;
}

}  // namespace

std::span<const DialInfo> AllDials() { return kDials; }

std::vector<DialInfo> DialsOf(const SparseProfile& profile) {
  std::vector<DialInfo> dials;
  std::ranges::copy_if(kDials, std::back_inserter(dials),
                       [&](const DialInfo& dial) { return HasDial(profile, dial.name); });
  return dials;
}

DialedProfile ApplyDials(const SparseProfile& profile, std::span<const DialValue> dials) {
  DialedProfile dialed{profile, {}};
  ConfigErrors errors(profile.name);
  const std::vector<BoundSection> sections = BindProfile(dialed.profile);
  const std::vector<DialInfo> known = DialsOf(profile);
  std::set<std::string_view> given;
  for (const DialValue& dial : dials) {
    const auto found = std::ranges::find(known, dial.name, &DialInfo::name);
    if (found == known.end()) {
      const bool exists = std::ranges::find(kDials, dial.name, &DialInfo::name) != std::end(kDials);
      errors.Add(dial.name, exists ? "a dial that this profile lacks" : "an unknown dial",
                 Names(known));
      continue;
    }
    if (!given.insert(dial.name).second) errors.Add(dial.name, "two values", "one");
    AssignField(NumberJson(dial.value), dial.name, *FindField(sections, found->key), errors);
  }
  DecodeSelectOptions& select = dialed.profile.decode_select;
  const bool tokens = given.contains("budget_tokens"), share = given.contains("budget_fraction");
  if (tokens && share) errors.Add("budget_fraction", "budget_tokens too", "one of the two");
  if (tokens) select.fraction = 0;
  if (share) select.budget_tokens = 0;
  dialed.errors = errors.lines();
  if (dialed.errors.empty()) dialed.errors = CheckProfile(dialed.profile);
  return dialed;
}

}  // namespace lacuna::kvcache
