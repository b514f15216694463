// What each shipped decode profile reads at its defaults, against the method's algorithm written
// out here once more from its publication, in double precision and without the words of profiles.
//
// Scores of the references come from exact keys. A unit whose score lies nearer to the last one
// kept than `slack` (rounding of stored metadata and of the sums) may be kept or not; how many are
// kept is exact.
#include <cmath>
#include <functional>
#include <numeric>
#include <set>

#include "kernels/cpu/isa.h"
#include "kvcache/sparse/decode_counts.h"
#include "kvcache/sparse/profile_set.h"
#include "kvcache/sparse/resolve.h"
#include "tests/kvcache/sparse_test_models.h"
#include "tests/ops/select_fixture.h"

namespace lacuna::kernels {
namespace {

using Scores = std::vector<double>;
using Tokens = SelectRun::Tokens;

constexpr int kTokens = 9001;
constexpr SelectShape kShape{.kv_heads = 2, .group = 3, .head_dim = 64, .page_tokens = 64};

std::vector<BackendCase> Cases() {
  std::vector<BackendCase> cases;
  for (const BackendCase& which : BackendCases(/*aligned_only=*/true)) {
    const bool best = which.isa == cpu::IsaName(cpu::DetectIsa());
    if (which.precision == DType::kBF16 && (best || which.cuda())) cases.push_back(which);
  }
  return cases;
}

kvcache::SparsePlan PlanOf(const std::string& name) {
  static const kvcache::ProfileSet kSet = kvcache::ProfileSet::Load(kvcache::ShippedProfiles()).set;
  kvcache::AttentionShape shape = kvcache::Recall12m();
  shape.q_heads = kShape.kv_heads * kShape.group;
  shape.kv_heads = kShape.kv_heads;
  const auto resolved =
      kvcache::ResolvePlan(*kSet.Find(name), shape, kvcache::MakeArtefacts(shape));
  EXPECT_EQ(resolved.errors, std::vector<std::string>{});
  return *resolved.plan;
}

class DecodeCards : public testing::TestWithParam<BackendCase> {
 protected:
  void SetUp() override {
    auto backend = MakeTestBackend(GetParam());
    if (SkipsOrFails(backend)) return;
    backend_ = std::move(backend).value();
  }

  // Runs one row of kTokens by the profile; read_[kv] is what its kv head reads.
  void Read(const std::string& name) {
    const kvcache::SparsePlan plan = PlanOf(name);
    world_ = std::make_unique<SelectWorld>(backend_, kShape, DType::kBF16,
                                           std::vector<int>{kTokens}, 11);
    world_->AddMetadata(plan.decode.metadata);
    world_->AddMetadata(plan.decode.refine_metadata);
    RowCase row;
    row.tokens = kTokens;
    row.what = {.counts = kvcache::CountUnits(plan, kTokens),
                .p = plan.decode_dials.p,
                .threshold = plan.decode_dials.threshold,
                .refine_p = plan.decode_dials.refine_p,
                .refresh_cosine = plan.decode_dials.refresh_cosine};
    ASSERT_FALSE(row.what.counts.dense);
    run_ = std::make_unique<SelectRun>(*world_, plan.decode, std::vector<RowCase>{row});
    ChoiceStore choices;
    const SelectOutcome outcome = run_->Run(0, 1, choices);
    ASSERT_EQ(run_->status(), OkStatus());
    read_.assign(static_cast<size_t>(kShape.kv_heads), Tokens(kTokens, false));
    for (int kv = 0; kv < kShape.kv_heads; ++kv) {
      for (const auto& entry : outcome.lists[static_cast<size_t>(kv)]) {
        for (int bit = 0; bit < kShape.page_tokens; ++bit) {
          const int token = entry.logical * kShape.page_tokens + bit;
          if (token < kTokens && (entry.mask >> bit & 1) != 0) {
            read_[static_cast<size_t>(kv)][static_cast<size_t>(token)] = true;
          }
        }
      }
    }
  }

  double Q(int head, int channel) const {
    return run_->q().at(0, head * kShape.head_dim + channel);
  }
  double K(int token, int kv, int channel) const { return world_->key(0, token, kv)[channel]; }
  static int FirstHead(int kv) { return kv * kShape.group; }
  static int EndHead(int kv) { return FirstHead(kv) + kShape.group; }

