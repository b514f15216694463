#include "kvcache/sparse/resolve.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/ops/range_limits.h"
#include "kvcache/sparse/fingerprint.h"

namespace lacuna::kvcache {
namespace {

// `layer` of a model of `reference` layers, in one of `layers`; half rounds up.
int64_t ScaleLayer(int64_t layer, int64_t reference, int64_t layers) {
  return (2 * layer * layers + reference) / (2 * reference);
}

// Makes one plan; the steps run in the order of Run.
class Resolver final {
 public:
  Resolver(const SparseProfile& profile, const AttentionShape& shape,
           const SparseArtefacts& artefacts)
      : p_(profile), artefacts_(artefacts), errors_(profile.name) {
    plan_.name = profile.name;
    plan_.shape = shape;
  }

  ResolvedPlan Run() {
    CheckShape();
    if (errors_.lines().empty()) CheckArtefacts();
    if (errors_.lines().empty()) FillLayers();
    if (!errors_.lines().empty()) return {nullptr, errors_.lines()};
    FillHeads();
    FillDecode();
    FillChannels();
    FillPrefill();
    plan_.sparse_decode = std::ranges::any_of(
        plan_.layers, [](const LayerPlan& layer) { return layer.decode != LayerRole::kDense; });
    plan_.kv_fingerprint = KvFingerprint(plan_);
    plan_.fingerprint = FullFingerprint(plan_);
    plan_.path_fingerprint = PathFingerprint(plan_);
    return {std::make_shared<const SparsePlan>(std::move(plan_)), {}};
  }

 private:
  void CheckShape() {
    const AttentionShape& s = plan_.shape;
    const bool heads = s.layers > 0 && s.kv_heads > 0 && s.q_heads > 0 && s.head_dim > 1 &&
                       s.q_heads % s.kv_heads == 0;
    const bool windows = s.layer_window_tokens.empty() ||
                         s.layer_window_tokens.size() == static_cast<size_t>(s.layers);
    if (!heads || !windows || (s.page_tokens != 16 && s.page_tokens != 64)) {
      errors_.Add("model", "a shape that is none", "layers, heads, and pages of 16 or 64 tokens");
    }
  }

  void CheckArtefacts() {
    for (const ArtefactKind kind : NeededArtefacts(p_)) {
      if (artefacts_.Has(kind)) continue;
      errors_.Add("artefacts." + std::string(WordAt(kArtefactNames, kind)),
                  "nothing for this model", "a table (lacuna calibrate makes one)");
    }
  }

  // Layers of the profile in this model, ascending, without repeats.
  std::vector<int32_t> Layers(const std::vector<int64_t>& listed, std::string_view key,
                              bool scale_up) {
    const int64_t reference = p_.who.reference_layers, layers = plan_.shape.layers;
    std::vector<int32_t> result;
    for (const int64_t layer : listed) {
      const bool scaled = reference > 0 && (scale_up || layers < reference);
      const int64_t own = scaled ? ScaleLayer(layer, reference, layers) : layer;
      if (own >= layers && reference == 0) {
        errors_.Add(key, std::to_string(layer),
                    "less than the model's " + std::to_string(layers) + " layers");
      } else {
        result.push_back(static_cast<int32_t>(std::min(own, layers - 1)));
      }
    }
    std::ranges::sort(result);
    result.erase(std::unique(result.begin(), result.end()), result.end());
    return result;
  }

  bool HasWindow(int32_t layer) const {
    const std::vector<int32_t>& windows = plan_.shape.layer_window_tokens;
    return !windows.empty() && windows[static_cast<size_t>(layer)] > 0;
  }

  void FillLayers() {
    plan_.layers.resize(static_cast<size_t>(plan_.shape.layers));
    const auto dense = Layers(p_.decode_layers.dense_layers, "decode.layers.dense_layers", false);
    const bool measured = p_.decode_layers.planners_from == "artefact";
    const auto planners =
        measured ? artefacts_.planner_layers
                 : Layers(p_.decode_layers.planner_layers, "decode.layers.planner_layers", true);
    const auto prefill_dense =
        Layers(p_.prefill_layers.dense_layers, "prefill.layers.dense_layers", false);
    const auto first = Layers({p_.prefill_layers.first_layer}, "prefill.layers.first_layer", true);
    if (!errors_.lines().empty()) return;
    for (int32_t layer = 0; layer < plan_.shape.layers; ++layer) {
      plan_.layers[static_cast<size_t>(layer)].prefill_sparse =
          p_.sparse_prefill() && layer >= first[0] && !HasWindow(layer) &&
          !std::ranges::binary_search(prefill_dense, layer);
    }
    if (!p_.sparse_decode()) return;
    if (planners.empty()) {
      FillSelecting(dense);
    } else {
      FillPlanned(dense, planners);
    }
  }

