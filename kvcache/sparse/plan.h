// SparsePlan: a profile resolved for one model: who selects, with what, and how much. Immutable.
//
// Numbers and enums only, no strings and no pointers but its own tables, so that both backends read
// one plan at run time. What chooses code (DecodePath, PrefillPath) stands apart from what is only
// numbers (DecodeDials, PrefillDials): rows of one step whose paths are equal run in one launch,
// whatever their budgets. Made by ResolvePlan (resolve.h); any thread.
#pragma once

#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

#include "kernels/ops/select_keys.h"
#include "kernels/ops/select_ranges.h"
#include "kernels/ops/selection.h"
#include "kvcache/sparse/artefacts.h"
#include "kvcache/sparse/kinds.h"

namespace lacuna::kvcache {

using kernels::DecodePath;
using kernels::MetadataSpec;
using kernels::PrefillDials;
using kernels::PrefillHead;
using kernels::PrefillPath;

// The numbers of a decode row. decode_counts.h turns them into counts of units at a length.
struct DecodeDials final {
  int32_t dense_below_tokens = 0;
  int32_t budget_tokens = 0;  // top_k: budget_tokens + fraction * N
  double fraction = 0;
  float p = 1;
  float threshold = 0;
  int32_t min_tokens = 0, max_tokens = 0;  // max 0: no limit
  int32_t sink_tokens = 0, local_tokens = 0;
  double budget_share = 0;  // of the budget, for sink and newest tokens; 0: local_tokens says it
  bool tail = true, inside_budget = true;
  int32_t refine_budget_tokens = 0, refine_min_tokens = 0;
  float refine_p = 1;
  int32_t refresh_steps = 1;  // of the request, counted since its own last choice
  float refresh_cosine = 1;
  bool operator==(const DecodeDials&) const = default;
};

static_assert(std::is_trivially_copyable_v<DecodeDials>);

// kDense reads everything; kPlanner too, and chooses by its attention; kSelect chooses by stored
// metadata or keys; kReuse reads the choice of its source.
enum class LayerRole : uint8_t { kDense, kPlanner, kSelect, kReuse };

struct LayerPlan final {
  LayerRole decode = LayerRole::kDense;
  bool prefill_sparse = false;
  bool stores_metadata = false, stores_refine_metadata = false;
  int32_t source = -1;  // layer whose choice is read: itself when it chooses, -1 when dense
  int32_t slot = -1;    // of the lists that the choice is kept in, 0 .. slots - 1; -1 when dense
  bool operator==(const LayerPlan&) const = default;
};

// kFull follows its layer. The others see a static shape in both phases and never select.
enum class HeadRole : uint8_t { kFull, kStreaming, kSpan };

struct HeadPlan final {
  HeadRole role = HeadRole::kFull;
  kernels::StaticShape prefill, decode;  // of kStreaming, and the sink of kSpan
  bool operator==(const HeadPlan& other) const;
};

struct SparsePlan final {
  std::string name;  // of the profile; for people
  AttentionShape shape;
  DecodePath decode;
  DecodeDials decode_dials;
  PrefillPath prefill;
  PrefillDials prefill_dials;
  std::vector<LayerPlan> layers;           // [layers]
  std::vector<HeadPlan> heads;             // [layers, kv_heads]
  std::vector<PrefillHead> prefill_heads;  // [layers, q_heads]; empty without sparse prefill
  std::vector<HeadSpan> spans;             // [layers, q_heads]; empty without kSpan
  std::vector<float> thresholds;           // [layers, q_heads]; empty without head_thresholds
  std::vector<int16_t> channels;  // [layers, kv_heads, decode.metadata.channels], ascending; labels
  int32_t slots = 0;              // selections that a sequence keeps at one time
  bool sparse_decode = false, sparse_prefill = false;  // anywhere
  bool static_heads = false;                           // some head is not kFull
  // The K and V of a prompt's tokens depend on what follows them (probes of the last rows, dense
  // last rows), so a reused prefix need not equal a computed one.
  bool prefill_depends_on_end = false;
  // Of all that changes the K and V of a prompt; 0: as dense. Part of the prefix cache's key.
  uint64_t kv_fingerprint = 0;
  // Of everything: what changes any output. 0: as dense. For K and V of generated tokens.
  uint64_t fingerprint = 0;
  // Of everything but dials: rows of equal ones run in one launch.
  uint64_t path_fingerprint = 0;
  bool operator==(const SparsePlan&) const = default;

  const HeadPlan& head(int32_t layer, int32_t kv_head) const {
    return heads[static_cast<size_t>(int64_t{layer} * shape.kv_heads + kv_head)];
  }
  const PrefillHead& prefill_head(int32_t layer, int32_t q_head) const {
    return prefill_heads[static_cast<size_t>(int64_t{layer} * shape.q_heads + q_head)];
  }
};

}  // namespace lacuna::kvcache
