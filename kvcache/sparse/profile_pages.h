// What is generated from the field tables and the shipped profiles: the JSON Schema of a profile,
// docs/profiles.md, and what `lacuna profiles` prints. Pure functions; any thread.
#pragma once

#include <span>
#include <string>

#include "kvcache/sparse/plan.h"
#include "kvcache/sparse/profile_set.h"

namespace lacuna::kvcache {

// The text of configs/sparse/schema.json (JSON Schema 2020-12).
std::string ProfileSchema();

// The text of docs/profiles.md: the profiles with paper and departures, then every key.
std::string ProfileReference(std::span<const SparseProfile> profiles);

// One line per profile: name and summary.
std::string ListProfiles(std::span<const SparseProfile> profiles);

// A profile for people: paper, departures, dials, and the keys that differ from their defaults.
std::string DescribeProfile(const SparseProfile& profile);

// A resolved plan for people: what each layer does, bytes of metadata, and what is read at some
// lengths.
std::string DescribePlan(const SparsePlan& plan);

}  // namespace lacuna::kvcache