  // Each layer chooses for itself and, with share_layers, for those after it up to a dense one.
  void FillSelecting(const std::vector<int32_t>& dense) {
    int64_t left = 0;  // layers that still read the last choice
    int32_t source = -1;
    for (int32_t layer = 0; layer < plan_.shape.layers; ++layer) {
      if (HasWindow(layer) || std::ranges::binary_search(dense, layer)) {
        left = 0;
        continue;
      }
      if (left == 0) {
        source = layer;
        left = p_.decode_layers.share_layers;
        Choose(layer, LayerRole::kSelect);
      } else {
        Reuse(layer, source);
      }
      --left;
    }
  }

  // A planner that no layer reads from only attends densely.
  void FillPlanned(const std::vector<int32_t>& dense, const std::vector<int32_t>& planners) {
    int32_t planner = -1;
    for (int32_t layer = 0; layer < plan_.shape.layers; ++layer) {
      if (std::ranges::binary_search(planners, layer)) {
        planner = HasWindow(layer) ? planner : layer;
        continue;
      }
      if (planner < 0 || HasWindow(layer) || std::ranges::binary_search(dense, layer)) continue;
      if (plan_.layers[static_cast<size_t>(planner)].slot < 0) {
        Choose(planner, LayerRole::kPlanner);
      }
      Reuse(layer, planner);
    }
  }

  void Choose(int32_t layer, LayerRole role) {
    LayerPlan& one = plan_.layers[static_cast<size_t>(layer)];
    one.decode = role;
    one.source = layer;
    one.slot = plan_.slots++;
    one.stores_metadata = role == LayerRole::kSelect && p_.decode_metadata.kind != "none";
    one.stores_refine_metadata =
        p_.decode_refine.kind != "none" && p_.decode_refine.source == "lowbit";
  }

  void Reuse(int32_t layer, int32_t source) {
    LayerPlan& one = plan_.layers[static_cast<size_t>(layer)];
    one.decode = LayerRole::kReuse;
    one.source = source;
    one.slot = plan_.layers[static_cast<size_t>(source)].slot;
  }

  void FillHeads() {
    const size_t count = static_cast<size_t>(int64_t{plan_.shape.layers} * plan_.shape.kv_heads);
    plan_.heads.resize(count);
    const HeadsKind kind = KindOf<HeadsKind>(kHeadsChoices, p_.who.heads);
    std::vector<size_t> order(count);
    std::iota(order.begin(), order.end(), size_t{0});
    if (kind == HeadsKind::kAll) return;
    if (kind == HeadsKind::kArtefact) {  // those that retrieve least; ties by layer, then head
      std::ranges::stable_sort(order, std::less<>(),
                               [&](size_t i) { return artefacts_.head_scores[i]; });
      order.resize(
          static_cast<size_t>(std::floor(p_.who.streaming_fraction * static_cast<double>(count))));
    }
    const int64_t local = p_.who.local_tokens, prompt = p_.who.prefill_local_tokens;
    const int32_t sink = static_cast<int32_t>(p_.who.sink_tokens);
    for (const size_t i : order) {
      if (HasWindow(static_cast<int32_t>(i) / plan_.shape.kv_heads)) continue;
      HeadPlan& head = plan_.heads[i];
      plan_.static_heads = true;
      if (kind == HeadsKind::kSpans) {
        head.role = HeadRole::kSpan;
        head.decode.sink_tokens = head.prefill.sink_tokens = sink;
        continue;
      }
      head.role = HeadRole::kStreaming;
      head.decode = {.window_tokens = static_cast<int32_t>(local), .sink_tokens = sink};
      head.prefill = {.window_tokens = static_cast<int32_t>(prompt > 0 ? prompt : local),
                      .sink_tokens = sink};
    }
    if (kind == HeadsKind::kSpans) plan_.spans = artefacts_.spans;
  }

