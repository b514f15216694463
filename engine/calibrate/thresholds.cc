#include <algorithm>
#include <cmath>
#include <functional>

#include "engine/calibrate/table.h"

namespace lacuna::engine {
namespace {

constexpr double kDeviations = 0.1;
constexpr int32_t kRows = 16;       // the last ones: those that decode
constexpr int32_t kWideLayers = 2;  // the paper keeps more in the first layers
constexpr int32_t kWideFactor = 4;  // k = 512 beside 128
constexpr int32_t kShareMin = 4;    // k is at most a quarter of the keys

class Thresholds final : public Table {
 public:
  Thresholds(const AttentionShape& shape, const CalibrateOptions& options)
      : shape_(shape),
        top_k_(static_cast<int32_t>(options.top_k)),
        logits_(static_cast<size_t>(shape.layers * shape.q_heads)) {}

  void Add(const HeadMap& map, const PromptMarks&) override {
    const int32_t layer = map.sample->layer, tokens = map.tokens();
    const int32_t wanted = layer < kWideLayers ? top_k_ * kWideFactor : top_k_;
    const int32_t k = std::max(std::min(wanted, tokens / kShareMin), 1);
    std::vector<float> row_logits(static_cast<size_t>(tokens));
    for (int32_t row = std::max(tokens - kRows, k - 1); row < tokens; ++row) {
      map.sample->Logits(map.head, row, row_logits);
      const auto kth = row_logits.begin() + (k - 1);
      std::nth_element(row_logits.begin(), kth, row_logits.begin() + row + 1, std::greater<>());
      logits_[static_cast<size_t>(int64_t{layer} * shape_.q_heads + map.head)].push_back(*kth);
    }
  }

  Status Finish(kvcache::SparseArtefacts& artefacts) override {
    artefacts.thresholds.clear();
    for (const std::vector<float>& samples : logits_) {
      if (samples.empty()) return InvalidArgument("thresholds: got no prompt, need one");
      double sum = 0, squares = 0;
      for (const float logit : samples) sum += static_cast<double>(logit);
      const double count = static_cast<double>(samples.size()), mean = sum / count;
      for (const float logit : samples) {
        squares += (static_cast<double>(logit) - mean) * (static_cast<double>(logit) - mean);
      }
      artefacts.thresholds.push_back(Rounded(mean + kDeviations * std::sqrt(squares / count)));
    }
    return OkStatus();
  }

 private:
  AttentionShape shape_;
  int32_t top_k_;
  std::vector<std::vector<float>> logits_;  // [layers, q_heads], per sample
};

}  // namespace

std::unique_ptr<Table> MakeThresholds(const AttentionShape& shape,
                                      const CalibrateOptions& options) {
  return std::make_unique<Thresholds>(shape, options);
}

}  // namespace lacuna::engine
