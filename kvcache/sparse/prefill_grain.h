// Where the prompts of a plan may be cut into chunks, and the room that their key ranges need.
// kernels/ops/range_limits.h says more. Pure functions; any thread.
#pragma once

#include <cstdint>

#include "kernels/ops/range_limits.h"
#include "kvcache/sparse/plan.h"

namespace lacuna::kvcache {

using kernels::RangesMax;

// A chunk must begin at a multiple of this, and end at one or at the prompt's end; 1: anywhere.
// Reused prefixes end at multiples of it too. With a correction whose stride is no divisor of
// a cell it can be long.
inline int64_t PrefillGrainTokens(const SparsePlan& plan) {
  return plan.sparse_prefill ? kernels::PrefillGrainTokens(plan.prefill, plan.prefill_dials) : 1;
}

}  // namespace lacuna::kvcache