  void FillDecode() {
    if (!p_.sparse_decode()) return;
    DecodePath& path = plan_.decode;
    const DecodeSelectOptions& select = p_.decode_select;
    const DecodeRefineOptions& refine = p_.decode_refine;
    path.unit_tokens = static_cast<int32_t>(select.unit_tokens);
    path.refine_unit_tokens = static_cast<int32_t>(refine.unit_tokens);
    path.score = KindOf<ScoreKind>(kScoreChoices, p_.decode_score.kind);
    path.query = KindOf<QueryForm>(kQueryChoices, p_.decode_score.query);
    path.normalise = p_.decode_score.normalise;
    path.pool = KindOf<PoolKind>(kPoolChoices, p_.decode_score.pool);
    path.owner = KindOf<OwnerKind>(kOwnerChoices, p_.decode_group.owner);
    path.reduce = KindOf<ReduceKind>(kReduceChoices, p_.decode_group.reduce);
    path.select = KindOf<SelectKind>(kSelectChoices, select.kind);
    path.inclusive = select.inclusive;
    path.head_thresholds = select.threshold_from == "artefact";
    path.refine = KindOf<RefineKind>(kRefineChoices, refine.kind);
    path.refine_reduce = KindOf<ReduceKind>(kReduceChoices, refine.reduce);
    path.refine_inclusive = refine.inclusive;
    path.refresh = KindOf<RefreshKind>(kRefreshChoices, p_.decode_refresh.kind);
    path.correct = KindOf<DecodeCorrectKind>(kDecodeCorrectChoices, p_.decode_correct.kind);
    if (path.head_thresholds) plan_.thresholds = artefacts_.thresholds;
    FillDecodeDials();
    if (path.refine != RefineKind::kNone && refine.source == "lowbit") {
      path.refine_metadata = {
          .kind = MetadataKind::kLowBit,
          .precision = KindOf<MetadataPrecision>(kPrecisionChoices, refine.precision),
          .sub_tokens = 1,
          .window_tokens = 1};
    }
  }

  void FillDecodeDials() {
    DecodeDials& d = plan_.decode_dials;
    const auto whole = [](int64_t value) { return static_cast<int32_t>(value); };
    const auto real = [](double value) { return static_cast<float>(value); };
    const DecodeSelectOptions& select = p_.decode_select;
    d.dense_below_tokens = whole(p_.decode_layers.dense_below_tokens);
    d.budget_tokens = whole(select.budget_tokens);
    d.fraction = select.fraction;
    d.p = real(select.p);
    d.threshold = real(select.threshold);
    d.min_tokens = whole(select.min_tokens);
    d.max_tokens = whole(select.max_tokens);
    d.sink_tokens = whole(p_.decode_force.sink_tokens);
    d.local_tokens = whole(p_.decode_force.local_tokens);
    d.budget_share = p_.decode_force.budget_share;
    d.tail = p_.decode_force.tail;
    d.inside_budget = p_.decode_force.inside_budget;
    d.refine_budget_tokens = whole(p_.decode_refine.budget_tokens);
    d.refine_min_tokens = whole(p_.decode_refine.min_tokens);
    d.refine_p = real(p_.decode_refine.p);
    d.refresh_steps = whole(p_.decode_refresh.steps);
    d.refresh_cosine = real(p_.decode_refresh.cosine);
  }

  // The metadata that is scored, and of labels the first channels of each head's list.
  void FillChannels() {
    const DecodeMetadataOptions& m = p_.decode_metadata;
    if (m.kind == "none" || !p_.sparse_decode()) return;
    MetadataSpec& spec = plan_.decode.metadata;
    spec.kind = KindOf<MetadataKind>(kMetadataChoices, m.kind);
    spec.precision = KindOf<MetadataPrecision>(kPrecisionChoices, m.precision);
    spec.sub_tokens = static_cast<int32_t>(m.sub_tokens);
    spec.window_tokens = static_cast<int32_t>(m.window_tokens > 0 ? m.window_tokens : m.sub_tokens);
    if (spec.kind != MetadataKind::kLabels) return;
    const int64_t head_dim = plan_.shape.head_dim;
    spec.channels = static_cast<int32_t>(std::max<int64_t>(head_dim / m.channel_divisor, 1));
    for (size_t at = 0; at < artefacts_.channels.size(); at += static_cast<size_t>(head_dim)) {
      const auto list = artefacts_.channels.begin() + static_cast<ptrdiff_t>(at);
      plan_.channels.insert(plan_.channels.end(), list, list + spec.channels);
      std::ranges::sort(plan_.channels.end() - spec.channels, plan_.channels.end());
    }
    spec.channel_lists = FingerprintOf(plan_.channels);
  }

  void FillPrefill() {
    plan_.sparse_prefill = std::ranges::any_of(plan_.layers, &LayerPlan::prefill_sparse);
    if (!plan_.sparse_prefill) return;
    PrefillPath& path = plan_.prefill;
    const PrefillEstimateOptions& estimate = p_.prefill_estimate;
    path.estimate = KindOf<EstimateKind>(kEstimateChoices, estimate.kind);
    path.probe_place = KindOf<ProbePlace>(kProbePlaceChoices, estimate.probe_place);
    path.pool = KindOf<PrefillPool>(kPrefillPoolChoices, estimate.pool);
    path.select = KindOf<PrefillSelectKind>(kPrefillSelectChoices, p_.prefill_select.kind);
    path.scope = KindOf<ScopeKind>(kScopeChoices, p_.prefill_select.scope);
    path.inclusive = p_.prefill_select.inclusive;
    path.correct = KindOf<PrefillCorrectKind>(kPrefillCorrectChoices, p_.prefill_correct.kind);
    path.block_tokens = static_cast<int32_t>(estimate.block_tokens);
    path.stride_tokens = static_cast<int32_t>(estimate.stride_tokens);
    path.cell_tokens = static_cast<int32_t>(estimate.cell_tokens);
    FillPrefillDials();
    FillPrefillHeads();
    plan_.prefill_depends_on_end =
        (kernels::Probes(path) && path.probe_place == ProbePlace::kLast) ||
        path.scope == ScopeKind::kMap ||
        (path.estimate == EstimateKind::kPooled && path.pool == PrefillPool::kBands) ||
        path.correct != PrefillCorrectKind::kNone || p_.prefill_force.last_rows > 0;
  }

