#include "tests/ops/attention_fixture.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

namespace lacuna::kernels {

std::string Describe(const AttentionSpec& spec) {
  return spec.which.Name() + " heads " + std::to_string(spec.q_heads) + "/" +
         std::to_string(spec.kv_heads) + " d " + std::to_string(spec.head_dim) + " page " +
         std::to_string(spec.page_tokens) + " window " + std::to_string(spec.shape.window_tokens) +
         "+" + std::to_string(spec.shape.sink_tokens) + " softcap " + std::to_string(spec.softcap) +
         (spec.sink_logits ? " sink logits" : "");
}

AttentionWorld::AttentionWorld(std::shared_ptr<Backend> backend, const AttentionSpec& spec,
                               std::vector<int> sequence_tokens, uint32_t seed)
    : backend_(std::move(backend)),
      spec_(spec),
      tokens_(std::move(sequence_tokens)),
      random_(seed) {
  if (spec_.scale == 0.0f) spec_.scale = 1.0f / std::sqrt(static_cast<float>(spec_.head_dim));
  int pages = 1;  // one page that nobody owns
  for (int tokens : tokens_) pages += (tokens + spec_.page_tokens - 1) / spec_.page_tokens;
  std::vector<int32_t> order(static_cast<size_t>(pages));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random_);
  shape_ = {nullptr, spec_.dtype(), pages, spec_.kv_heads, spec_.head_dim, spec_.page_tokens};
  memory_ = std::make_unique<TestMemory>(*backend_, static_cast<size_t>(shape_.Bytes()), 0xff);
  for (int head = 0; head < spec_.q_heads; ++head) sink_logits_.push_back(Random(2.0f));
  sink_memory_ = std::make_unique<TestArray<float>>(*backend_, sink_logits_);
  auto next = order.begin();
  for (size_t s = 0; s < tokens_.size(); ++s) {
    const int count = (tokens_[s] + spec_.page_tokens - 1) / spec_.page_tokens;
    page_table_.emplace_back(next, next + count);
    next += count;
    Append(static_cast<int>(s));
  }
  unwritten_page_ = *next;
}

KvPool AttentionWorld::pool() {
  KvPool pool = shape_;
  pool.data = memory_->device();
  return pool;
}

// In two calls, the second of which starts inside a page.
void AttentionWorld::Append(int sequence) {
  const int tokens = tokens_[static_cast<size_t>(sequence)];
  const int64_t columns = int64_t{spec_.kv_heads} * spec_.head_dim;
  TestTensor k = MakeTensor(spec_.dtype(), tokens + 1, columns);
  TestTensor v = MakeTensor(spec_.dtype(), tokens + 1, columns);
  FillRandom(&k, 1.0f);
  FillRandom(&v, 1.0f);
  std::vector<float> keys, values;
  for (int t = 0; t < tokens; ++t) {
    for (int64_t i = 0; i < columns; ++i) {
      keys.push_back(k.at(t, i));
      values.push_back(v.at(t, i));
    }
  }
  k_.push_back(std::move(keys));
  v_.push_back(std::move(values));
  AppendTensors(sequence, &k, &v, tokens / 3);
}

void AttentionWorld::Poison(int sequence, const std::function<bool(int, int)>& bad) {
  const auto s = static_cast<size_t>(sequence);
  const int tokens = tokens_[s];
  const int64_t columns = int64_t{spec_.kv_heads} * spec_.head_dim;
  TestTensor k = MakeTensor(spec_.dtype(), tokens + 1, columns);
  TestTensor v = MakeTensor(spec_.dtype(), tokens + 1, columns);
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  for (int t = 0; t < tokens; ++t) {
    for (int64_t i = 0; i < columns; ++i) {
      const bool nan = bad(t, static_cast<int>(i) / spec_.head_dim);
      const auto at = static_cast<size_t>(t * columns + i);
      k.set(t, i, nan ? kNan : k_[s][at]);
      v.set(t, i, nan ? kNan : v_[s][at]);
    }
  }
  AppendTensors(sequence, &k, &v, tokens);
}

// The tokens of a sequence and a row without a slot, in two calls, the second from `first` on.
void AttentionWorld::AppendTensors(int sequence, TestTensor* k, TestTensor* v, int first) {
  const int tokens = tokens_[static_cast<size_t>(sequence)];
  std::vector<int32_t> slots;
  for (int t = 0; t < tokens; ++t) {
    const auto page = static_cast<size_t>(t / spec_.page_tokens);
    slots.push_back(page_table_[static_cast<size_t>(sequence)][page] * spec_.page_tokens +
                    t % spec_.page_tokens);
  }
  slots.push_back(-1);
  TestArray<int32_t> slot_memory(*backend_, slots);
  Stream stream;
  for (const auto& [begin, end] : {std::pair(0, first), std::pair(first, tokens + 1)}) {
    if (begin == end) continue;
    const AppendKvArgs args{k->view3(spec_.kv_heads).Slice(begin, end - begin),
                            v->view3(spec_.kv_heads).Slice(begin, end - begin),
                            TensorView(slot_memory.device() + begin, DType::kI32, {end - begin}),
                            pool()};
    ASSERT_EQ(AppendKv(*backend_, args, stream), OkStatus());
  }
  ASSERT_EQ(backend_->device().Synchronize(stream), OkStatus());  // k and v go
}

