#include "kvcache/sparse/fingerprint.h"

#include <bit>
#include <concepts>
#include <type_traits>

#include "kernels/core/random.h"

namespace lacuna::kvcache {
namespace {

// Raised when the meaning of a field changes: pages of older meaning must not be found.
constexpr uint64_t kVersion = 2;

// Each value is mixed in. Not for values that a caller could choose in order to collide: profiles
// are the operator's, and dials have few values.
class Fingerprint final {
 public:
  template <typename... Values>
  void Add(const Values&... values) {
    ((state_ = MixIn(state_, Bits(values))), ...);
  }
  // Never 0, which stands for "dense".
  uint64_t value() const { return state_ == 0 ? 1 : state_; }

 private:
  template <typename Value>
  static uint64_t Bits(Value value) {
    if constexpr (std::is_same_v<Value, float>) {
      return std::bit_cast<uint32_t>(value + 0.0f);  // -0 is 0
    } else if constexpr (std::is_same_v<Value, double>) {
      return std::bit_cast<uint64_t>(value + 0.0);
    } else if constexpr (std::is_enum_v<Value>) {
      return static_cast<uint64_t>(static_cast<std::underlying_type_t<Value>>(value));
    } else {
      return static_cast<uint64_t>(static_cast<int64_t>(value));
    }
  }
  uint64_t state_ = kVersion;
};

void AddShape(const AttentionShape& s, Fingerprint& f) {
  f.Add(s.layers, s.q_heads, s.kv_heads, s.head_dim);
  for (const int32_t window : s.layer_window_tokens) f.Add(window);
}

void AddPrefill(const SparsePlan& plan, Fingerprint& f) {
  const PrefillPath& p = plan.prefill;
  const PrefillDials& d = plan.prefill_dials;
  f.Add(p.estimate, p.probe_place, p.pool, p.select, p.scope, p.inclusive, p.correct,
        p.block_tokens, p.stride_tokens, p.cell_tokens);
  f.Add(d.dense_below_tokens, d.probe_rows, d.probe_fraction, d.low_channels, d.high_channels,
        d.js_threshold, d.budget_tokens, d.fraction, d.min_tokens, d.max_tokens, d.sink_tokens,
        d.local_tokens, d.local_fraction, d.last_rows, d.correct_stride_rows, d.correct_last_rows);
  for (int32_t layer = 0; layer < plan.shape.layers; ++layer) {
    const bool sparse = plan.layers[static_cast<size_t>(layer)].prefill_sparse;
    f.Add(sparse);
    for (int32_t head = 0; sparse && head < plan.shape.q_heads; ++head) {
      const PrefillHead& one = plan.prefill_head(layer, head);
      f.Add(one.pattern.kind, one.pattern.a, one.pattern.b, one.p);
    }
  }
}

void AddMetadata(const MetadataSpec& m, Fingerprint& f) {
  f.Add(m.kind, m.precision, m.sub_tokens, m.window_tokens, m.channels, m.channel_lists);
}

void AddPath(const DecodePath& p, Fingerprint& f) {
  f.Add(p.unit_tokens, p.refine_unit_tokens, p.score, p.query, p.normalise, p.pool, p.owner,
        p.reduce, p.select, p.inclusive, p.head_thresholds, p.refine, p.refine_reduce,
        p.refine_inclusive, p.refresh, p.correct);
}

void AddDecode(const SparsePlan& plan, Fingerprint& f) {
  const DecodePath& p = plan.decode;
  const DecodeDials& d = plan.decode_dials;
  AddMetadata(p.metadata, f);
  AddMetadata(p.refine_metadata, f);
  AddPath(p, f);
  f.Add(d.dense_below_tokens, d.budget_tokens, d.fraction, d.p, d.threshold, d.min_tokens,
        d.max_tokens, d.sink_tokens, d.local_tokens, d.budget_share, d.tail, d.inside_budget,
        d.refine_budget_tokens, d.refine_min_tokens, d.refine_p, d.refresh_steps, d.refresh_cosine);
  for (const LayerPlan& layer : plan.layers) f.Add(layer.decode, layer.source);
  for (const float threshold : plan.thresholds) f.Add(threshold);
}

}  // namespace

uint64_t KvFingerprint(const SparsePlan& plan) {
  if (!plan.sparse_prefill && !plan.static_heads) return 0;
  Fingerprint f;
  AddShape(plan.shape, f);
  f.Add(plan.sparse_prefill);
  if (plan.sparse_prefill) AddPrefill(plan, f);
  for (const HeadPlan& head : plan.heads) {
    f.Add(head.role, head.prefill.window_tokens, head.prefill.sink_tokens);
  }
  for (const HeadSpan& span : plan.spans) f.Add(span.alpha, span.beta);
  return f.value();
}

uint64_t FullFingerprint(const SparsePlan& plan) {
  if (!plan.sparse_prefill && !plan.static_heads && !plan.sparse_decode) return 0;
  Fingerprint f;
  f.Add(KvFingerprint(plan));
  AddShape(plan.shape, f);
  f.Add(plan.sparse_decode);
  if (plan.sparse_decode) AddDecode(plan, f);
  for (const HeadPlan& head : plan.heads) {
    f.Add(head.role, head.decode.window_tokens, head.decode.sink_tokens);
  }
  return f.value();
}

uint64_t PathFingerprint(const SparsePlan& plan) {
  Fingerprint f;
  AddShape(plan.shape, f);
  AddMetadata(plan.decode.metadata, f);
  AddMetadata(plan.decode.refine_metadata, f);
  AddPath(plan.decode, f);
  for (const LayerPlan& layer : plan.layers) {
    f.Add(layer.decode, layer.prefill_sparse, layer.source, layer.slot);
  }
  for (const HeadPlan& head : plan.heads) {
    f.Add(head.role, head.prefill.window_tokens, head.prefill.sink_tokens,
          head.decode.window_tokens, head.decode.sink_tokens);
  }
  for (const HeadSpan& span : plan.spans) f.Add(span.alpha, span.beta);
  for (const float threshold : plan.thresholds) f.Add(threshold);
  const PrefillPath& p = plan.prefill;
  f.Add(p.estimate, p.probe_place, p.pool, p.select, p.scope, p.inclusive, p.correct,
        p.block_tokens, p.stride_tokens, p.cell_tokens);
  for (const PrefillHead& one : plan.prefill_heads) {
    f.Add(one.pattern.kind, one.pattern.a, one.pattern.b, one.p);
  }
  return f.value();
}

uint64_t FingerprintOf(std::span<const int16_t> values) {
  Fingerprint f;
  f.Add(values.size());
  for (const int16_t value : values) f.Add(value);
  return f.value();
}

}  // namespace lacuna::kvcache
