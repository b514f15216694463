// The plain reference of SelectKeys, and the comparison with it.
#include <numeric>

#include "tests/ops/select_fixture.h"

namespace lacuna::kernels {
namespace {

using Tokens = SelectRun::Tokens;
using Scores = std::vector<double>;

Scores Softmax(Scores scores) {
  const double max = *std::ranges::max_element(scores);
  double sum = 0;
  for (double& score : scores) sum += score = std::exp(score - max);
  for (double& score : scores) score /= sum;
  return scores;
}

Scores Reduced(const std::vector<Scores>& rows, ReduceKind kind) {
  Scores out = rows[0];
  for (size_t r = 1; r < rows.size(); ++r) {
    for (size_t e = 0; e < out.size(); ++e) {
      out[e] = kind == ReduceKind::kMax ? std::max(out[e], rows[r][e]) : out[e] + rows[r][e];
    }
  }
  if (kind == ReduceKind::kMean) {
    for (double& score : out) score /= static_cast<double>(rows.size());
  }
  return out;
}

Scores Pooled(const Scores& entries, size_t each, PoolKind kind) {
  Scores out;
  for (size_t first = 0; first < entries.size(); first += each) {
    const auto begin = entries.begin() + static_cast<ptrdiff_t>(first);
    const auto end =
        entries.begin() + static_cast<ptrdiff_t>(std::min(first + each, entries.size()));
    const double sum = std::accumulate(begin, end, 0.0);
    const bool adds = kind == PoolKind::kSum || kind == PoolKind::kMean;
    out.push_back(!adds                    ? *std::max_element(begin, end)
                  : kind == PoolKind::kSum ? sum
                                           : sum / static_cast<double>(end - begin));
  }
  return out;
}

// Candidates best first; equal scores: the older first.
std::vector<int> Ranked(const Scores& scores, const std::vector<int>& candidates) {
  std::vector<int> order = candidates;
  std::ranges::stable_sort(order, [&](int a, int b) {
    return scores[static_cast<size_t>(a)] > scores[static_cast<size_t>(b)];
  });
  return order;
}

// How many of `order` a walk keeps that starts with `mass` and ends at `target`.
size_t Walk(const Scores& scores, const std::vector<int>& order, double mass, double target,
            bool inclusive, bool keep_first) {
  size_t kept = 0;
  if (mass >= target) return 0;
  for (const int unit : order) {
    mass += scores[static_cast<size_t>(unit)];
    if (mass >= target) return kept + (inclusive || (keep_first && kept == 0) ? 1 : 0);
    ++kept;
  }
  return kept;
}

}  // namespace

int SelectRun::heads() const {
  return path_.query == QueryForm::kGroupMean ? 1 : world_.shape().group;
}

bool SelectRun::Windowed(const RowCase& row, int kv) const {
  return !row.shapes.empty() && row.shapes[static_cast<size_t>(kv)].window_tokens > 0;
}

std::vector<int> SelectRun::QueryRows(const RowCase& row, int owner) const {
  std::vector<int> rows;
  for (int kv = 0; kv < world_.shape().kv_heads; ++kv) {
    if (Windowed(row, kv) || (path_.owner == OwnerKind::kKvHead && kv != owner)) continue;
    for (int h = 0; h < heads(); ++h) rows.push_back(kv * heads() + h);
  }
  return rows;
}

std::vector<float> SelectRun::Query(int64_t i, int q_row) const {
  const int dim = world_.shape().head_dim, share = world_.shape().group / heads();
  std::vector<float> q(static_cast<size_t>(dim));
  for (int c = 0; c < dim; ++c) {
    float sum = 0;
    for (int h = 0; h < share; ++h) sum += q_.at(i, (q_row * share + h) * dim + c);
    q[static_cast<size_t>(c)] = sum / static_cast<float>(share);
  }
  return q;
}

// By each token's own vector: its key, or what `spec` stores of it.
std::vector<double> SelectRun::TokenScores(const RowCase& row, int64_t i, int q_row,
                                           const MetadataSpec& spec) {
  const std::vector<float> q = Query(i, q_row);
  const int kv = q_row / heads(), page_tokens = world_.shape().page_tokens;
  Scores scores;
  for (int t = 0; t < row.tokens; ++t) {
    double dot = 0;
    for (int c = 0; c < world_.shape().head_dim; ++c) {
      const double key = spec.any()
                             ? world_.Stored(spec, world_.page(row.sequence, t / page_tokens), kv,
                                             t % page_tokens, 0, c)
                             : world_.key(row.sequence, t, kv)[c];
      dot += q[static_cast<size_t>(c)] * key;
    }
    scores.push_back(kScale * dot);
  }
  return scores;
}

std::vector<double> SelectRun::EntryScores(const RowCase& row, int64_t i, int q_row) {
  const MetadataSpec& spec = path_.metadata;
  Scores scores;
  if (!spec.any() || spec.kind == MetadataKind::kLowBit) {
    scores = TokenScores(row, i, q_row, spec);
  } else {
    const std::vector<float> q = Query(i, q_row);
    const int kv = q_row / heads(), page_tokens = world_.shape().page_tokens;
    const int sub = std::min(spec.sub_tokens, page_tokens);
    const bool labels = spec.kind == MetadataKind::kLabels;
    const int width = labels ? spec.channels : world_.shape().head_dim;
    for (int first = 0; first < row.tokens; first += sub) {
      const int page = world_.page(row.sequence, first / page_tokens);
      const int entry = first % page_tokens / sub;
      double score = 0;
      for (int c = 0; c < width; ++c) {
        const int channel = labels ? world_.channels(spec)[static_cast<size_t>(kv * width + c)] : c;
        const double query = q[static_cast<size_t>(channel)];
        const double low = query * world_.Stored(spec, page, kv, entry, 0, c);
        score += spec.kind == MetadataKind::kMinMax
                     ? std::max(low, query * world_.Stored(spec, page, kv, entry, 1, c))
                     : low;
      }
      scores.push_back(kScale * score);
    }
  }
  if (path_.normalise || path_.score == ScoreKind::kProbs) scores = Softmax(scores);
  if (path_.head_thresholds) {
    const float own = thresholds_[static_cast<size_t>(q_row * world_.shape().group / heads())];
    for (double& score : scores) score -= own;
  }
  return scores;
}

Tokens SelectRun::Forced(const RowCase& row) const {
  Tokens forced(static_cast<size_t>(row.tokens));
  const DecodeCounts& counts = row.what.counts;
  for (int t = 0; t < row.tokens; ++t) {
    const int unit = t / path_.unit_tokens;
    forced[static_cast<size_t>(t)] =
        unit < counts.sink_units || unit >= counts.units - counts.local_units;
  }
  return forced;
}

Tokens SelectRun::ChooseFirst(const RowCase& row, int64_t i, int owner) {
  const DecodeCounts& counts = row.what.counts;
  const int entry =
      path_.metadata.any() ? std::min(path_.metadata.sub_tokens, world_.shape().page_tokens) : 1;
  const auto each = static_cast<size_t>(path_.unit_tokens / entry);
  std::vector<Scores> rows;
  for (const int q_row : QueryRows(row, owner)) rows.push_back(EntryScores(row, i, q_row));
  const bool apart = path_.reduce == ReduceKind::kUnion || path_.reduce == ReduceKind::kRoundRobin;
  if (!apart) rows = {Reduced(rows, path_.reduce)};
  std::vector<int> between(static_cast<size_t>(counts.candidates()));
  std::iota(between.begin(), between.end(), counts.sink_units);
  std::vector<bool> chosen(static_cast<size_t>(counts.units));
  std::vector<std::vector<int>> orders;
  for (const Scores& entries : rows) {
    const Scores units = Pooled(entries, each, path_.pool);
    orders.push_back(Ranked(units, between));
    const std::vector<int>& order = orders.back();
    double forced = std::accumulate(units.begin(), units.end(), 0.0);
    const double total = forced;
    for (const int unit : between) forced -= units[static_cast<size_t>(unit)];
    size_t count = static_cast<size_t>(counts.ranked_units_max);
    if (path_.select == SelectKind::kTopP) {
      count = Walk(units, order, forced, row.what.p * total, path_.inclusive,
                   counts.candidates() == counts.units);
    } else if (path_.select == SelectKind::kThreshold) {
      const double least = path_.head_thresholds ? 0.0 : row.what.threshold;
      count = static_cast<size_t>(std::ranges::count_if(
          between, [&](int unit) { return units[static_cast<size_t>(unit)] >= least; }));
    }
    count = std::clamp(count, static_cast<size_t>(counts.ranked_units_min),
                       static_cast<size_t>(counts.ranked_units_max));
    if (path_.reduce == ReduceKind::kRoundRobin) continue;
    for (size_t k = 0; k < count; ++k) chosen[static_cast<size_t>(order[k])] = true;
  }
  int left = path_.reduce == ReduceKind::kRoundRobin ? counts.ranked_units_max : 0;
  for (size_t turn = 0; left > 0; ++turn) {
    for (const std::vector<int>& order : orders) {
      const auto unit = static_cast<size_t>(order[turn]);
      if (left == 0 || chosen[unit]) continue;
      chosen[unit] = true;
      --left;
    }
  }
  Tokens tokens(static_cast<size_t>(row.tokens));
  for (int t = 0; t < row.tokens; ++t) {
    tokens[static_cast<size_t>(t)] = chosen[static_cast<size_t>(t / path_.unit_tokens)];
  }
  return tokens;
}

Tokens SelectRun::ChooseSecond(const RowCase& row, int64_t i, int owner, const Tokens& first) {
  const Tokens forced = Forced(row);
  const auto count = static_cast<size_t>(row.tokens);
  std::vector<Scores> rows;
  for (const int q_row : QueryRows(row, owner)) {
    Scores scores = TokenScores(row, i, q_row, path_.refine_metadata);
    for (size_t t = 0; t < count; ++t) {
      if (!first[t] && !forced[t]) scores[t] = -1e300;
    }
    rows.push_back(Softmax(scores));
  }
  if (path_.refine_reduce != ReduceKind::kUnion) rows = {Reduced(rows, path_.refine_reduce)};
  const int unit = path_.refine_unit_tokens;
  Tokens second(count);
  for (const Scores& tokens : rows) {
    const Scores units = Pooled(tokens, static_cast<size_t>(unit), PoolKind::kSum);
    std::vector<int> candidates;
    double forced_mass = 0, total = 0;
    bool any_forced = false;
    for (size_t u = 0; u < units.size(); ++u) {
      const size_t t = u * static_cast<size_t>(unit);
      if (forced[t]) {
        forced_mass += units[u];
        any_forced = true;
      } else if (first[t]) {
        candidates.push_back(static_cast<int>(u));
      }
      total += units[u];
    }
    const std::vector<int> order = Ranked(units, candidates);
    auto kept = static_cast<size_t>(row.what.counts.refine_units);
    if (path_.refine == RefineKind::kTopP) {
      kept = Walk(units, order, forced_mass, row.what.refine_p * total, path_.refine_inclusive,
                  !any_forced);
    }
    kept = std::min(std::max(kept, static_cast<size_t>(row.what.counts.refine_units_min)),
                    order.size());
    for (size_t k = 0; k < kept; ++k) {
      const auto begin = static_cast<size_t>(order[k] * unit);
      for (size_t t = begin; t < std::min(begin + static_cast<size_t>(unit), count); ++t) {
        second[t] = true;
      }
    }
  }
  return second;
}

std::vector<Tokens> SelectRun::Expected(int64_t i, std::vector<Tokens>* kept) {
  const RowCase& row = rows_[static_cast<size_t>(i)];
  const bool chooses = path_.select != SelectKind::kNone && path_.select != SelectKind::kAll;
  const bool dense = row.what.counts.dense || path_.select == SelectKind::kAll;
  const int kv_heads = world_.shape().kv_heads;
  const int owners = path_.owner == OwnerKind::kLayer ? 1 : kv_heads;
  kept->resize(static_cast<size_t>(owners));
  for (int owner = 0; owner < owners && chooses && !dense; ++owner) {
    Tokens& choice = (*kept)[static_cast<size_t>(owner)];
    if (row.what.choose && !QueryRows(row, owner).empty()) {
      choice = ChooseFirst(row, i, owner);
      if (path_.refine != RefineKind::kNone) choice = ChooseSecond(row, i, owner, choice);
    }
    choice.resize(static_cast<size_t>(row.tokens));
  }
  std::vector<Tokens> heads;
  for (int kv = 0; kv < kv_heads; ++kv) {
    Tokens tokens(static_cast<size_t>(row.tokens), dense);
    if (Windowed(row, kv)) {
      const StaticShape& shape = row.shapes[static_cast<size_t>(kv)];
      for (int t = 0; t < row.tokens; ++t) {
        tokens[static_cast<size_t>(t)] =
            t > row.tokens - 1 - shape.window_tokens || t < shape.sink_tokens;
      }
    } else if (!dense) {
      tokens = Forced(row);
      const size_t owner = owners == 1 ? 0 : static_cast<size_t>(kv);
      for (size_t t = 0; t < tokens.size() && chooses; ++t) {
        tokens[t] = tokens[t] || (*kept)[owner][t];
      }
    }
    heads.push_back(tokens);
  }
  return heads;
}

}  // namespace lacuna::kernels