  void FillPrefillDials() {
    PrefillDials& d = plan_.prefill_dials;
    const auto whole = [](int64_t value) { return static_cast<int32_t>(value); };
    const PrefillEstimateOptions& estimate = p_.prefill_estimate;
    const auto channels = [&](double fraction) {  // whole rotary pairs
      const double pairs = std::round(fraction * plan_.shape.head_dim / 2);
      return 2 * std::max(static_cast<int32_t>(pairs), 1);
    };
    d.dense_below_tokens = whole(p_.prefill_layers.dense_below_tokens);
    d.probe_rows = whole(estimate.probe_rows);
    d.probe_fraction = static_cast<float>(estimate.probe_fraction);
    d.low_channels = channels(estimate.low_band_fraction);
    d.high_channels = channels(estimate.high_band_fraction);
    d.js_threshold = static_cast<float>(estimate.js_threshold);
    d.budget_tokens = whole(p_.prefill_select.budget_tokens);
    d.fraction = p_.prefill_select.fraction;
    d.min_tokens = whole(p_.prefill_select.min_tokens);
    d.max_tokens = whole(p_.prefill_select.max_tokens);
    d.sink_tokens = whole(p_.prefill_force.sink_tokens);
    d.local_tokens = whole(p_.prefill_force.local_tokens);
    d.local_fraction = p_.prefill_force.local_fraction;
    d.last_rows = whole(p_.prefill_force.last_rows);
    d.correct_stride_rows = whole(p_.prefill_correct.stride_rows);
    d.correct_last_rows = whole(p_.prefill_correct.last_rows);
  }

  void FillPrefillHeads() {
    const PrefillSelectOptions& select = p_.prefill_select;
    PrefillHead standard{.pattern = {}, .p = static_cast<float>(select.p)};
    if (plan_.prefill.select == PrefillSelectKind::kVerticalSlash) {
      standard.pattern = {PatternKind::kVerticalSlash, static_cast<int32_t>(select.vertical_tokens),
                          static_cast<int32_t>(select.slash_tokens)};
    }
    plan_.prefill_heads.assign(
        static_cast<size_t>(int64_t{plan_.shape.layers} * plan_.shape.q_heads), standard);
    for (size_t i = 0; i < plan_.prefill_heads.size(); ++i) {
      PrefillHead& head = plan_.prefill_heads[i];
      if (select.p_from == "artefact") head.p = artefacts_.prefill_p[i];
      if (select.patterns_from != "artefact") continue;
      const HeadPattern& pattern = artefacts_.patterns[i];
      if (pattern.kind != PatternKind::kProfile) head.pattern = pattern;
    }
  }

  const SparseProfile& p_;
  const SparseArtefacts& artefacts_;
  ConfigErrors errors_;
  SparsePlan plan_;
};

}  // namespace

std::vector<ArtefactKind> NeededArtefacts(const SparseProfile& p) {
  std::vector<ArtefactKind> kinds;
  if (p.who.heads == "artefact") kinds.push_back(ArtefactKind::kHeadScores);
  if (p.prefill_select.patterns_from == "artefact") kinds.push_back(ArtefactKind::kPatterns);
  if (p.who.heads == "spans") kinds.push_back(ArtefactKind::kSpans);
  if (p.decode_metadata.kind == "labels") kinds.push_back(ArtefactKind::kChannels);
  if (p.decode_layers.planners_from == "artefact") kinds.push_back(ArtefactKind::kPlannerLayers);
  if (p.prefill_select.p_from == "artefact") kinds.push_back(ArtefactKind::kPrefillP);
  if (p.decode_select.threshold_from == "artefact") kinds.push_back(ArtefactKind::kThresholds);
  return kinds;
}

SparseProfile FitStep(SparseProfile profile, int64_t step_tokens_max) {
  int64_t& cell = profile.prefill_estimate.cell_tokens;
  while (cell > kernels::kCellTokensMin && cell > step_tokens_max) cell /= 2;
  return profile;
}

ResolvedPlan ResolvePlan(const SparseProfile& profile, const AttentionShape& shape,
                         const SparseArtefacts& artefacts) {
  return Resolver(profile, shape, artefacts).Run();
}

}  // namespace lacuna::kvcache
