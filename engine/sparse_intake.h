// What a request's plan means before it runs: whether this engine may take it, where its prompt may
// be cut, what the prefix cache may share of it. Functions of the request and of what is fixed at
// start; any thread.
#pragma once

#include <cstdint>

#include "engine/engine.h"
#include "engine/request.h"
#include "engine/sequence.h"
#include "kernels/core/status.h"
#include "kvcache/kv_cache.h"
#include "kvcache/sparse/plan.h"

namespace lacuna::engine {

// kInvalidArgument: one line, of the plan or of the key to change.
Status CheckSparse(const Request& request, const EngineParts& parts, const EngineConfig& config,
                   const kvcache::KvCache& cache);

// Makes the KV of a new sequence, and sets what the scheduler must know, with a plan or without.
void PrepareSparse(const EngineParts& parts, const kvcache::KvCache& cache, Sequence& sequence);

// Of how K and V of a prompt of so many tokens are computed, 0: densely. What a shared prefix must
// have in common beside its tokens.
uint64_t PromptFingerprint(const kvcache::SparsePlan& plan, int64_t prompt_tokens);

// Tokens at the end of a sparse prompt that are computed as such: no prefix of another prompt.
int64_t EndTokens(const kvcache::SparsePlan& plan);

}  // namespace lacuna::engine