  // scale * q . k of every token.
  Scores Logits(int head) const {
    Scores logits(kTokens, 0.0);
    for (int t = 0; t < kTokens; ++t) {
      for (int c = 0; c < kShape.head_dim; ++c) {
        logits[static_cast<size_t>(t)] += Q(head, c) * K(t, head / kShape.group, c);
      }
      logits[static_cast<size_t>(t)] *= SelectRun::kScale;
    }
    return logits;
  }
  static Scores Softmax(Scores logits) {
    const double max = *std::ranges::max_element(logits);
    double sum = 0;
    for (double& logit : logits) sum += logit = std::exp(logit - max);
    for (double& logit : logits) logit /= sum;
    return logits;
  }
  // Of each group of `unit` tokens: fn(first, end).
  static Scores Units(int unit, const std::function<double(int, int)>& fn) {
    Scores scores;
    for (int first = 0; first < kTokens; first += unit) {
      scores.push_back(fn(first, std::min(first + unit, kTokens)));
    }
    return scores;
  }
  static void RaiseTo(Scores* to, const Scores& other) {
    for (size_t i = 0; i < to->size(); ++i) (*to)[i] = std::max((*to)[i], other[i]);
  }
  static void Add(Scores* to, const Scores& other) {
    for (size_t i = 0; i < to->size(); ++i) (*to)[i] += other[i];
  }

  // Upper bound of the logits of a page's keys, from per-channel extremes (Quest).
  Scores BoxBounds(int kv, int head, int page) const {
    return Units(page, [&](int first, int end) {
      double bound = 0;
      for (int c = 0; c < kShape.head_dim; ++c) {
        double low = 1e30, high = -1e30;
        for (int t = first; t < end; ++t) {
          low = std::min(low, K(t, kv, c));
          high = std::max(high, K(t, kv, c));
        }
        bound += std::max(Q(head, c) * low, Q(head, c) * high);
      }
      return bound;
    });
  }

  // The units that kv head `kv` reads, which it reads wholly.
  std::set<int> ReadUnits(int kv, int unit) const {
    const Tokens& read = read_[static_cast<size_t>(kv)];
    std::set<int> units;
    for (int t = 0; t < kTokens; ++t) {
      EXPECT_EQ(read[static_cast<size_t>(t)], read[static_cast<size_t>(t / unit * unit)]) << t;
      if (read[static_cast<size_t>(t)]) units.insert(t / unit);
    }
    return units;
  }
  static int Last(int unit) { return (kTokens - 1) / unit; }

  // `got` holds [0, sinks) and [locals_from, end) and, of those between, the `count` best.
  static void ExpectBest(const std::set<int>& got, const Scores& scores, int sinks, int locals_from,
                         size_t count, double slack) {
    Scores between;
    size_t kept = 0;
    for (int i = 0; i < static_cast<int>(scores.size()); ++i) {
      if (i < sinks || i >= locals_from) {
        EXPECT_TRUE(got.contains(i)) << "forced unit " << i;
      } else {
        between.push_back(scores[static_cast<size_t>(i)]);
        kept += got.contains(i) ? 1 : 0;
      }
    }
    ASSERT_GT(between.size(), count) << "nothing to choose";
    EXPECT_EQ(kept, count);
    std::ranges::nth_element(between, between.begin() + static_cast<ptrdiff_t>(count) - 1,
                             std::greater<>());
    const double cut = between[count - 1];
    for (int i = sinks; i < locals_from; ++i) {
      const double score = scores[static_cast<size_t>(i)];
      if (score > cut + slack) {
        EXPECT_TRUE(got.contains(i)) << i << ": " << score << " > " << cut;
      } else if (score < cut - slack) {
        EXPECT_FALSE(got.contains(i)) << i << ": " << score << " < " << cut;
      }
    }
  }

  void ExpectOneListForAllHeads() const {
    for (const Tokens& read : read_) EXPECT_EQ(read, read_[0]);
  }

