// DecodeCounts: a row's dials at one length, as counts of units: all that a selector needs to know
// beside the scores. The host computes it for every row of a step; backends read it by value.
//
// A row of N tokens, its own included, has ceil(N / unit_tokens) units. The first sink_units and
// the last local_units are read in any case; of those between, selectors keep the best. Equal
// scores: the older unit (smaller id) first. Pure functions; any thread.
#pragma once

#include <cstdint>

#include "kvcache/sparse/plan.h"

namespace lacuna::kvcache {

using kernels::DecodeCounts;

// `kept_steps`: decode steps since the choice that the row reads was made, 0 when it is made now. A
// kept choice knows nothing of units that were forced then, so these stay forced.
DecodeCounts CountUnits(const SparsePlan& plan, int64_t total_tokens, int64_t kept_steps = 0);

// What a decode row of a plan does at N tokens: its counts, its own numbers, and whether it chooses
// anew, `steps_since_choice` steps after its last choice (-1: it has none). `choice` is not filled.
// `budget_scale` widens its budget: so many times the keys, or that part of the mass let go.
kernels::SelectRow MakeSelectRow(const SparsePlan& plan, int64_t total_tokens,
                                 int64_t steps_since_choice, float budget_scale = 1);

// budget_tokens + fraction * N within min and max; of select top_k.
int64_t BudgetTokens(const DecodeDials& dials, int64_t total_tokens);

// Whether a row chooses anew, `steps_since` decode steps of the request after its last choice
// (-1: it has none). With kCosine the device may still choose anew after a false.
// Lists of a kept choice are finalised again all the same: sink and newest units move on.
bool RefreshDue(const SparsePlan& plan, int64_t steps_since);

// Most entries (pages) of one list for sequences of up to `total_tokens`: the capacity that a
// captured graph needs.
int64_t ListPagesMax(const SparsePlan& plan, int64_t total_tokens);

// Tokens that a head of this span sees at N: alpha + beta * N, up to a multiple of 64, at least
// 128.
int64_t SpanTokens(const HeadSpan& span, int64_t total_tokens);
// The static shape of a kv head in one phase; {} for kFull. A span's is the widest of its group.
kernels::StaticShape DecodeShape(const SparsePlan& plan, int32_t layer, int32_t kv_head,
                                 int64_t total_tokens);
kernels::StaticShape PrefillShape(const SparsePlan& plan, int32_t layer, int32_t kv_head,
                                  int64_t total_tokens);

// Whether a prompt of so many tokens is computed densely.
bool DensePrefill(const SparsePlan& plan, int64_t prompt_tokens);

}  // namespace lacuna::kvcache
