// SelectKeys: which keys each decode row reads in one layer: score, group, select, force, refine,
// in one op. SEAM.
//
// A row of N tokens, its own included, has ceil(N / unit_tokens) units. The first sink_units and
// the last local_units are read in any case; of those between, the best. Equal scores: the older
// unit (smaller id) first. What is chosen is kept as a mask of 64 bits per page, so that layers and
// later steps can read one choice; lists are made from it at each call. What each word means:
// docs/profiles.md. Every count lives on the device; the host never waits.
#pragma once

#include <cstdint>
#include <type_traits>

#include "kernels/core/tensor_view.h"
#include "kernels/ops/kv_pool.h"
#include "kernels/ops/metadata.h"
#include "kernels/ops/selection.h"
#include "kernels/ops/sparse_kinds.h"

namespace lacuna::kernels {

// Which code a decode row runs.
struct DecodePath final {
  MetadataSpec metadata;         // what `score` reads
  MetadataSpec refine_metadata;  // what the second choice reads; none: the keys
  int32_t unit_tokens = 64;      // chosen together: 1, 16 or 64
  int32_t refine_unit_tokens = 64;
  ScoreKind score = ScoreKind::kNone;  // kKeys, kLogits, kProbs: by the keys themselves
  QueryForm query = QueryForm::kHead;
  bool normalise = false;
  PoolKind pool = PoolKind::kNone;
  OwnerKind owner = OwnerKind::kKvHead;
  ReduceKind reduce = ReduceKind::kMax;
  SelectKind select = SelectKind::kAll;
  bool inclusive = true;
  bool head_thresholds = false;  // threshold of each query head from SelectKeysArgs::thresholds
  RefineKind refine = RefineKind::kNone;
  ReduceKind refine_reduce = ReduceKind::kUnion;
  bool refine_inclusive = true;
  RefreshKind refresh = RefreshKind::kEveryStep;
  DecodeCorrectKind correct = DecodeCorrectKind::kNone;
  bool operator==(const DecodePath&) const = default;
};

// A row's dials at its length, as counts of units.
struct DecodeCounts final {
  bool dense = true;        // the row reads everything: too short, or the budget covers it
  int32_t units = 0;        // of the sequence
  int32_t sink_units = 0;   // first units, forced
  int32_t local_units = 0;  // last units, forced
  int32_t ranked_units_min = 0;
  int32_t ranked_units_max = 0;  // between them, best first; top_k keeps exactly so many
  int32_t refine_units = 0;      // top_k of the second choice, forced units beside them
  int32_t refine_units_min = 0;
  bool operator==(const DecodeCounts&) const = default;

  int32_t candidates() const { return units - sink_units - local_units; }
};

struct SelectRow final {
  DecodeCounts counts;
  float p = 1;
  float threshold = 0;
  float refine_p = 1;
  float refresh_cosine = 1;
  int32_t choice = 0;  // its place in KeyChoices
  bool choose = true;  // anew; else the kept choice holds (kCosine: unless the query has turned)
};
static_assert(std::is_trivially_copyable_v<DecodePath> && std::is_trivially_copyable_v<SelectRow>);

// What rows chose in one layer, before forced units.
struct KeyChoices final {
  uint64_t* masks = nullptr;  // [choices, owners, pages_max]: bit i of page p is its i-th token
  int64_t owners = 0;         // kv_heads, or 1 with OwnerKind::kLayer
  int64_t pages_max = 0;      // longest sequence, in pages
  float* queries = nullptr;   // kCosine: [choices, q_heads * head_dim], of the last choice
};

// Lists made on the device: list i = row * kv_heads + kv_head is the entries
// [i * stride, ends[i]) of the arrays; begins[i] = i * stride is written too.
struct SelectedLists final {
  int32_t* pages = nullptr;
  int32_t* logical = nullptr;
  uint64_t* masks = nullptr;  // never 0
  int64_t* begins = nullptr;  // [rows * kv_heads]
  int64_t* ends = nullptr;    // [rows * kv_heads]
  int64_t stride = 0;         // entries of one list at most; what does not fit is a caller's error

  PageLists Lists(int64_t lists) const { return {pages, logical, begins, ends, lists, masks}; }
};

// Added up over layers.
struct SelectStats final {
  int64_t pages_considered = 0;  // of the sequence, for rows that chose or kept a choice
  int64_t pages_selected = 0;    // of them in the list
  int64_t keys_selected = 0;
  int32_t layers = 0;
  // Share of softmax(unit scores) that the selected units hold, as far as scores can tell; added up
  // over layers that made a choice.
  float estimated_mass = 0;
  int32_t choices = 0;
};

struct SelectKeysArgs final {
  TensorView q;           // [rows, q_heads, head_dim] act, rotated
  KvPool pool;            // the rows' own keys are appended
  MetadataPool metadata;  // of path.metadata; data is null when that is none
  MetadataPool refine_metadata;
  TensorView positions;  // [rows] i32
  PageLists pages;       // [rows]: all pages of each row's sequence
  DecodePath path;
  const SelectRow* rows = nullptr;    // [rows]
  const float* thresholds = nullptr;  // [q_heads]; path.head_thresholds
  // [rows, kv_heads], or null. A head with a window reads what its shape allows and chooses
  // nothing.
  const StaticShape* shapes = nullptr;
  float scale = 1.0f;  // of logits
  KeyChoices choices;
  SelectedLists out;
  SelectStats* stats = nullptr;  // [rows, kv_heads], or null
  // [rows, q_heads] f32, or empty: log((dropped keys) * exp(threshold)), -inf for none; what
  // DecodeCorrectKind::kDenominator adds to AttendDecode's denominator.
  TensorView dropped_lse;
};

}  // namespace lacuna::kernels
