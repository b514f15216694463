#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "engine/calibrate/table.h"

namespace lacuna::engine {
namespace {

constexpr int32_t kBlockTokens = 128, kStride = 16;
constexpr int32_t kCells = kBlockTokens / kStride;  // of a block, per side
constexpr int32_t kFirstBlock = 4;                  // rows before it have hardly a choice
constexpr size_t kSteps = 100;                      // p is found to 1/100

// Keys of one kv head as the antidiagonals meet them: [kStride, head_dim, cells].
std::vector<float> StridedKeys(const LayerSample& sample, int32_t kv_head, int32_t cells) {
  std::vector<float> keys(static_cast<size_t>(kStride * sample.head_dim) *
                          static_cast<size_t>(cells));
  float* out = keys.data();
  for (int32_t r = 0; r < kStride; ++r) {
    for (int32_t c = 0; c < sample.head_dim; ++c) {
      const float* channel = sample.KeyChannel(kv_head, c);
      for (int32_t j = 0; j < cells; ++j) *out++ = channel[j * kStride + r];
    }
  }
  return keys;
}

// Adds softmax(antidiagonal sums) of row i of the reduced grid to the key blocks' scores.
void AddCellRow(const LayerSample& sample, int32_t head, const std::vector<float>& keys,
                int32_t cells, int32_t i, std::vector<double>& scores) {
  std::vector<float> logits(static_cast<size_t>(i) + 1);
  const float* channel = keys.data();
  for (int32_t r = 0; r < kStride; ++r) {
    const float* query = sample.Query(head, i * kStride + kStride - 1 - r);
    for (int32_t c = 0; c < sample.head_dim; ++c, channel += cells) {
      const float factor = query[c] * sample.scale / kStride;
      for (size_t j = 0; j < logits.size(); ++j) logits[j] += factor * channel[j];
    }
  }
  const float max = *std::ranges::max_element(logits);
  double sum = 0;
  for (float& logit : logits) sum += static_cast<double>(logit = std::exp(logit - max));
  for (size_t j = 0; j < logits.size(); ++j) {
    scores[j / kCells] += static_cast<double>(logits[j]) / sum;
  }
}

class PrefillP final : public Table {
 public:
  PrefillP(const AttentionShape& shape, const CalibrateOptions& options)
      : shape_(shape),
        mass_(options.mass),
        p_max_(options.p_max),
        kept_(static_cast<size_t>(shape.layers * shape.q_heads) * (kSteps + 1)),
        rows_(static_cast<size_t>(shape.layers * shape.q_heads)) {}

  void Add(const HeadMap& map, const PromptMarks&) override {
    const LayerSample& sample = *map.sample;
    const int32_t blocks = sample.tokens / kBlockTokens, cells = blocks * kCells;
    const std::vector<float> keys = StridedKeys(sample, sample.KvHead(map.head), cells);
    for (int32_t block = kFirstBlock; block < blocks; ++block) {
      std::vector<double> scores(static_cast<size_t>(block) + 1), mass(scores.size());
      for (int32_t i = block * kCells; i < (block + 1) * kCells; ++i) {
        AddCellRow(sample, map.head, keys, cells, i, scores);
      }
      int32_t rows = 0;
      for (size_t i = 0; i < map.rows.size(); ++i) {
        if (map.rows[i] / kBlockTokens != block) continue;
        ++rows;
        for (int32_t j = 0; j <= map.rows[i]; ++j) {
          mass[static_cast<size_t>(j / kBlockTokens)] += static_cast<double>(map.Probs(i)[j]);
        }
      }
      if (rows == 0) continue;
      for (double& one : mass) one /= rows;
      AddRow(static_cast<size_t>(int64_t{sample.layer} * shape_.q_heads + map.head), scores, mass);
    }
  }

  Status Finish(kvcache::SparseArtefacts& artefacts) override {
    artefacts.prefill_p.clear();
    for (size_t head = 0; head < rows_.size(); ++head) {
      if (rows_[head] == 0) {
        return InvalidArgument("prefill_p: got only short prompts, need one of " +
                               std::to_string((kFirstBlock + 1) * kBlockTokens) + " tokens");
      }
      size_t step = 1;
      while (step < kSteps && kept_[head * (kSteps + 1) + step] < mass_ * rows_[head]) ++step;
      artefacts.prefill_p.push_back(Rounded(std::min(static_cast<double>(step) / kSteps, p_max_)));
    }
    return OkStatus();
  }

 private:
  // The mass that each p keeps of one row of blocks; first block and diagonal in any case, and the
  // block that makes the scores reach p.
  void AddRow(size_t head, std::vector<double>& scores, const std::vector<double>& mass) {
    const double all = std::accumulate(scores.begin(), scores.end(), 0.0);
    std::vector<size_t> order(scores.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::ranges::stable_sort(order.begin() + 1, order.end() - 1, std::greater<>(),
                             [&](size_t block) { return scores[block]; });
    std::rotate(order.begin() + 1, order.end() - 1, order.end());  // first, diagonal, the others
    double score = scores[order[0]] + scores[order[1]], kept = mass[order[0]] + mass[order[1]];
    size_t next = 2;
    for (size_t step = 0; step <= kSteps; ++step) {
      const double p = static_cast<double>(step) / kSteps;
      while (next < order.size() && score < p * all) {
        score += scores[order[next]];
        kept += mass[order[next++]];
      }
      kept_[head * (kSteps + 1) + step] += kept;
    }
    ++rows_[head];
  }

  AttentionShape shape_;
  double mass_, p_max_;
  std::vector<double> kept_;   // [layers, q_heads, kSteps + 1], added up over rows of blocks
  std::vector<int32_t> rows_;  // [layers, q_heads]
};

}  // namespace

std::unique_ptr<Table> MakePrefillP(const AttentionShape& shape, const CalibrateOptions& options) {
  return std::make_unique<PrefillP>(shape, options);
}

}  // namespace lacuna::engine
