// The field tables of SparseProfile: every key with its meaning, bounds and choices.
#include "kernels/ops/range_limits.h"
#include "kvcache/sparse/kinds.h"
#include "kvcache/sparse/profile.h"

namespace lacuna::kvcache {
namespace {

constexpr double kTokensMax = 1 << 24;
constexpr double kLayersMax = 1023;

template <typename Config>
using Fields = std::vector<Field<Config>>;

const Fields<SparseProfile>& TopFields() {
  using O = SparseProfile;
  static const Fields<O> kFields = {
      {"name", "Name of the profile in requests: the file's name without .json.", &O::name, 1, 64},
      {"extends",
       "Profile whose keys this one takes over and overrides; its departures are inherited.",
       &O::extends, 0, 64},
      {"paper", "The publication: authors, title, year, arXiv id.", &O::paper, 0, 400},
      {"summary", "What the method does, in one line.", &O::summary, 1, 200},
      {"departures",
       "Where this profile differs from the paper or its released code, one text each.",
       &O::departures, 0, 16},
  };
  return kFields;
}

const Fields<WhoOptions>& WhoFields() {
  using O = WhoOptions;
  static const Fields<O> kFields = {
      {"heads",
       "Which kv heads see only sink and newest tokens. all: none does; streaming: all do; "
       "artefact: the streaming_fraction with the lowest head_scores; spans: each sees the newest "
       "alpha + beta * N tokens of its span.",
       &O::heads, 1, 16, kHeadsChoices},
      {"streaming_fraction", "Share of all kv heads that stream, with heads artefact.",
       &O::streaming_fraction, 0, 1},
      {"sink_tokens", "First tokens that a streaming or span head always sees.", &O::sink_tokens, 0,
       kTokensMax},
      {"local_tokens", "Newest tokens that a streaming head sees, its own included.",
       &O::local_tokens, 0, kTokensMax},
      {"prefill_local_tokens", "The same while the prompt is computed; 0: local_tokens.",
       &O::prefill_local_tokens, 0, kTokensMax},
      {"reference_layers",
       "Layers of the model that the layer numbers of this file speak of; other models scale "
       "them. 0: numbers are taken as they are.",
       &O::reference_layers, 0, kLayersMax},
  };
  return kFields;
}

const Fields<PrefillLayerOptions>& PrefillLayerFields() {
  using O = PrefillLayerOptions;
  static const Fields<O> kFields = {
      {"first_layer", "Layers before this one attend densely.", &O::first_layer, 0, kLayersMax},
      {"dense_layers", "Layers that attend densely.", &O::dense_layers, 0, kLayersMax},
      {"dense_below_tokens", "Prompts shorter than this attend densely.", &O::dense_below_tokens, 0,
       kTokensMax},
  };
  return kFields;
}

const Fields<PrefillEstimateOptions>& PrefillEstimateFields() {
  using O = PrefillEstimateOptions;
  static const Fields<O> kFields = {
      {"kind",
       "How importance is estimated. probe: exact attention of a few query rows, summed along "
       "columns and diagonals; pooled: compressed queries times compressed keys, per block; "
       "probe_pooled: probe, and pooled too where the two disagree less than js_threshold.",
       &O::kind, 1, 16, kEstimateChoices},
      {"block_tokens", "Edge of a block of the map: 64 or 128.", &O::block_tokens, 64, 128},
      {"probe_place", "Rows of the probe: the last of each cell, or tails in it.", &O::probe_place,
       1, 16, kProbePlaceChoices},
      {"probe_rows", "Rows of the probe (last), or of one tail (tails).", &O::probe_rows, 1, 1024},
      {"probe_fraction", "Share of all rows that tails take.", &O::probe_fraction, 0.001, 1},
      {"cell_tokens",
       "Rows of a cell, which share a probe: 1024, 2048, 4096 or 8192. The prompt is computed in "
       "chunks of whole cells; where engine.step_tokens_max is less, cells are the largest of "
       "these that a step holds.",
       &O::cell_tokens, kernels::kCellTokensMin, kernels::kCellTokensMax},
      {"pool",
       "How a block is compressed. mean: its mean; antidiagonal: sums of logits along "
       "antidiagonals of stride_tokens; bands: means scored apart in the low and the high rotary "
       "frequencies.",
       &O::pool, 1, 16, kPrefillPoolChoices},
      {"stride_tokens", "Stride of the antidiagonals.", &O::stride_tokens, 1, 128},
      {"low_band_fraction", "Share of the head's channels in the low-frequency band.",
       &O::low_band_fraction, 0.01, 1},
      {"high_band_fraction", "Share of the head's channels in the high-frequency band.",
       &O::high_band_fraction, 0.01, 1},
      {"js_threshold",
       "Square root of the Jensen-Shannon divergence below which a head uses its pooled map.",
       &O::js_threshold, 0, 1},
  };
  return kFields;
}

const Fields<PrefillSelectOptions>& PrefillSelectFields() {
  using O = PrefillSelectOptions;
  static const Fields<O> kFields = {
      {"kind",
       "What a query tile attends to. all: dense; none: only what is forced; vertical_slash: the "
       "best columns and diagonals; cover: the fewest columns, and the fewest diagonals, whose "
       "mass reaches p; top_k: the best blocks of a row; top_p: the best blocks until their mass "
       "reaches p.",
       &O::kind, 1, 16, kPrefillSelectChoices},
      {"patterns_from",
       "artefact: shape and sizes of each query head from the patterns, else these keys.",
       &O::patterns_from, 1, 16, kFromChoices},
      {"vertical_tokens", "Columns of vertical_slash.", &O::vertical_tokens, 0, kTokensMax},
      {"slash_tokens", "Diagonals of vertical_slash.", &O::slash_tokens, 0, kTokensMax},
      {"budget_tokens", "Keys per row of top_k.", &O::budget_tokens, 0, kTokensMax},
      {"fraction", "Share of a row's causal keys that top_k adds to budget_tokens.", &O::fraction,
       0, 1},
      {"p", "Mass to keep with cover and top_p.", &O::p, 0.01, 1},
      {"p_from", "artefact: p of each query head from prefill_p.", &O::p_from, 1, 16, kFromChoices},
      {"inclusive", "top_p keeps the block that makes the mass reach p; the best is always kept.",
       &O::inclusive},
      {"scope", "top_p over each row of blocks, or over the map of a cell at once.", &O::scope, 1,
       8, kScopeChoices},
      {"min_tokens", "Least that cover keeps of columns and of diagonals, and top_p of a row.",
       &O::min_tokens, 0, kTokensMax},
      {"max_tokens", "Most of the same; 0: no limit.", &O::max_tokens, 0, kTokensMax},
  };
  return kFields;
}

const Fields<PrefillForceOptions>& PrefillForceFields() {
  using O = PrefillForceOptions;
  static const Fields<O> kFields = {
      {"sink_tokens", "First tokens that every query sees.", &O::sink_tokens, 0, kTokensMax},
      {"local_tokens", "Newest tokens that every query sees, its own included.", &O::local_tokens,
       0, kTokensMax},
      {"local_fraction", "The same as a share of the query's position; the larger counts.",
       &O::local_fraction, 0, 1},
      {"last_rows", "Last queries of the prompt, which attend densely.", &O::last_rows, 0,
       kTokensMax},
  };
  return kFields;
}

const Fields<PrefillCorrectOptions>& PrefillCorrectFields() {
  using O = PrefillCorrectOptions;
  static const Fields<O> kFields = {
      {"kind",
       "delta: every stride_rows-th row is also computed densely, and its difference is added to "
       "the rows up to the next; overwrite: only those rows are replaced.",
       &O::kind, 1, 16, kPrefillCorrectChoices},
      {"stride_rows", "Rows from one dense row to the next.", &O::stride_rows, 16, 1024},
      {"last_rows", "Dense rows at the end of the prompt, beside its incomplete stride.",
       &O::last_rows, 0, 65536},
  };
  return kFields;
}

const Fields<DecodeLayerOptions>& DecodeLayerFields() {
  using O = DecodeLayerOptions;
  static const Fields<O> kFields = {
      {"dense_layers", "Layers that attend densely.", &O::dense_layers, 0, kLayersMax},
      {"planner_layers",
       "Layers that attend densely and choose, by their own attention, what the layers after them "
       "read, up to the next of them.",
       &O::planner_layers, 0, kLayersMax},
      {"planners_from", "artefact: planner_layers from the artefact.", &O::planners_from, 1, 16,
       kFromChoices},
      {"share_layers", "Layers in a row that read one selection, made by the first of them.",
       &O::share_layers, 1, 64},
      {"dense_below_tokens", "Sequences shorter than this attend densely.", &O::dense_below_tokens,
       0, kTokensMax},
  };
  return kFields;
}

const Fields<DecodeMetadataOptions>& DecodeMetadataFields() {
  using O = DecodeMetadataOptions;
  static const Fields<O> kFields = {
      {"kind",
       "What is stored beside the keys. minmax: per channel bounds of sub_tokens keys; mean: their "
       "mean; labels: the head's most telling channels of each key; lowbit: each key in few bits.",
       &O::kind, 1, 16, kMetadataChoices},
      {"precision", "Type of the stored numbers.", &O::precision, 1, 8, kPrecisionChoices},
      {"sub_tokens", "Keys of one entry: 1, 16 or 64.", &O::sub_tokens, 1, 64},
      {"window_tokens", "Keys of one mean, when they overlap; 0: sub_tokens.", &O::window_tokens, 0,
       64},
      {"channel_divisor", "Labels keep head_dim / channel_divisor channels.", &O::channel_divisor,
       1, 64},
  };
  return kFields;
}

const Fields<DecodeScoreOptions>& DecodeScoreFields() {
  using O = DecodeScoreOptions;
  static const Fields<O> kFields = {
      {"kind",
       "How entries are scored. bound: largest logit that minmax allows; dot: query times the "
       "stored vector; keys: query times every key; logits, probs: as a planner layer's dense "
       "attention exports them.",
       &O::kind, 1, 16, kScoreChoices},
      {"query", "Score for each query head, or for the mean query of a kv head's group.", &O::query,
       1, 16, kQueryChoices},
      {"normalise", "Softmax over all entries of a query before heads are reduced.", &O::normalise},
      {"pool", "How the entries of one unit become its score, once heads are reduced.", &O::pool, 1,
       8, kPoolChoices},
  };
  return kFields;
}

const Fields<DecodeGroupOptions>& DecodeGroupFields() {
  using O = DecodeGroupOptions;
  static const Fields<O> kFields = {
      {"owner", "Who has a selection of its own: each kv head, or the layer.", &O::owner, 1, 16,
       kOwnerChoices},
      {"reduce",
       "How the query heads of an owner agree. union: each chooses, the selections are united; "
       "round_robin: all first choices, then all second ones, until the budget is full.",
       &O::reduce, 1, 16, kReduceChoices},
  };
  return kFields;
}

const Fields<DecodeSelectOptions>& DecodeSelectFields() {
  using O = DecodeSelectOptions;
  static const Fields<O> kFields = {
      {"kind",
       "What is read. all: everything; none: only what is forced; top_k: the best units within the "
       "budget; top_p: the best units until their mass reaches p; threshold: units that score at "
       "least threshold. Ties go to the older unit.",
       &O::kind, 1, 16, kSelectChoices},
      {"unit_tokens", "Keys that are chosen together: 1, 16 or 64.", &O::unit_tokens, 1, 64},
      {"budget_tokens", "Keys that top_k reads.", &O::budget_tokens, 0, kTokensMax},
      {"fraction", "Share of the sequence that top_k adds to budget_tokens.", &O::fraction, 0, 1},
      {"p", "Mass to keep with top_p.", &O::p, 0.01, 1},
      {"inclusive", "top_p keeps the unit that makes the mass reach p; the best is always kept.",
       &O::inclusive},
      {"threshold", "Least score that threshold keeps.", &O::threshold, -1e6, 1e6},
      {"threshold_from", "artefact: the threshold of each query head from thresholds.",
       &O::threshold_from, 1, 16, kFromChoices},
      {"min_tokens", "Least that is read.", &O::min_tokens, 0, kTokensMax},
      {"max_tokens", "Most that is read, forced keys aside; 0: no limit.", &O::max_tokens, 0,
       kTokensMax},
  };
  return kFields;
}

const Fields<DecodeRefineOptions>& DecodeRefineFields() {
  using O = DecodeRefineOptions;
  static const Fields<O> kFields = {
      {"kind", "A second choice among what select kept.", &O::kind, 1, 16, kRefineChoices},
      {"source", "Keys that the second choice scores: their lowbit copy, or themselves.",
       &O::source, 1, 8, kRefineSourceChoices},
      {"precision", "Type of the lowbit copy.", &O::precision, 1, 8, kPrecisionChoices},
      {"unit_tokens", "Keys that are chosen together: 1, 16 or 64.", &O::unit_tokens, 1, 64},
      {"reduce", "As decode.group.reduce, for the second choice.", &O::reduce, 1, 16,
       kReduceChoices},
      {"budget_tokens", "Keys that top_k keeps.", &O::budget_tokens, 0, kTokensMax},
      {"p", "Mass that top_p keeps, of the estimated attention within the first choice.", &O::p,
       0.01, 1},
      {"inclusive", "top_p keeps the unit that makes the mass reach p; the best is always kept.",
       &O::inclusive},
      {"min_tokens", "Least that is kept.", &O::min_tokens, 0, kTokensMax},
  };
  return kFields;
}

const Fields<DecodeForceOptions>& DecodeForceFields() {
  using O = DecodeForceOptions;
  static const Fields<O> kFields = {
      {"sink_tokens", "First tokens that are always read.", &O::sink_tokens, 0, kTokensMax},
      {"local_tokens", "Newest tokens that are always read, the query's own included.",
       &O::local_tokens, 0, kTokensMax},
      {"budget_share",
       "Share of the budget for sink and newest tokens together; local_tokens then follows.",
       &O::budget_share, 0, 1},
      {"tail", "Always read the unit that holds the query's own key.", &O::tail},
      {"inside_budget", "Forced keys count against the budget.", &O::inside_budget},
  };
  return kFields;
}

const Fields<DecodeRefreshOptions>& DecodeRefreshFields() {
  using O = DecodeRefreshOptions;
  static const Fields<O> kFields = {
      {"kind",
       "When a selection is made anew. every_n: at each steps-th step of the request, by its own "
       "count; cosine: when the query's cosine with that of the last choice falls below cosine.",
       &O::kind, 1, 16, kRefreshChoices},
      {"steps", "Decode steps of the request from one choice to the next.", &O::steps, 1, 4096},
      {"cosine", "Least cosine at which a selection is kept.", &O::cosine, -1, 1},
  };
  return kFields;
}

const Fields<DecodeCorrectOptions>& DecodeCorrectFields() {
  using O = DecodeCorrectOptions;
  static const Fields<O> kFields = {
      {"kind",
       "denominator: adds (number of dropped keys) * exp(threshold - max) to the softmax's "
       "denominator.",
       &O::kind, 1, 16, kDecodeCorrectChoices},
  };
  return kFields;
}

const Fields<ArtefactFileOptions>& ArtefactFields() {
  using O = ArtefactFileOptions;
  static const Fields<O> kFields = {
      {"head_scores", "How much each kv head retrieves, 0 to 1: full_attention_heads.tsv.",
       &O::head_scores, 0, 4096},
      {"patterns", "Shape and sizes of each query head: MInference JSON.", &O::patterns, 0, 4096},
      {"spans", "alpha and beta of each query head: MoA JSON.", &O::spans, 0, 4096},
      {"channels", "Channels of each kv head by importance: Double Sparsity JSON.", &O::channels, 0,
       4096},
      {"planner_layers", "A JSON list of layers.", &O::planner_layers, 0, 4096},
      {"prefill_p", "p of each query head, a JSON list per layer: XAttention's table.",
       &O::prefill_p, 0, 4096},
      {"thresholds", "Decode threshold of each query head, a JSON list per layer.", &O::thresholds,
       0, 4096},
  };
  return kFields;
}

}  // namespace

std::vector<BoundSection> BindProfile(SparseProfile& p) {
  return {
      {"", "What the profile is.", BindFields(TopFields(), p)},
      {"who", "Which heads keep all keys, and which stream.", BindFields(WhoFields(), p.who)},
      {"prefill.layers", "Where prefill is sparse.",
       BindFields(PrefillLayerFields(), p.prefill_layers)},
      {"prefill.estimate", "How prefill estimates what matters.",
       BindFields(PrefillEstimateFields(), p.prefill_estimate)},
      {"prefill.select", "What a tile of prompt queries attends to.",
       BindFields(PrefillSelectFields(), p.prefill_select)},
      {"prefill.force", "What prompt queries attend to in any case.",
       BindFields(PrefillForceFields(), p.prefill_force)},
      {"prefill.correct", "How the error of sparse prefill is repaired.",
       BindFields(PrefillCorrectFields(), p.prefill_correct)},
      {"decode.layers", "Where decode is sparse, and whose selection a layer reads.",
       BindFields(DecodeLayerFields(), p.decode_layers)},
      {"decode.metadata", "What is stored beside the keys, as long as their page lives.",
       BindFields(DecodeMetadataFields(), p.decode_metadata)},
      {"decode.score", "How stored entries are scored against the query.",
       BindFields(DecodeScoreFields(), p.decode_score)},
      {"decode.group", "How query heads share a selection.",
       BindFields(DecodeGroupFields(), p.decode_group)},
      {"decode.select", "What a generated token attends to.",
       BindFields(DecodeSelectFields(), p.decode_select)},
      {"decode.refine", "The second stage of a cascade.",
       BindFields(DecodeRefineFields(), p.decode_refine)},
      {"decode.force", "What is read in any case.",
       BindFields(DecodeForceFields(), p.decode_force)},
      {"decode.refresh", "How long a selection is kept.",
       BindFields(DecodeRefreshFields(), p.decode_refresh)},
      {"decode.correct", "How the error of sparse decode is repaired.",
       BindFields(DecodeCorrectFields(), p.decode_correct)},
      {"artefacts",
       "Files of what was measured per model; empty: the model's own artefact file. Each may also "
       "be such a file.",
       BindFields(ArtefactFields(), p.artefacts)},
  };
}

}  // namespace lacuna::kvcache
