// What the rows of a call do, and their queries.
#include <bit>
#include <cmath>
#include <cstring>
#include <string>

#include "kernels/core/dtype.h"
#include "kernels/cpu/select_call.h"

namespace lacuna::kernels::cpu {
namespace {

Status Wrong(int64_t row, const char* what) {
  return InvalidArgument("SelectKeys: row " + std::to_string(row) + ": " + what);
}

}  // namespace

SelectCall::SelectCall(const SelectKeysArgs& args, const SelectKernels& kernels,
                       SelectKeysScratch& scratch)
    : args_(args),
      kernels_(kernels),
      scratch_(scratch),
      kv_heads_(args.pool.kv_heads),
      group_(args.q.dim(1) / args.pool.kv_heads),
      head_dim_(args.pool.head_dim),
      page_tokens_(args.pool.page_tokens) {
  const DecodePath& path = args.path;
  heads_ = path.query == QueryForm::kGroupMean ? 1 : group_;
  query_rows_ = kv_heads_ * heads_;
  owners_ = path.owner == OwnerKind::kLayer ? 1 : kv_heads_;
  chooses_ = path.select == SelectKind::kTopK || path.select == SelectKind::kTopP ||
             path.select == SelectKind::kThreshold;
  scores_keys_ = !path.metadata.any();
  normalises_ = path.normalise || path.score == ScoreKind::kProbs;
  per_head_ = path.reduce == ReduceKind::kUnion || path.reduce == ReduceKind::kRoundRobin;
  refines_ = chooses_ && path.refine != RefineKind::kNone;
  if (!scores_keys_) layout_ = MetadataLayout(path.metadata, head_dim_, page_tokens_);
  if (path.refine_metadata.any()) {
    refine_layout_ = MetadataLayout(path.refine_metadata, head_dim_, page_tokens_);
  }
  if (!scores_keys_) slab_bytes_ = args.metadata.SlabBytes();
  entry_tokens_ = scores_keys_ ? 1 : layout_.entry_tokens;
  const bool best = path.reduce == ReduceKind::kMax && path.pool != PoolKind::kSum &&
                    path.pool != PoolKind::kMean;
  pools_pages_ = best && !normalises_ && !path.head_thresholds && entry_tokens_ == 1 &&
                 path.owner == OwnerKind::kKvHead && page_tokens_ == kBlockTokens &&
                 path.unit_tokens == kBlockTokens;
  plain_floats_ = query_rows_ * head_dim_;
  scored_floats_ = scores_keys_ ? 0 : query_rows_ * layout_.vectors * layout_.width;
  query_floats_ = plain_floats_ + scored_floats_ + query_rows_ * (1 + 2);
  scratch.rows.assign(static_cast<size_t>(rows()), Row{});
  scratch.queries.resize(static_cast<size_t>(rows() * query_floats_));
  pairs_ = !scores_keys_ && layout_.lanes && layout_.width % 2 == 0 && heads_ == group_ &&
           args.q.dtype() == DType::kBF16;
  if (pairs_) scratch.pairs.resize(static_cast<size_t>(rows() * scored_floats_ / 2));
}

Status SelectCall::PlanRow(int64_t row) {
  Row& state = StateOf(row);
  const SelectRow& what = RowOf(row);
  const DecodeCounts& counts = what.counts;
  const int32_t position = args_.positions.as<const int32_t>()[row];
  const int64_t unit = args_.path.unit_tokens;
  if (position < 0) return Wrong(row, "a position below 0");
  state.tokens = int64_t{position} + 1;
  state.first_entry = args_.pages.begins[row];
  const int32_t* logical = args_.pages.logical + state.first_entry;
  const int64_t listed = args_.pages.ends[row] - state.first_entry;
  state.pages =
      std::lower_bound(logical, logical + listed, CeilDiv(state.tokens, page_tokens_)) - logical;
  state.units = CeilDiv(state.tokens, unit);
  state.chunks = CeilDiv(state.tokens, kChunkTokens);
  state.query_at = row * query_floats_;
  bool any_full = false;
  for (int64_t owner = 0; owner < owners_; ++owner) any_full |= ScoresHeads(row, owner);
  if (counts.dense || args_.path.select == SelectKind::kAll || !any_full) return OkStatus();
  if (counts.units != state.units) return Wrong(row, "counts of another length");
  const bool sound = counts.sink_units >= 0 && counts.local_units >= 0 && counts.candidates() >= 0;
  if (!sound) return Wrong(row, "more forced units than there are");
  state.act = Row::Act::kForced;
  if (!chooses_) return OkStatus();
  // Ascending and without repeats, so complete when the last has the place of its count.
  if (state.pages == 0 || logical[state.pages - 1] != state.pages - 1 ||
      state.pages != CeilDiv(state.tokens, page_tokens_)) {
    return Wrong(row, "a list of pages with gaps");
  }
  if (what.choice < 0 || state.pages > args_.choices.pages_max) {
    return Wrong(row, "no place for its choice");
  }
  const bool cosine = args_.path.refresh == RefreshKind::kCosine;
  const bool chooses = cosine ? RefreshQuery(row) : what.choose;
  state.act = chooses ? Row::Act::kChoose : Row::Act::kKeep;
  if (chooses) ConvertQueries(row, state);
  return OkStatus();
}

// Query rows in float, the mean of each group if that is asked for; then as they are scored.
void SelectCall::ConvertQueries(int64_t row, const Row& state) {
  float* plain = scratch_.queries.data() + state.query_at;
  const int64_t share = group_ / heads_;  // query heads of one query row
  const int64_t at = row * args_.q.stride(0);
  const bool f32 = args_.q.dtype() == DType::kF32;
  for (int64_t i = 0; i < query_rows_; ++i) {
    for (int64_t c = 0; c < head_dim_; ++c) {
      float sum = 0.0f;
      for (int64_t h = 0; h < share; ++h) {
        const int64_t from = at + (i * share + h) * head_dim_ + c;
        sum += f32 ? args_.q.as<const float>()[from] : ToFloat(args_.q.as<const BF16>()[from]);
      }
      plain[i * head_dim_ + c] = share == 1 ? sum : sum / static_cast<float>(share);
    }
  }
  if (!scores_keys_) ScoreQueries(plain, plain + plain_floats_);
  if (pairs_) PairQueries(row, plain + plain_floats_);
  float* sums = plain + plain_floats_ + scored_floats_;  // [query rows], then of scored ones
  for (int64_t i = 0; i < query_rows_; ++i) {
    sums[i] = 0.0f;
    for (int64_t c = 0; c < head_dim_; ++c) sums[i] += plain[i * head_dim_ + c];
  }
}

// [kv heads, vectors, heads, width], then their sums [kv heads, vectors, heads] behind the plain
// ones. The bound of a box is max(q, 0) . maximum + min(q, 0) . minimum.
void SelectCall::ScoreQueries(const float* plain, float* to) const {
  const bool bound = args_.path.metadata.kind == MetadataKind::kMinMax;
  const int16_t* channels =
      args_.path.metadata.kind == MetadataKind::kLabels ? args_.metadata.channels : nullptr;
  float* sums = to + scored_floats_ + query_rows_;
  for (int64_t kv = 0; kv < kv_heads_; ++kv) {
    for (int64_t v = 0; v < layout_.vectors; ++v) {
      for (int64_t h = 0; h < heads_; ++h) {
        const float* from = plain + (kv * heads_ + h) * head_dim_;
        float sum = 0.0f;
        for (int64_t i = 0; i < layout_.width; ++i) {
          const float q = from[channels == nullptr ? i : channels[kv * layout_.width + i]];
          *to = !bound ? q : v == 0 ? std::min(q, 0.0f) : std::max(q, 0.0f);
          sum += *to++;
        }
        *sums++ = sum;
      }
    }
  }
}

void SelectCall::PairQueries(int64_t row, const float* scored) {
  uint32_t* to = scratch_.pairs.data() + row * scored_floats_ / 2;
  for (int64_t i = 0; i < scored_floats_ / 2; ++i) {
    to[i] = std::bit_cast<uint32_t>(scored[2 * i]) >> 16 |
            (std::bit_cast<uint32_t>(scored[2 * i + 1]) & 0xffff0000u);
  }
}

// Whether the row chooses anew: it is told to, or its query has turned from that of the last
// choice, in which case it is kept instead. A query without direction has turned.
bool SelectCall::RefreshQuery(int64_t row) const {
  const int64_t count = args_.q.dim(1) * head_dim_;
  const SelectRow& what = RowOf(row);
  float* kept = args_.choices.queries + what.choice * count;
  const int64_t at = row * args_.q.stride(0);
  const bool f32 = args_.q.dtype() == DType::kF32;
  double dot = 0, kept_norm = 0, norm = 0;
  const auto query = [&](int64_t i) {
    return f32 ? args_.q.as<const float>()[at + i] : ToFloat(args_.q.as<const BF16>()[at + i]);
  };
  if (!what.choose) {
    for (int64_t i = 0; i < count; ++i) {
      const double q = query(i);
      dot += q * kept[i];
      norm += q * q;
      kept_norm += double{kept[i]} * kept[i];
    }
    if (dot / std::sqrt(norm * kept_norm) >= what.refresh_cosine) return false;
  }
  for (int64_t i = 0; i < count; ++i) kept[i] = query(i);
  return true;
}

// Heads with a window choose nothing and have no say.
bool SelectCall::ScoresHeads(int64_t row, int64_t owner) const {
  const OwnerHeads heads = HeadsOf(owner);
  for (int64_t kv = heads.first; kv < heads.end; ++kv) {
    if (!HasWindow(row, kv)) return true;
  }
  return false;
}

int64_t SelectCall::ScoreFloats(const Row& row) const {
  if (row.act != Row::Act::kChoose || pools_pages_) return 0;
  return query_rows_ * RoundUp(row.pages * page_tokens_ / entry_tokens_, 16);
}

// Owners take turns, so that their choices are made at the same time. An owner that scores nothing
// has one task all the same, to make its lists.
void SelectCall::AddTasks(int64_t row, int64_t first_choice) {
  const Row& state = StateOf(row);
  const bool chooses = state.act == Row::Act::kChoose;
  for (int64_t chunk = 0; chunk < (chooses ? state.chunks : 1); ++chunk) {
    for (int64_t owner = 0; owner < owners_; ++owner) {
      const bool scores = chooses && ScoresHeads(row, owner);
      if (!scores && chunk > 0) continue;
      const int64_t choice = first_choice + owner;
      if (chunk == 0) {
        scratch_.chunks_left[static_cast<size_t>(choice)] = static_cast<int32_t>(state.chunks);
      }
      scratch_.tasks.push_back({static_cast<int32_t>(row), static_cast<int32_t>(owner),
                                static_cast<int32_t>(choice),
                                scores ? static_cast<int32_t>(chunk) : kNoChunk});
    }
  }
}

void SelectCall::LayOut(int64_t begin, int64_t end) {
  int64_t scores = 0, stats = 0, units = 0;
  scratch_.tasks.clear();
  scratch_.chunks_left.assign(static_cast<size_t>((end - begin) * owners_), 0);
  for (int64_t row = begin; row < end; ++row) {
    Row& state = StateOf(row);
    AddTasks(row, (row - begin) * owners_);
    if (state.act != Row::Act::kChoose) continue;
    state.score_at = scores;
    state.score_stride = ScoreFloats(state) / query_rows_;
    state.stat_at = stats;
    state.shift_at = (row - begin) * query_rows_;
    state.unit_at = units;
    scores += ScoreFloats(state);
    stats += 2 * query_rows_ * state.chunks;
    units += UnitRows() * state.units;
  }
  const auto grow = [](std::vector<float>& floats, int64_t count) {
    if (floats.size() < static_cast<size_t>(count)) floats.resize(static_cast<size_t>(count));
  };
  grow(scratch_.scores, scores);
  grow(scratch_.stats, stats);
  grow(scratch_.units, units);
  // Of each query row: log of the sum of exponentials, and the threshold that scores are taken
  // from.
  scratch_.shifts.assign(static_cast<size_t>((end - begin) * query_rows_), 0.0f);
  scratch_.offsets.assign(static_cast<size_t>(query_rows_), 0.0f);
  for (int64_t i = 0; args_.path.head_thresholds && i < query_rows_; ++i) {
    scratch_.offsets[static_cast<size_t>(i)] = args_.thresholds[i * group_ / heads_];
  }
}

}  // namespace lacuna::kernels::cpu
