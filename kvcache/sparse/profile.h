// SparseProfile: a published sparse-attention method as data, one struct per axis of its JSON file.
//
// Plain values as they stand in configs/sparse/NAME.json, before any model is known. Words are
// strings with a fixed choice; SparsePlan turns them into enums. The field tables below are the
// only description of the keys: reader, printer, JSON Schema and docs/profiles.md walk them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/core/field_reader.h"

namespace lacuna::kvcache {

// Which heads keep all keys. The others see sink and newest tokens only, in both phases, and never
// select: their middle pages need not be stored.
struct WhoOptions final {
  std::string heads = "all";
  double streaming_fraction = 0.5;
  int64_t sink_tokens = 0;
  int64_t local_tokens = 0;
  int64_t prefill_local_tokens = 0;
  int64_t reference_layers = 0;
  bool operator==(const WhoOptions&) const = default;
};

struct PrefillLayerOptions final {
  int64_t first_layer = 0;
  std::vector<int64_t> dense_layers;
  int64_t dense_below_tokens = 0;
  bool operator==(const PrefillLayerOptions&) const = default;
};

struct PrefillEstimateOptions final {
  std::string kind = "none";
  int64_t block_tokens = 128;
  std::string probe_place = "last";
  int64_t probe_rows = 64;
  double probe_fraction = 0.05;
  std::string pool = "mean";
  int64_t stride_tokens = 16;
  int64_t cell_tokens = 1024;
  double low_band_fraction = 0.75;
  double high_band_fraction = 0.5;
  double js_threshold = 0.1;
  bool operator==(const PrefillEstimateOptions&) const = default;
};

struct PrefillSelectOptions final {
  std::string kind = "all";
  std::string patterns_from = "profile";
  int64_t vertical_tokens = 1000;
  int64_t slash_tokens = 6096;
  int64_t budget_tokens = 0;
  double fraction = 0;
  double p = 0.9;
  std::string p_from = "profile";
  bool inclusive = true;
  std::string scope = "row";
  int64_t min_tokens = 0;
  int64_t max_tokens = 0;
  bool operator==(const PrefillSelectOptions&) const = default;
};

struct PrefillForceOptions final {
  int64_t sink_tokens = 0;
  int64_t local_tokens = 0;
  double local_fraction = 0;
  int64_t last_rows = 0;
  bool operator==(const PrefillForceOptions&) const = default;
};

struct PrefillCorrectOptions final {
  std::string kind = "none";
  int64_t stride_rows = 64;
  int64_t last_rows = 128;
  bool operator==(const PrefillCorrectOptions&) const = default;
};

struct DecodeLayerOptions final {
  std::vector<int64_t> dense_layers;
  std::vector<int64_t> planner_layers;
  std::string planners_from = "profile";
  int64_t share_layers = 1;
  int64_t dense_below_tokens = 0;
  bool operator==(const DecodeLayerOptions&) const = default;
};

struct DecodeMetadataOptions final {
  std::string kind = "none";
  std::string precision = "bf16";
  int64_t sub_tokens = 16;
  int64_t window_tokens = 0;
  int64_t channel_divisor = 8;
  bool operator==(const DecodeMetadataOptions&) const = default;
};

struct DecodeScoreOptions final {
  std::string kind = "none";
  std::string query = "head";
  bool normalise = false;
  std::string pool = "none";
  bool operator==(const DecodeScoreOptions&) const = default;
};

struct DecodeGroupOptions final {
  std::string owner = "kv_head";
  std::string reduce = "max";
  bool operator==(const DecodeGroupOptions&) const = default;
};

struct DecodeSelectOptions final {
  std::string kind = "all";
  int64_t unit_tokens = 64;
  int64_t budget_tokens = 0;
  double fraction = 0;
  double p = 0.95;
  bool inclusive = true;
  double threshold = 0;
  std::string threshold_from = "profile";
  int64_t min_tokens = 0;
  int64_t max_tokens = 0;
  bool operator==(const DecodeSelectOptions&) const = default;
};

// The second stage of a cascade: chooses again, among what `select` kept.
struct DecodeRefineOptions final {
  std::string kind = "none";
  std::string source = "lowbit";
  std::string precision = "int4";
  int64_t unit_tokens = 1;
  std::string reduce = "union";
  int64_t budget_tokens = 0;
  double p = 0.95;
  bool inclusive = true;
  int64_t min_tokens = 0;
  bool operator==(const DecodeRefineOptions&) const = default;
};

struct DecodeForceOptions final {
  int64_t sink_tokens = 0;
  int64_t local_tokens = 0;
  double budget_share = 0;
  bool tail = true;
  bool inside_budget = true;
  bool operator==(const DecodeForceOptions&) const = default;
};

struct DecodeRefreshOptions final {
  std::string kind = "every_step";
  int64_t steps = 4;
  double cosine = 0.9;
  bool operator==(const DecodeRefreshOptions&) const = default;
};

struct DecodeCorrectOptions final {
  std::string kind = "none";
  bool operator==(const DecodeCorrectOptions&) const = default;
};

// Files of what was learned or measured per model; empty: the model's own artefact file.
struct ArtefactFileOptions final {
  std::string head_scores, patterns, spans, channels, planner_layers, prefill_p, thresholds;
  bool operator==(const ArtefactFileOptions&) const = default;
};

struct SparseProfile final {
  std::string name, extends, paper, summary;
  std::vector<std::string> departures;
  WhoOptions who;
  PrefillLayerOptions prefill_layers;
  PrefillEstimateOptions prefill_estimate;
  PrefillSelectOptions prefill_select;
  PrefillForceOptions prefill_force;
  PrefillCorrectOptions prefill_correct;
  DecodeLayerOptions decode_layers;
  DecodeMetadataOptions decode_metadata;
  DecodeScoreOptions decode_score;
  DecodeGroupOptions decode_group;
  DecodeSelectOptions decode_select;
  DecodeRefineOptions decode_refine;
  DecodeForceOptions decode_force;
  DecodeRefreshOptions decode_refresh;
  DecodeCorrectOptions decode_correct;
  ArtefactFileOptions artefacts;
  bool operator==(const SparseProfile&) const = default;

  bool sparse_prefill() const { return prefill_select.kind != "all"; }
  bool sparse_decode() const { return decode_select.kind != "all"; }
};

// All sections, bound to `profile`: the first, of the empty name, holds the keys at the top; a
// dotted name ("decode.select") is an object inside an object.
std::vector<BoundSection> BindProfile(SparseProfile& profile);

}  // namespace lacuna::kvcache
