#include "engine/execute/step_order.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <tuple>

#include "kvcache/sparse/decode_counts.h"

namespace lacuna::engine {
namespace {

using kvcache::DecodeDials;
using kvcache::SparsePlan;

// What stands together: 0 is dense.
struct Key final {
  uint64_t path = 0;
  int rank = 0;  // audited rows before others; chunks with shapes alone before sparse ones
  auto operator<=>(const Key&) const = default;
};

int32_t Scaled(int32_t tokens, float scale) {
  const double scaled = static_cast<double>(tokens) * static_cast<double>(scale);
  return static_cast<int32_t>(
      std::min(std::ceil(scaled), 0.5 * std::numeric_limits<int32_t>::max()));
}

// Of the mass that is let go, one part in `scale`.
float ScaledMass(float p, float scale) { return p >= 1 ? p : 1 - (1 - p) / scale; }

DecodeDials ScaleBudget(DecodeDials dials, float scale) {
  dials.budget_tokens = Scaled(dials.budget_tokens, scale);
  dials.fraction = std::min(dials.fraction * static_cast<double>(scale), 1.0);
  dials.min_tokens = Scaled(dials.min_tokens, scale);
  dials.max_tokens = Scaled(dials.max_tokens, scale);
  dials.p = ScaledMass(dials.p, scale);
  dials.refine_budget_tokens = Scaled(dials.refine_budget_tokens, scale);
  dials.refine_min_tokens = Scaled(dials.refine_min_tokens, scale);
  dials.refine_p = ScaledMass(dials.refine_p, scale);
  return dials;
}

Key DecodeKey(const StepSequence& sequence, const kernels::SelectRow& row, const StepOrder& order) {
  const SparsePlan* plan = sequence.plan;
  if (plan == nullptr || (!order.HasShapes(*plan) && row.counts.dense)) return {};
  return {.path = plan->path_fingerprint, .rank = sequence.audit ? 0 : 1};
}

Key ChunkKey(const StepSequence& sequence, const StepOrder& order) {
  const SparsePlan* plan = sequence.plan;
  if (plan == nullptr) return {};
  const bool dense = kvcache::DensePrefill(*plan, sequence.prompt_tokens);
  if (dense && !order.HasShapes(*plan)) return {};
  return {.path = plan->path_fingerprint, .rank = dense ? 0 : 1};
}

}  // namespace

bool IsDecode(const StepSequence& sequence) {
  return sequence.decode && sequence.tokens.size() == 1;
}

kernels::SelectRow MakeSelectRow(const StepSequence& sequence) {
  const SparsePlan& plan = *sequence.plan;
  const int64_t tokens = int64_t{sequence.first_position} + 1;
  kernels::SelectRow row;
  row.choose = kvcache::RefreshDue(plan, sequence.steps_since_choice);
  const int64_t kept_steps = row.choose ? 0 : sequence.steps_since_choice;
  DecodeDials dials = plan.decode_dials;
  if (sequence.budget_scale > 1) {
    // What CountUnits reads of a plan.
    SparsePlan scaled;
    scaled.decode = plan.decode;
    scaled.decode_dials = dials = ScaleBudget(dials, sequence.budget_scale);
    scaled.sparse_decode = plan.sparse_decode;
    row.counts = kvcache::CountUnits(scaled, tokens, kept_steps);
  } else {
    row.counts = kvcache::CountUnits(plan, tokens, kept_steps);
  }
  row.p = dials.p;
  row.threshold = dials.threshold;
  row.refine_p = dials.refine_p;
  row.refresh_cosine = dials.refresh_cosine;
  return row;
}

void OrderStep(const StepBatch& batch, bool split_heads, StepOrder& order) {
  order.split_heads = split_heads;
  const size_t count = batch.sequences.size();
  order.sequences.clear();
  order.decode.clear();
  order.prefill.clear();
  order.rows.assign(count, {});
  std::vector<Key> keys(count);
  bool sorted = true;
  for (const bool decode : {true, false}) {
    for (size_t i = 0; i < count; ++i) {
      const StepSequence& sequence = batch.sequences[i];
      if (IsDecode(sequence) != decode) continue;
      order.sequences.push_back(i);
      if (sequence.plan == nullptr) continue;
      if (decode) order.rows[i] = MakeSelectRow(sequence);
      keys[i] = decode ? DecodeKey(sequence, order.rows[i], order) : ChunkKey(sequence, order);
      sorted = sorted && keys[i].path == 0;
    }
    if (decode) order.decode_rows = static_cast<int64_t>(order.sequences.size());
  }
  if (sorted) return;
  const auto by_key = [&](size_t a, size_t b) { return keys[a] < keys[b]; };
  const auto chunks = order.sequences.begin() + order.decode_rows;
  std::stable_sort(order.sequences.begin(), chunks, by_key);
  std::stable_sort(chunks, order.sequences.end(), by_key);
  for (const bool decode : {true, false}) {
    std::vector<StepOrder::Class>& classes = decode ? order.decode : order.prefill;
    const std::span<const size_t> part = decode ? order.DecodeRows() : order.Chunks();
    Key last;
    for (size_t i = 0; i < part.size(); ++i) {
      const Key& key = keys[part[i]];
      if (key.path == 0) continue;
      const bool same = key.path == last.path && (decode || key.rank == last.rank);
      if (!same) {
        classes.push_back({.plan = batch.sequences[part[i]].plan,
                           .first = static_cast<int64_t>(i),
                           .sparse = key.rank == 1});
      }
      last = key;
      ++classes.back().count;
      if (decode && key.rank == 0) ++classes.back().audited;
    }
  }
}

}  // namespace lacuna::engine
