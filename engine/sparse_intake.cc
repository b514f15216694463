#include "engine/sparse_intake.h"

#include <algorithm>
#include <numeric>
#include <string>

#include "engine/engine_config.h"
#include "kvcache/sparse/decode_counts.h"

namespace lacuna::engine {
namespace {

using kvcache::SparsePlan;

// Whether memory that was made for `known` serves `plan`: all but numbers that requests may set.
bool Serves(const SparsePlan& known, const SparsePlan& plan) {
  if (!(known.shape == plan.shape)) return false;
  if (known.path_fingerprint == plan.path_fingerprint) return true;
  // The mass that a prompt's queries keep is a number of the request too, though it stands with the
  // heads.
  return known.decode == plan.decode && known.prefill == plan.prefill &&
         known.layers == plan.layers && known.heads == plan.heads && known.spans == plan.spans &&
         known.thresholds == plan.thresholds && known.slots == plan.slots &&
         std::ranges::equal(known.prefill_heads, plan.prefill_heads, {},
                            &kvcache::PrefillHead::pattern, &kvcache::PrefillHead::pattern);
}

Status CheckResidency(const SparsePlan* plan, const SparsePlan& residency) {
  if (plan != nullptr && plan->heads == residency.heads) return OkStatus();
  const std::string got = plan == nullptr ? "dense attention" : "profile " + plan->name;
  return InvalidArgument("sparse: got " + got + ", need a profile with the head roles of " +
                         residency.name + ": this server stores no more of its streaming heads");
}

int64_t GrainTokens(const EngineParts& parts, const SparsePlan& plan) {
  return std::lcm(parts.prefill_grain_tokens(plan), parts.page_tokens);
}

// A prompt that is cut at grains alone needs room for one in a step.
Status CheckGrain(const Request& request, const EngineParts& parts, const EngineConfig& config,
                  const kvcache::KvCache& cache) {
  const SparsePlan& plan = *request.sparse.plan;
  const auto prompt_tokens = static_cast<int64_t>(request.prompt.size());
  if (kvcache::DensePrefill(plan, prompt_tokens)) return OkStatus();
  const int64_t grain = std::min(GrainTokens(parts, plan), prompt_tokens);
  const std::string needs = "sparse: prefill of profile " + plan.name + " computes " +
                            std::to_string(grain) + " tokens at once, ";
  if (config.step_tokens_max < grain) {
    return InvalidArgument(needs + "engine.step_tokens_max is " +
                           std::to_string(config.step_tokens_max));
  }
  if (request.prompt_logprobs >= 0 && parts.logit_rows_max != 0 &&
      parts.logit_rows_max < config.running_max + grain) {
    return InvalidArgument(needs + "too many for prompt_logprobs; ask for dense attention");
  }
  for (int g = 0; g < cache.groups(); ++g) {
    if (parts.groups[static_cast<size_t>(g)].full()) continue;  // holds the whole sequence
    if (parts.group_pages[static_cast<size_t>(g)] < cache.PagesFor(g, prompt_tokens, grain)) {
      return InvalidArgument(needs + "the pages of a window hold fewer; raise kv.pool_bytes");
    }
  }
  return OkStatus();
}

}  // namespace

Status CheckSparse(const Request& request, const EngineParts& parts, const EngineConfig& config,
                   const kvcache::KvCache& cache) {
  const SparsePlan* plan = request.sparse.plan.get();
  if (parts.residency != nullptr) {
    LACUNA_RETURN_IF_ERROR(CheckResidency(plan, *parts.residency));
  }
  if (plan == nullptr) return OkStatus();
  if (!parts.sparse_ops) {
    return InvalidArgument("sparse: this device has dense attention alone; got profile " +
                           plan->name);
  }
  const auto serves = [plan](const auto& known) { return Serves(*known, *plan); };
  if (std::ranges::none_of(parts.plans, serves)) {
    return InvalidArgument("sparse: profile " + plan->name +
                           " is none of those that this server was started for");
  }
  return CheckGrain(request, parts, config, cache);
}

uint64_t PromptFingerprint(const SparsePlan& plan, int64_t prompt_tokens) {
  uint64_t fingerprint = plan.kv_fingerprint;
  if (plan.sparse_prefill && kvcache::DensePrefill(plan, prompt_tokens)) {
    if (!plan.static_heads) return 0;
    fingerprint = ~fingerprint;  // the same heads stream, nothing else is sparse
  }
  // Spans grow with the prompt: only prompts of one length have K and V in common.
  if (!plan.spans.empty()) fingerprint ^= static_cast<uint64_t>(prompt_tokens) * 0x9e3779b97f4a7c15;
  return fingerprint;
}

int64_t EndTokens(const SparsePlan& plan) {
  const kvcache::PrefillDials& dials = plan.prefill_dials;
  const bool corrects = plan.prefill.correct != kernels::PrefillCorrectKind::kNone;
  // The incomplete stride is dense as well.
  const int64_t corrected = corrects ? dials.correct_last_rows + dials.correct_stride_rows : 0;
  return std::max<int64_t>(dials.last_rows, corrected);
}

void PrepareSparse(const EngineParts& parts, const kvcache::KvCache& cache, Sequence& sequence) {
  sequence.replays_output = parts.replays_output;
  uint64_t fingerprint = 0;
  int64_t grain_tokens = 0, end_tokens = 0;
  if (const SparsePlan* plan = sequence.request.sparse.plan.get(); plan != nullptr) {
    // K and V of its output are those of sparse decode, or behind a sparse prompt of dense decode;
    // prefill would give others.
    sequence.replays_output = sequence.replays_output || plan->fingerprint != 0;
    sequence.sparse.emplace(sequence.request.sparse, sequence.request.sampling.seed,
                            sequence.tokens);
    fingerprint = PromptFingerprint(*plan, sequence.prompt_tokens);
    if (!kvcache::DensePrefill(*plan, sequence.prompt_tokens)) {
      grain_tokens = GrainTokens(parts, *plan);
      end_tokens = EndTokens(*plan);
    }
  }
  if (sequence.replays_output) {
    sequence.shared_tokens_max = std::max<int64_t>(0, sequence.prompt_tokens - end_tokens);
  }
  sequence.kv = cache.MakeSequence(sequence.request.scope, fingerprint, grain_tokens);
}

}  // namespace lacuna::engine