AttentionParams AttentionWorld::params() {
  return {spec_.scale, spec_.softcap, spec_.sink_logits ? sink_memory_->device() : nullptr,
          spec_.shape};
}

void AttentionWorld::AddPage(ListBuilder* lists, int sequence, int logical) const {
  lists->pages.push_back(page_table_[static_cast<size_t>(sequence)][static_cast<size_t>(logical)]);
  lists->logical.push_back(logical);
}

void AttentionWorld::AddAllPages(ListBuilder* lists, int sequence) const {
  for (int i = 0; i < pages(sequence); ++i) AddPage(lists, sequence, i);
}

float AttentionWorld::Random(float limit) {
  return std::uniform_real_distribution<float>(-limit, limit)(random_);
}

void AttentionWorld::FillRandom(TestTensor* q, float limit) {
  for (int64_t row = 0; row < q->rows(); ++row) {
    for (int64_t i = 0; i < q->dim(); ++i) q->set(row, i, Random(limit));
  }
}

size_t AttentionWorld::KeyIndex(int token, int kv_head) const {
  return static_cast<size_t>((token * spec_.kv_heads + kv_head) * spec_.head_dim);
}

AttentionWorld::Expected AttentionWorld::Reference(const TestTensor& q, int64_t row, int head,
                                                   int sequence, int position,
                                                   const std::function<bool(int)>& listed,
                                                   const Extra& extra) const {
  const StaticShape shape = extra.shape.value_or(spec_.shape);
  const int kv_head = head / (spec_.q_heads / spec_.kv_heads);
  const auto dims = static_cast<size_t>(spec_.head_dim);
  std::vector<std::pair<int, double>> scores;
  for (int key = 0; key < tokens(sequence); ++key) {
    const bool shaped =
        key <= position && (shape.window_tokens == 0 || key > position - shape.window_tokens ||
                            key < shape.sink_tokens);
    if (!shaped || !listed(key)) continue;
    const float* k = &k_[static_cast<size_t>(sequence)][KeyIndex(key, kv_head)];
    double score = 0.0;
    for (size_t d = 0; d < dims; ++d)
      score += double{q.at(row, head * spec_.head_dim + static_cast<int>(d))} * k[d];
    score *= double{spec_.scale};
    if (spec_.softcap > 0.0f) score = spec_.softcap * std::tanh(score / spec_.softcap);
    scores.emplace_back(key, score);
  }
  Expected expected{std::vector<double>(dims, 0.0), -std::numeric_limits<double>::infinity()};
  if (scores.empty()) return expected;
  double max = -std::numeric_limits<double>::infinity();
  for (const auto& [key, score] : scores) max = std::max(max, score);
  double sum = 0.0;
  for (const auto& [key, score] : scores) {
    const double p = std::exp(score - max);
    sum += p;
    const float* v = &v_[static_cast<size_t>(sequence)][KeyIndex(key, kv_head)];
    for (size_t d = 0; d < dims; ++d) expected.out[d] += p * v[d];
  }
  expected.lse = max + std::log(sum);
  if (spec_.sink_logits) {
    sum += std::exp(double{sink_logits_[static_cast<size_t>(head)]} - max);
  }
  sum += std::exp(extra.dropped_lse - max);
  for (double& value : expected.out) value /= sum;
  return expected;
}

void AttentionWorld::ExpectHead(const TestTensor& out, const TestTensor& lse, int64_t row, int head,
                                const Expected& expected) const {
  const bool f32 = spec_.dtype() == DType::kF32;
  const double out_tolerance = f32 ? 2e-5 : spec_.dtype() == DType::kF16 ? 2e-3 : 8e-3;
  for (int d = 0; d < spec_.head_dim; ++d) {
    ASSERT_NEAR(out.at(row, head * spec_.head_dim + d), expected.out[static_cast<size_t>(d)],
                out_tolerance)
        << "row " << row << " head " << head << " channel " << d;
  }
  if (std::isinf(expected.lse)) {
    ASSERT_EQ(lse.at(row, head), expected.lse) << "row " << row << " head " << head;
  } else {
    ASSERT_NEAR(lse.at(row, head), expected.lse, f32 ? 2e-5 : 1e-3)
        << "row " << row << " head " << head;
  }
}

}  // namespace lacuna::kernels
