// Text of a profile -> SparseProfile, and back. Pure functions; any thread.
//
// Error lines read "PROFILE: KEY: got X, need Y". Unknown keys are errors that name the nearest
// known one. What keys mean together is the checker's business (checker.h).
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "kvcache/sparse/profile.h"

namespace lacuna::kvcache {

struct ProfileText final {
  std::string name;  // the file's name without .json
  std::string text;  // JSON with comments
};

struct ParsedProfile final {
  SparseProfile profile;
  std::vector<std::string> errors;  // all of them; empty: `profile` may be used
};

// The profile of that name, parsed and sound, or null. The pointer is good until the next call.
using FindBase = std::function<const SparseProfile*(std::string_view)>;

// Keys that the text does not name come from the profile it extends, else from the defaults.
// Departures of the base come before its own.
ParsedProfile ParseProfile(const ProfileText& text, const FindBase& find_base);

// What `text` extends: "" for nothing, or when the text is broken.
std::string BaseName(const ProfileText& text);

// JSON that ParseProfile reads back to an equal profile (but for `extends`, which it resolves):
// the keys at the top, and of the others those that differ from their defaults.
std::string PrintProfile(const SparseProfile& profile);

}  // namespace lacuna::kvcache
