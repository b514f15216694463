#include <algorithm>

#include "engine/calibrate/table.h"

namespace lacuna::engine {
namespace {

class HeadScores final : public Table {
 public:
  HeadScores(const AttentionShape& shape, const CalibrateOptions& options)
      : shape_(shape),
        sink_tokens_(static_cast<int32_t>(options.sink_tokens)),
        local_tokens_(static_cast<int32_t>(options.local_tokens)),
        mass_(static_cast<size_t>(shape.layers * shape.q_heads)) {}

  void Add(const HeadMap& map, const PromptMarks& marks) override {
    const size_t place =
        static_cast<size_t>(int64_t{map.sample->layer} * shape_.q_heads + map.head);
    for (const PromptMarks::Answer& answer : marks.answers) {
      const auto row = std::ranges::lower_bound(map.rows, answer.row);
      if (row == map.rows.end() || *row != answer.row) continue;
      const float* probs = map.Probs(static_cast<size_t>(row - map.rows.begin()));
      double mass = 0;
      bool far = false;
      for (const TokenSpan& span : answer.spans) {
        const int32_t end = std::min(span.end, answer.row - local_tokens_ + 1);
        for (int32_t key = std::max(span.begin, sink_tokens_); key < end; ++key) {
          mass += static_cast<double>(probs[key]);
          far = true;
        }
      }
      if (!far) continue;
      mass_[place] += mass;
      if (place == 0) ++rows_;
    }
  }

  Status Finish(kvcache::SparseArtefacts& artefacts) override {
    if (rows_ == 0) {
      return InvalidArgument(
          "head_scores: got no prompt whose answer was found and generated, need prompts with "
          "\"answers\" that stand in them");
    }
    artefacts.head_scores.clear();
    const size_t group = static_cast<size_t>(shape_.group());
    for (size_t first = 0; first < mass_.size(); first += group) {
      const auto begin = mass_.begin() + static_cast<ptrdiff_t>(first);
      const double most = *std::max_element(begin, begin + static_cast<ptrdiff_t>(group));
      artefacts.head_scores.push_back(
          std::clamp(Rounded(most / static_cast<double>(rows_)), 0.0f, 1.0f));
    }
    return OkStatus();
  }

 private:
  AttentionShape shape_;
  int32_t sink_tokens_, local_tokens_;
  std::vector<double> mass_;  // [layers, q_heads], added up over rows
  int64_t rows_ = 0;
};

}  // namespace

std::unique_ptr<Table> MakeHeadScores(const AttentionShape& shape,
                                      const CalibrateOptions& options) {
  return std::make_unique<HeadScores>(shape, options);
}

}  // namespace lacuna::engine
