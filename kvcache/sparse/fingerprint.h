// Stable 64-bit fingerprints of plans: the same in every process and on every machine. Pure.
#pragma once

#include <cstdint>
#include <span>

#include "kvcache/sparse/plan.h"

namespace lacuna::kvcache {

// Of what changes the K and V of a prompt; 0 for a prefill that is dense for every head.
uint64_t KvFingerprint(const SparsePlan& plan);
// Of everything that changes an output; 0 for a plan that is dense everywhere.
uint64_t FullFingerprint(const SparsePlan& plan);
// Of everything but dials: rows of equal ones can run in one launch.
uint64_t PathFingerprint(const SparsePlan& plan);
uint64_t FingerprintOf(std::span<const int16_t> values);

}  // namespace lacuna::kvcache
