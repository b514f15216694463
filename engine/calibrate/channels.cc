#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>

#include "engine/calibrate/table.h"

namespace lacuna::engine {
namespace {

// Over all pairs of a query and a key the mean of |q_c * k_c| is the product of two means.
class Channels final : public Table {
 public:
  explicit Channels(const AttentionShape& shape)
      : shape_(shape),
        products_(static_cast<size_t>(shape.layers * shape.kv_heads * shape.head_dim)) {}

  void Add(const HeadMap& map, const PromptMarks&) override {
    const LayerSample& sample = *map.sample;
    const int32_t kv_head = sample.KvHead(map.head);
    std::vector<double> queries(static_cast<size_t>(sample.head_dim));
    for (int32_t row = 0; row < sample.tokens; ++row) {
      const float* query = sample.Query(map.head, row);
      for (size_t c = 0; c < queries.size(); ++c) {
        queries[c] += static_cast<double>(std::abs(query[c]));
      }
    }
    const size_t first =
        static_cast<size_t>((int64_t{sample.layer} * sample.kv_heads + kv_head) * sample.head_dim);
    for (int32_t c = 0; c < sample.head_dim; ++c) {
      const float* keys = sample.KeyChannel(kv_head, c);
      double sum = 0;
      for (int32_t j = 0; j < sample.tokens; ++j) sum += static_cast<double>(std::abs(keys[j]));
      const double tokens = sample.tokens;
      const size_t channel = static_cast<size_t>(c);
      products_[first + channel] += queries[channel] / tokens * (sum / tokens);
    }
  }

  Status Finish(kvcache::SparseArtefacts& artefacts) override {
    artefacts.channels.clear();
    const size_t head_dim = static_cast<size_t>(shape_.head_dim);
    for (size_t first = 0; first < products_.size(); first += head_dim) {
      std::vector<int16_t> order(head_dim);
      std::iota(order.begin(), order.end(), int16_t{0});
      std::ranges::stable_sort(order, std::greater<>(), [&](int16_t channel) {
        return products_[first + static_cast<size_t>(channel)];
      });
      artefacts.channels.insert(artefacts.channels.end(), order.begin(), order.end());
    }
    return OkStatus();
  }

 private:
  AttentionShape shape_;
  std::vector<double> products_;  // [layers, kv_heads, head_dim], over prompts and query heads
};

}  // namespace

std::unique_ptr<Table> MakeChannels(const AttentionShape& shape) {
  return std::make_unique<Channels>(shape);
}

}  // namespace lacuna::engine
