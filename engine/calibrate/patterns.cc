#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <numeric>

#include "engine/calibrate/table.h"

namespace lacuna::engine {
namespace {

using kvcache::HeadPattern;
using kvcache::PatternKind;

constexpr int32_t kForcedColumns = 30, kForcedDistances = 100;  // first and nearest
constexpr int32_t kBlockTokens = 64;
constexpr int32_t kGrain = 16;  // sizes are written in multiples of it

// Shares of the length: columns and diagonals, or first and newest tokens, or blocks. The paper's
// sizes fit samples of one length; their ratios are kept.
struct Candidate final {
  PatternKind kind = PatternKind::kVerticalSlash;
  double a = 0, b = 0;
  double cost() const { return a + b; }
};
// By cost; of equal cost the simpler first.
constexpr std::array<Candidate, 11> kCandidates = {{
    {PatternKind::kAShape, 1.0 / 64, 3.0 / 64},
    {PatternKind::kVerticalSlash, 1.0 / 32, 1.0 / 32},
    {PatternKind::kAShape, 1.0 / 64, 7.0 / 64},
    {PatternKind::kVerticalSlash, 1.0 / 64, 7.0 / 64},
    {PatternKind::kVerticalSlash, 1.0 / 16, 1.0 / 16},
    {PatternKind::kVerticalSlash, 7.0 / 64, 1.0 / 64},
    {PatternKind::kBlocks, 1.0 / 8, 0},
    {PatternKind::kVerticalSlash, 1.0 / 32, 7.0 / 32},
    {PatternKind::kVerticalSlash, 1.0 / 8, 1.0 / 8},
    {PatternKind::kVerticalSlash, 7.0 / 32, 1.0 / 32},
    {PatternKind::kBlocks, 1.0 / 4, 0},
}};

int32_t Tokens(double share, int32_t length) {
  return static_cast<int32_t>(std::lround(share * length));
}

// 1 for the `count` largest of `scores`, 0 for the others; equal ones: the earlier.
std::vector<float> TopMask(const std::vector<double>& scores, int32_t count) {
  std::vector<size_t> order(scores.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::ranges::stable_sort(order, std::greater<>(), [&](size_t i) { return scores[i]; });
  order.resize(std::min(order.size(), static_cast<size_t>(std::max(count, 0))));
  std::vector<float> mask(scores.size());
  for (const size_t i : order) mask[i] = 1;
  return mask;
}

// What the last rows of the prompt attend to, summed along columns and along diagonals.
struct Probe final {
  std::vector<double> columns, distances;

  explicit Probe(const HeadMap& map)
      : columns(static_cast<size_t>(map.tokens())), distances(columns.size()) {
    for (size_t i = map.TailBegin(kProbeRows); i < map.rows.size(); ++i) {
      for (int32_t j = 0; j <= map.rows[i]; ++j) {
        const double p = static_cast<double>(map.Probs(i)[j]);
        columns[static_cast<size_t>(j)] += p;
        distances[static_cast<size_t>(map.rows[i] - j)] += p;
      }
    }
    const auto force = [](std::vector<double>& sums, size_t count) {
      std::fill_n(sums.begin(), std::min(count, sums.size()), 1e9);
    };
    force(columns, kForcedColumns);
    force(distances, kForcedDistances);
  }
};

// Means of 64 rows or keys of one head: [blocks, head_dim].
std::vector<double> BlockMeans(const LayerSample& sample, int32_t head, bool keys) {
  const int32_t blocks = (sample.tokens - 1) / kBlockTokens + 1, dim = sample.head_dim;
  std::vector<double> means(static_cast<size_t>(int64_t{blocks} * dim));
  for (int32_t t = 0; t < sample.tokens; ++t) {
    const int32_t block = t / kBlockTokens;
    const int32_t in_block = std::min(kBlockTokens, sample.tokens - block * kBlockTokens);
    for (int32_t c = 0; c < dim; ++c) {
      const float value =
          keys ? sample.KeyChannel(sample.KvHead(head), c)[t] : sample.Query(head, t)[c];
      means[static_cast<size_t>(int64_t{block} * dim + c)] += static_cast<double>(value) / in_block;
    }
  }
  return means;
}

class Patterns final : public Table {
 public:
  Patterns(const AttentionShape& shape, const CalibrateOptions& options)
      : shape_(shape),
        tolerance_(options.tolerance),
        pattern_tokens_(static_cast<int32_t>(options.pattern_tokens)),
        recall_(static_cast<size_t>(shape.layers * shape.q_heads) * kCandidates.size()) {}

  // Scored on the sampled rows of the prompt's second half: those with enough to leave out.
  void Add(const HeadMap& map, const PromptMarks&) override {
    const Probe probe(map);
    const size_t place =
        static_cast<size_t>(int64_t{map.sample->layer} * shape_.q_heads + map.head);
    const auto half = std::ranges::lower_bound(map.rows, map.tokens() / 2);
    const size_t first = static_cast<size_t>(half - map.rows.begin());
    const double rows = static_cast<double>(map.rows.size() - first);
    for (size_t c = 0; c < kCandidates.size(); ++c) {
      recall_[place * kCandidates.size() + c] += Recall(kCandidates[c], map, probe, first) / rows;
    }
    if (place == 0) ++prompts_;
  }

  Status Finish(kvcache::SparseArtefacts& artefacts) override {
    if (prompts_ == 0) return InvalidArgument("patterns: got no prompt, need one");
    artefacts.patterns.clear();
    for (size_t at = 0; at < recall_.size(); at += kCandidates.size()) {
      const auto begin = recall_.begin() + static_cast<ptrdiff_t>(at);
      const double best =
          *std::max_element(begin, begin + static_cast<ptrdiff_t>(kCandidates.size()));
      size_t chosen = kCandidates.size();
      for (size_t c = 0; c < kCandidates.size(); ++c) {
        if (begin[static_cast<ptrdiff_t>(c)] < best - tolerance_ * prompts_) continue;
        if (chosen == kCandidates.size() || Better(begin, c, chosen)) chosen = c;
      }
      artefacts.patterns.push_back(Sized(kCandidates[chosen]));
    }
    return OkStatus();
  }

 private:
  using RecallAt = std::vector<double>::const_iterator;

  static bool Better(RecallAt recall, size_t c, size_t than) {
    const double a = kCandidates[c].cost(), b = kCandidates[than].cost();
    if (a != b) return a < b;
    return recall[static_cast<ptrdiff_t>(c)] > recall[static_cast<ptrdiff_t>(than)];
  }

  HeadPattern Sized(const Candidate& candidate) const {
    if (candidate.kind == PatternKind::kBlocks) {
      return {candidate.kind, std::max(Tokens(candidate.a, pattern_tokens_) / kBlockTokens, 1), 0};
    }
    const auto grains = [&](double share) {
      return std::max(Tokens(share, pattern_tokens_) / kGrain, 1) * kGrain;
    };
    return {candidate.kind, grains(candidate.a), grains(candidate.b)};
  }

  static double Recall(const Candidate& candidate, const HeadMap& map, const Probe& probe,
                       size_t first) {
    if (candidate.kind == PatternKind::kBlocks) return BlockRecall(candidate, map, first);
    const int32_t tokens = map.tokens();
    const int32_t a = Tokens(candidate.a, tokens), b = Tokens(candidate.b, tokens);
    std::vector<float> columns, distances;
    if (candidate.kind == PatternKind::kAShape) {
      columns.assign(probe.columns.size(), 0.0f);
      distances = columns;
      std::fill_n(columns.begin(), a, 1.0f);
      std::fill_n(distances.begin(), b, 1.0f);
    } else {
      columns = TopMask(probe.columns, std::max(a, kForcedColumns));
      distances = TopMask(probe.distances, std::max(b, kForcedDistances));
    }
    std::ranges::reverse(distances);  // then key j of a row stands at tokens - 1 - row + j
    double kept = 0;
    for (size_t i = first; i < map.rows.size(); ++i) {
      const float* probs = map.Probs(i);
      const float* near = distances.data() + (tokens - 1 - map.rows[i]);
      for (int32_t j = 0; j <= map.rows[i]; ++j) {
        kept += static_cast<double>(probs[j] * std::max(columns[static_cast<size_t>(j)], near[j]));
      }
    }
    return kept;
  }

  static double BlockRecall(const Candidate& candidate, const HeadMap& map, size_t first) {
    const LayerSample& sample = *map.sample;
    const std::vector<double> queries = BlockMeans(sample, map.head, false);
    const std::vector<double> keys = BlockMeans(sample, map.head, true);
    const size_t dim = static_cast<size_t>(sample.head_dim);
    std::vector<float> chosen;
    int32_t chosen_for = -1;
    double kept = 0;
    for (size_t i = first; i < map.rows.size(); ++i) {
      const int32_t block = map.rows[i] / kBlockTokens;
      if (block != chosen_for) {
        std::vector<double> scores(static_cast<size_t>(block) + 1);
        for (size_t j = 0; j < scores.size(); ++j) {
          const auto query =
              queries.begin() + static_cast<ptrdiff_t>(block) * static_cast<ptrdiff_t>(dim);
          scores[j] = std::inner_product(query, query + static_cast<ptrdiff_t>(dim),
                                         keys.begin() + static_cast<ptrdiff_t>(j * dim), 0.0);
        }
        chosen = TopMask(scores, std::max(Tokens(candidate.a, sample.tokens) / kBlockTokens, 1));
        chosen_for = block;
      }
      for (int32_t j = 0; j <= map.rows[i]; ++j) {
        kept +=
            static_cast<double>(map.Probs(i)[j] * chosen[static_cast<size_t>(j / kBlockTokens)]);
      }
    }
    return kept;
  }

  AttentionShape shape_;
  double tolerance_;
  int32_t pattern_tokens_;
  std::vector<double> recall_;  // [layers, q_heads, candidates], added up over prompts
  int32_t prompts_ = 0;
};

}  // namespace

std::unique_ptr<Table> MakePatterns(const AttentionShape& shape, const CalibrateOptions& options) {
  return std::make_unique<Patterns>(shape, options);
}

}  // namespace lacuna::engine
