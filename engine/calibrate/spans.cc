#include <algorithm>
#include <array>
#include <functional>
#include <limits>
#include <map>

#include "engine/calibrate/table.h"
#include "kvcache/sparse/decode_counts.h"

namespace lacuna::engine {
namespace {

using kvcache::HeadSpan;

constexpr int32_t kSinkTokens = 64;
constexpr std::array<float, 4> kAlphas = {0, -1024, 1024, 2048};
constexpr int kBetaSteps = 8;  // betas are multiples of 1/8

// The paper's rules.
std::vector<HeadSpan> Rules() {
  std::vector<HeadSpan> rules;
  for (const float alpha : kAlphas) {
    for (int i = 0; i <= kBetaSteps; ++i) {
      rules.push_back({alpha, static_cast<float>(i) / kBetaSteps});
    }
  }
  return rules;
}

// One way up for a head: from its rule so far to a wider one.
struct Upgrade final {
  size_t head = 0, rule = 0;
  double cost = 0;  // more density
  double gain_per_cost = 0;
};

// Choices of spans are per kv head: the runtime reads the widest span of a group anyhow.
class Spans final : public Table {
 public:
  Spans(const AttentionShape& shape, const CalibrateOptions& options)
      : shape_(shape), density_(options.density), rules_(Rules()) {}

  // The loss of a rule is the mass that it drops at the rows next to and in the answer; that is
  // where the paper takes its gradients.
  void Add(const HeadMap& map, const PromptMarks&) override {
    const int32_t tokens = map.tokens();
    std::vector<double>& losses = losses_[tokens];
    const size_t heads = static_cast<size_t>(int64_t{shape_.layers} * shape_.kv_heads);
    losses.resize(heads * rules_.size());
    const size_t head = static_cast<size_t>(int64_t{map.sample->layer} * shape_.kv_heads +
                                            map.sample->KvHead(map.head));
    const size_t first = map.TailBegin(kProbeRows);
    const double rows = static_cast<double>(map.rows.size() - first);
    for (size_t i = first; i < map.rows.size(); ++i) {
      const float* probs = map.Probs(i);
      std::vector<double> before(static_cast<size_t>(tokens) + 1);  // sums of probs
      for (size_t j = 0; j < static_cast<size_t>(tokens); ++j) {
        before[j + 1] = before[j] + static_cast<double>(probs[j]);
      }
      for (size_t rule = 0; rule < rules_.size(); ++rule) {
        const int64_t span = kvcache::SpanTokens(rules_[rule], tokens);
        const int64_t newest = map.rows[i] + 1 - std::max<int64_t>(span - kSinkTokens, 1);
        if (newest <= kSinkTokens) continue;
        losses[head * rules_.size() + rule] +=
            (before[static_cast<size_t>(newest)] - before[kSinkTokens]) / rows;
      }
    }
    if (map.sample->layer == 0 && map.head == 0) ++prompts_[tokens];
  }

  Status Finish(kvcache::SparseArtefacts& artefacts) override {
    if (losses_.empty()) return InvalidArgument("spans: got no prompt, need one");
    const size_t heads = static_cast<size_t>(int64_t{shape_.layers} * shape_.kv_heads);
    std::vector<Upgrade> upgrades;
    std::vector<size_t> chosen(heads);
    double density = 0;
    for (size_t head = 0; head < heads; ++head) {
      density += AddUpgrades(head, chosen[head], upgrades);
    }
    // A head's upgrades have falling gains, so this order is also that of each head.
    std::ranges::stable_sort(upgrades, std::greater<>(), &Upgrade::gain_per_cost);
    std::vector<bool> full(
        heads);  // its next upgrade did not fit, so those behind it must not come
    for (const Upgrade& upgrade : upgrades) {
      if (full[upgrade.head]) continue;
      if (density + upgrade.cost > density_ * static_cast<double>(heads) + 1e-9) {
        full[upgrade.head] = true;
        continue;
      }
      density += upgrade.cost;
      chosen[upgrade.head] = upgrade.rule;
    }
    artefacts.spans.clear();
    for (size_t i = 0; i < heads * static_cast<size_t>(shape_.group()); ++i) {
      artefacts.spans.push_back(rules_[chosen[i / static_cast<size_t>(shape_.group())]]);
    }
    return OkStatus();
  }

 private:
  // Mean over the lengths of the samples.
  double Density(size_t rule) const {
    double sum = 0;
    for (const auto& [tokens, losses] : losses_) {
      const int64_t span = kvcache::SpanTokens(rules_[rule], tokens);
      sum += static_cast<double>(std::min<int64_t>(span, tokens)) / tokens;
    }
    return sum / static_cast<double>(losses_.size());
  }
  double Loss(size_t head, size_t rule) const {
    double sum = 0;
    for (const auto& [tokens, losses] : losses_) {
      sum += losses[head * rules_.size() + rule] / prompts_.at(tokens);
    }
    return sum / static_cast<double>(losses_.size());
  }

  // Starts the head at its narrowest rule and follows the lower hull of loss over density. Returns
  // the density of the start.
  double AddUpgrades(size_t head, size_t& start, std::vector<Upgrade>& upgrades) const {
    const auto better = [&](size_t a, size_t b) {  // equal ones: the rule that stands first
      return std::pair(Density(a), Loss(head, a)) < std::pair(Density(b), Loss(head, b));
    };
    for (size_t rule = 1; rule < rules_.size(); ++rule) start = better(rule, start) ? rule : start;
    double last_gain = std::numeric_limits<double>::infinity();
    for (size_t from = start;;) {
      Upgrade best{.head = head};
      for (size_t rule = 0; rule < rules_.size(); ++rule) {
        const double cost = Density(rule) - Density(from);
        const double gain = Loss(head, from) - Loss(head, rule);
        if (cost <= 0 || gain <= 0) continue;
        if (gain / cost > best.gain_per_cost + 1e-12) best = {head, rule, cost, gain / cost};
      }
      if (best.gain_per_cost <= 0) return Density(start);
      // Never above the one before, not even by rounding: they are sorted by it.
      best.gain_per_cost = std::min(best.gain_per_cost, last_gain);
      last_gain = best.gain_per_cost;
      upgrades.push_back(best);
      from = best.rule;
    }
  }

  AttentionShape shape_;
  double density_;
  std::vector<HeadSpan> rules_;
  std::map<int32_t, std::vector<double>> losses_;  // by length: [layers, kv_heads, rules]
  std::map<int32_t, int32_t> prompts_;             // by length
};

}  // namespace

std::unique_ptr<Table> MakeSpans(const AttentionShape& shape, const CalibrateOptions& options) {
  return std::make_unique<Spans>(shape, options);
}

}  // namespace lacuna::engine