  std::shared_ptr<Backend> backend_;
  std::unique_ptr<SelectWorld> world_;
  std::unique_ptr<SelectRun> run_;
  std::vector<Tokens> read_;
};

constexpr double kExact = 1e-4;  // of sums in f32

// Tang et al. 2024: pages of 16, a budget of 2048 tokens whose last page is the newest.
TEST_P(DecodeCards, Quest) {
  ASSERT_NO_FATAL_FAILURE(Read("quest"));
  for (int kv = 0; kv < kShape.kv_heads; ++kv) {
    Scores scores = BoxBounds(kv, FirstHead(kv), 16);
    for (int h = FirstHead(kv) + 1; h < EndHead(kv); ++h) RaiseTo(&scores, BoxBounds(kv, h, 16));
    ExpectBest(ReadUnits(kv, 16), scores, 0, Last(16), 2048 / 16 - 1, 1e-3);
  }
}

// Yang et al. 2025: pages of 64 scored by the best of their four boxes, 4096 tokens.
TEST_P(DecodeCards, LServe) {
  ASSERT_NO_FATAL_FAILURE(Read("lserve"));
  for (int kv = 0; kv < kShape.kv_heads; ++kv) {
    Scores boxes = BoxBounds(kv, FirstHead(kv), 16);
    for (int h = FirstHead(kv) + 1; h < EndHead(kv); ++h) RaiseTo(&boxes, BoxBounds(kv, h, 16));
    const Scores pages = Units(64, [&](int first, int end) {
      double best = -1e30;
      for (int t = first; t < end; t += 16)
        best = std::max(best, boxes[static_cast<size_t>(t / 16)]);
      return best;
    });
    ExpectBest(ReadUnits(kv, 64), pages, 0, Last(64), 4096 / 64 - 1, 1e-3);
  }
}

// Yang et al. 2024: the 256 tokens of the largest logits, nothing forced.
TEST_P(DecodeCards, TidalDecode) {
  ASSERT_NO_FATAL_FAILURE(Read("tidaldecode"));
  for (int kv = 0; kv < kShape.kv_heads; ++kv) {
    Scores scores = Logits(FirstHead(kv));
    for (int h = FirstHead(kv) + 1; h < EndHead(kv); ++h) RaiseTo(&scores, Logits(h));
    ExpectBest(ReadUnits(kv, 1), scores, 0, kTokens, 256, kExact);
  }
}

// Yang et al. 2025: a quarter of 2048 tokens for 4 sinks and the newest; the rest goes to every
// head's best token, then every head's second, without repeats.
TEST_P(DecodeCards, LessIsMore) {
  ASSERT_NO_FATAL_FAILURE(Read("lessismore"));
  ExpectOneListForAllHeads();
  constexpr int kSinks = 4, kRecent = 512 - kSinks, kChosen = 1536;
  std::vector<std::vector<int>> ranking;
  for (int h = 0; h < world_->q_heads(); ++h) {
    const Scores logits = Logits(h);
    std::vector<int>& order = ranking.emplace_back(kTokens - kSinks - kRecent);
    std::iota(order.begin(), order.end(), kSinks);
    std::ranges::stable_sort(order, [&](int a, int b) {
      return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
    });
  }
  std::set<int> chosen;
  for (size_t rank = 0; chosen.size() < kChosen; ++rank) {
    for (size_t h = 0; h < ranking.size() && chosen.size() < kChosen; ++h) {
      chosen.insert(ranking[h][rank]);
    }
  }
  int differ = 0, read = 0;
  for (int t = 0; t < kTokens; ++t) {
    const bool expected = t < kSinks || t >= kTokens - kRecent || chosen.contains(t);
    differ += expected != read_[0][static_cast<size_t>(t)] ? 1 : 0;
    read += read_[0][static_cast<size_t>(t)] ? 1 : 0;
  }
  EXPECT_EQ(read, 2048);
  EXPECT_LE(differ, 2);  // two logits of the last rank may be equal but for rounding
}

// DELTA 2025: pages of 16 by the sum over their tokens of the largest probability of any head; 64
// pages, of which the 8 newest are forced; one list for all heads.
TEST_P(DecodeCards, Delta) {
  ASSERT_NO_FATAL_FAILURE(Read("delta"));
  ExpectOneListForAllHeads();
  Scores probability = Softmax(Logits(0));
  for (int h = 1; h < world_->q_heads(); ++h) RaiseTo(&probability, Softmax(Logits(h)));
  const Scores pages = Units(16, [&](int first, int end) {
    return std::accumulate(probability.begin() + first, probability.begin() + end, 0.0);
  });
  const int locals_from = (kTokens - 128) / 16;
  const auto locals = static_cast<size_t>(Last(16) + 1 - locals_from);
  ExpectBest(ReadUnits(0, 16), pages, 0, locals_from, 64 - locals, 1e-6);
}

// Yang et al. 2024: an eighth of the channels at 4 bits; one token in 16, nothing forced.
TEST_P(DecodeCards, DoubleSparsity) {
  ASSERT_NO_FATAL_FAILURE(Read("double-sparsity"));
  const MetadataSpec spec = PlanOf("double-sparsity").decode.metadata;
  ASSERT_EQ(spec.channels, kShape.head_dim / 8);
  const std::vector<int16_t>& lists = world_->channels(spec);
  for (int kv = 0; kv < kShape.kv_heads; ++kv) {
    const int16_t* list = lists.data() + kv * spec.channels;
    Scores best(kTokens, -1e30);
    double slack = 0;
    for (int h = FirstHead(kv); h < EndHead(kv); ++h) {
      double weight = 0;
      for (int i = 0; i < spec.channels; ++i) weight += std::abs(Q(h, list[i]));
      for (int t = 0; t < kTokens; ++t) {
        double score = 0, low = 1e30, high = -1e30;
        for (int i = 0; i < spec.channels; ++i) {
          score += Q(h, list[i]) * K(t, kv, list[i]);
          low = std::min(low, K(t, kv, list[i]));
          high = std::max(high, K(t, kv, list[i]));
        }
        best[static_cast<size_t>(t)] = std::max(best[static_cast<size_t>(t)], score);
        // Half a step of 15, and as much again for its bf16 scale and zero.
        slack = std::max(slack, weight * (high - low) / 15);
      }
    }
    ExpectBest(ReadUnits(kv, 1), best, 0, kTokens, kTokens / 16, slack);
  }
}

// Wu et al. 2024: the softmax of every head, added up over all heads of the layer; 128 sinks, 512
// newest, and the best 2048 between.
TEST_P(DecodeCards, TokenSelect) {
  ASSERT_NO_FATAL_FAILURE(Read("tokenselect"));
  ExpectOneListForAllHeads();
  Scores votes = Softmax(Logits(0));
  for (int h = 1; h < world_->q_heads(); ++h) Add(&votes, Softmax(Logits(h)));
  ExpectBest(ReadUnits(0, 1), votes, 128, kTokens - 512, 2048, 1e-7);
}

// Sadhukhan et al. 2025: the mean key of 16 against the mean query of the group; 64 pages, the
// first and the newest beside them.
TEST_P(DecodeCards, Kinetics) {
  ASSERT_NO_FATAL_FAILURE(Read("kinetics"));
  for (int kv = 0; kv < kShape.kv_heads; ++kv) {
    double weight = 0;
    const Scores scores = Units(16, [&](int first, int end) {
      double score = 0, sum = 0;
      for (int c = 0; c < kShape.head_dim; ++c) {
        double query = 0, key = 0;
        for (int h = FirstHead(kv); h < EndHead(kv); ++h) query += Q(h, c) / kShape.group;
        for (int t = first; t < end; ++t) key += K(t, kv, c) / (end - first);
        score += query * key;
        sum += std::abs(query * key);
      }
      weight = std::max(weight, sum);
      return score;
    });
    ExpectBest(ReadUnits(kv, 16), scores, 1, Last(16), 64, weight / 256);  // means are bf16
  }
}

// Lin et al. 2025, over what `base` lets pass: the fewest tokens of each query head that hold 85 %
// of its softmax there, united. The estimate has 4 bits a channel, so masses are compared, not
// sets.
void ExpectTopP(const std::vector<Scores>& logits, const std::set<int>& base, const Tokens& read,
                double p, double slack) {
  size_t most = 0, count = 0;
  for (size_t t = 0; t < read.size(); ++t) {
    if (!read[t]) continue;
    ++count;
    EXPECT_TRUE(base.empty() || base.contains(static_cast<int>(t))) << t;
  }
  for (const Scores& head : logits) {
    std::vector<double> weights;
    double all = 0, held = 0;
    const double max = *std::ranges::max_element(head);
    for (size_t t = 0; t < head.size(); ++t) {
      if (!base.empty() && !base.contains(static_cast<int>(t))) continue;
      const double weight = std::exp(head[t] - max);
      weights.push_back(weight);
      all += weight;
      if (read[t]) held += weight;
    }
    EXPECT_GE(held / all, p - slack);
    std::ranges::sort(weights, std::greater<>());
    double sum = 0;
    size_t needed = 0;
    while (sum < (p + slack) * all && needed < weights.size()) sum += weights[needed++];
    most += needed;
  }
  EXPECT_LE(count, most + 16);  // and the forced newest unit
}

TEST_P(DecodeCards, TwilightOverQuest) {
  ASSERT_NO_FATAL_FAILURE(Read("twilight-quest"));
  for (int kv = 0; kv < kShape.kv_heads; ++kv) {
    Scores scores = BoxBounds(kv, FirstHead(kv), 16);
    std::vector<Scores> logits = {Logits(FirstHead(kv))};
    for (int h = FirstHead(kv) + 1; h < EndHead(kv); ++h) {
      RaiseTo(&scores, BoxBounds(kv, h, 16));
      logits.push_back(Logits(h));
    }
    std::vector<int> order(scores.size() - 1);
    std::iota(order.begin(), order.end(), 0);
    std::ranges::stable_sort(order, [&](int a, int b) {
      return scores[static_cast<size_t>(a)] > scores[static_cast<size_t>(b)];
    });
    std::set<int> base;
    for (int i = 0; i < 8192 / 16 - 1; ++i) {
      for (int t = 0; t < 16; ++t) base.insert(order[static_cast<size_t>(i)] * 16 + t);
    }
    for (int t = Last(16) * 16; t < kTokens; ++t) base.insert(t);
    ExpectTopP(logits, base, read_[static_cast<size_t>(kv)], 0.85, 0.05);
  }
}

TEST_P(DecodeCards, TwilightOverDoubleSparsity) {
  ASSERT_NO_FATAL_FAILURE(Read("twilight-double-sparsity"));
  ASSERT_EQ(PlanOf("twilight-double-sparsity").decode.metadata.channels, kShape.head_dim / 2);
  for (int kv = 0; kv < kShape.kv_heads; ++kv) {
    std::vector<Scores> logits;
    for (int h = FirstHead(kv); h < EndHead(kv); ++h) logits.push_back(Logits(h));
    // The base of 8192 of 9001 tokens is not made again here: what it drops costs little mass.
    ExpectTopP(logits, {}, read_[static_cast<size_t>(kv)], 0.85, 0.06);
  }
}

INSTANTIATE_TEST_SUITE_P(Every, DecodeCards, testing::ValuesIn(Cases()), CaseName);

// Xiao et al. 2023: 4 sinks and the newest 2044 for every head, in both phases.
TEST(StaticCards, StreamingLlm) {
  const kvcache::SparsePlan plan = PlanOf("streamingllm");
  for (int32_t layer = 0; layer < plan.shape.layers; ++layer) {
    for (int32_t kv = 0; kv < plan.shape.kv_heads; ++kv) {
      const StaticShape shape = kvcache::DecodeShape(plan, layer, kv, 100000);
      EXPECT_EQ(shape.sink_tokens, 4);
      EXPECT_EQ(shape.window_tokens, 2044);
      EXPECT_EQ(kvcache::PrefillShape(plan, layer, kv, 100000).window_tokens, 2044);
    }
  }
}

// Xiao et al. 2024: the half of the kv heads of the lowest gates keep 64 sinks and 256 newest.
TEST(StaticCards, DuoAttention) {
  const kvcache::SparsePlan plan = PlanOf("duoattention");
  const std::vector<float> gates = kvcache::MakeArtefacts(plan.shape).head_scores;
  std::vector<float> sorted = gates;
  std::ranges::sort(sorted);
  const float median = sorted[sorted.size() / 2];
  for (int32_t layer = 0; layer < plan.shape.layers; ++layer) {
    for (int32_t kv = 0; kv < plan.shape.kv_heads; ++kv) {
      const StaticShape shape = kvcache::DecodeShape(plan, layer, kv, 100000);
      const bool streams = gates[static_cast<size_t>(layer * plan.shape.kv_heads + kv)] < median;
      EXPECT_EQ(shape.window_tokens, streams ? 256 : 0) << layer << ", " << kv;
      EXPECT_EQ(shape.sink_tokens, streams ? 64 : 0);
    }
  }
}

// Fu et al. 2024: a head sees alpha + beta * N tokens, N the length: 64 sinks, else the newest.
TEST(StaticCards, Moa) {
  const kvcache::SparsePlan plan = PlanOf("moa");
  const std::vector<kvcache::HeadSpan> spans = kvcache::MakeArtefacts(plan.shape).spans;
  for (const int64_t tokens : {5000, 20000}) {
    for (int32_t layer = 0; layer < plan.shape.layers; ++layer) {
      for (int32_t kv = 0; kv < plan.shape.kv_heads; ++kv) {
        double widest = 0;
        for (int h = 0; h < kShape.group; ++h) {
          const auto head = static_cast<size_t>(layer * plan.shape.q_heads + kv * kShape.group + h);
          widest =
              std::max(widest, spans[head].alpha + spans[head].beta * static_cast<double>(tokens));
        }
        const double rounded = std::max(128.0, std::ceil(widest / 64) * 64);
        const StaticShape shape = kvcache::DecodeShape(plan, layer, kv, tokens);
        EXPECT_EQ(shape.window_tokens, rounded < static_cast<double>(tokens) ? rounded - 64 : 0)
            << layer << ", " << kv;
      }
    }
  }
}

}  // namespace
}  // namespace lacuna::kernels
