// What the keys of a profile must not say together: combinations that no kernel could run, or that
// would compute something other than they claim. One line per error.
#pragma once

#include <string>
#include <vector>

#include "kvcache/sparse/profile.h"

namespace lacuna::kvcache {

// "PROFILE: KEY: got X, need Y" for every broken rule; empty: the profile is legal. Each single
// value is taken to be in its bounds (the reader's business).
std::vector<std::string> CheckProfile(const SparseProfile& profile);

}  // namespace lacuna::kvcache
