#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <numeric>

#include "engine/calibrate/table.h"

namespace lacuna::engine {
namespace {

constexpr int32_t kFirstLayers = 2;      // planners by rule: the first layers find little alike
constexpr double kLayersPerPlanner = 8;  // of the others; the paper has 3 in 26

class PlannerLayers final : public Table {
 public:
  PlannerLayers(const AttentionShape& shape, const CalibrateOptions& options)
      : layers_(shape.layers),
        planners_(static_cast<int32_t>(options.planners)),
        q_heads_(shape.q_heads),
        turns_(static_cast<size_t>(shape.layers)) {}

  // A layer's map is the mean of its heads' over the last rows of the prompt.
  void Add(const HeadMap& map, const PromptMarks&) override {
    const size_t first = map.TailBegin(kProbeRows), tokens = static_cast<size_t>(map.tokens());
    const std::vector<float> tail(map.probs.begin() + static_cast<ptrdiff_t>(first * tokens),
                                  map.probs.end());
    if (map.head == 0) {
      previous_.swap(current_);
      current_.assign(tail.size(), 0.0);
    }
    for (size_t i = 0; i < tail.size(); ++i) current_[i] += static_cast<double>(tail[i]);
    if (map.head + 1 < q_heads_ || map.sample->layer == 0) return;
    turns_[static_cast<size_t>(map.sample->layer)] += 1 - Cosine(previous_, current_);
  }

  Status Finish(kvcache::SparseArtefacts& artefacts) override {
    std::vector<int32_t> chosen;
    for (int32_t layer = 0; layer < std::min(kFirstLayers, layers_); ++layer) {
      chosen.push_back(layer);
    }
    // The last layer has nobody to plan for.
    std::vector<int32_t> order(static_cast<size_t>(std::max(layers_ - 1 - kFirstLayers, 0)));
    std::iota(order.begin(), order.end(), kFirstLayers);
    std::ranges::stable_sort(order, std::greater<>(),
                             [&](int32_t layer) { return turns_[static_cast<size_t>(layer)]; });
    const int32_t others = layers_ - kFirstLayers;
    const int32_t wanted =
        planners_ > 0 ? planners_
                      : std::max(static_cast<int32_t>(std::lround(others / kLayersPerPlanner)), 1);
    const int32_t spread = std::max(others / (2 * wanted), 1);
    std::vector<int32_t> peaks;
    for (const int32_t layer : order) {
      const bool near =
          std::ranges::any_of(peaks, [&](int32_t peak) { return std::abs(peak - layer) < spread; });
      if (static_cast<int32_t>(peaks.size()) < wanted && !near) peaks.push_back(layer);
    }
    chosen.insert(chosen.end(), peaks.begin(), peaks.end());
    std::ranges::sort(chosen);
    artefacts.planner_layers = std::move(chosen);
    return OkStatus();
  }

 private:
  static double Cosine(const std::vector<double>& a, const std::vector<double>& b) {
    const double norms = std::inner_product(a.begin(), a.end(), a.begin(), 0.0) *
                         std::inner_product(b.begin(), b.end(), b.begin(), 0.0);
    return norms > 0 ? std::inner_product(a.begin(), a.end(), b.begin(), 0.0) / std::sqrt(norms)
                     : 1.0;
  }

  int32_t layers_, planners_, q_heads_;
  std::vector<double> turns_;  // [layers] 1 - cosine to the layer before, added up over prompts
  std::vector<double> previous_, current_;
};

}  // namespace

std::unique_ptr<Table> MakePlannerLayers(const AttentionShape& shape,
                                         const CalibrateOptions& options) {
  return std::make_unique<PlannerLayers>(shape, options);
}

}  // namespace lacuna::engine
