#include "tests/ops/attention_fixture.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "kernels/cpu/append_kv.h"

namespace lacuna::kernels::cpu {

std::string Describe(const AttentionSpec& spec) {
  return std::string(IsaName(spec.isa)) + " " + std::string(DTypeName(spec.dtype)) + " heads " +
         std::to_string(spec.q_heads) + "/" + std::to_string(spec.kv_heads) + " d " +
         std::to_string(spec.head_dim) + " page " + std::to_string(spec.page_tokens) + " window " +
         std::to_string(spec.shape.window_tokens) + "+" + std::to_string(spec.shape.sink_tokens) +
         " softcap " + std::to_string(spec.softcap) + (spec.sink_logits ? " sink logits" : "");
}

std::vector<Isa> IsasHere() {
  std::vector<Isa> isas;
  for (Isa isa : {Isa::kScalar, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16, Isa::kAmx}) {
    if (isa <= DetectIsa()) isas.push_back(isa);
  }
  return isas;
}

GuardedTensor::GuardedTensor(DType dtype, int64_t rows, int64_t heads, int64_t dim)
    : dtype_(dtype),
      rows_(rows),
      heads_(heads),
      dim_(dim),
      data_(static_cast<size_t>(rows * heads * dim) * DTypeBytes(dtype) + 2 * kGuard, kFill) {}

size_t GuardedTensor::Offset(int64_t row, int64_t head, int64_t d) const {
  return kGuard + static_cast<size_t>((row * heads_ + head) * dim_ + d) * DTypeBytes(dtype_);
}

float GuardedTensor::At(int64_t row, int64_t head, int64_t d) const {
  const std::byte* at = data_.data() + Offset(row, head, d);
  if (dtype_ == DType::kF32) {
    float value;
    std::memcpy(&value, at, sizeof(value));
    return value;
  }
  BF16 value;
  std::memcpy(&value, at, sizeof(value));
  return ToFloat(value);
}

void GuardedTensor::Set(int64_t row, int64_t head, int64_t d, float value) {
  std::byte* at = data_.data() + Offset(row, head, d);
  if (dtype_ == DType::kF32) {
    std::memcpy(at, &value, sizeof(value));
    return;
  }
  const BF16 half = ToBF16(value);
  std::memcpy(at, &half, sizeof(half));
}

std::vector<std::byte> GuardedTensor::RowBytes(int64_t row) const {
  const auto first = data_.begin() + static_cast<std::ptrdiff_t>(Offset(row, 0, 0));
  return {first, data_.begin() + static_cast<std::ptrdiff_t>(Offset(row + 1, 0, 0))};
}

bool GuardedTensor::RowUntouched(int64_t row) const {
  return std::ranges::all_of(RowBytes(row), [](std::byte b) { return b == kFill; });
}

bool GuardedTensor::GuardsIntact() const {
  const auto filled = [](std::byte b) { return b == kFill; };
  return std::all_of(data_.begin(), data_.begin() + kGuard, filled) &&
         std::all_of(data_.end() - kGuard, data_.end(), filled);
}

AttentionWorld::AttentionWorld(const AttentionSpec& spec, std::vector<int> sequence_tokens,
                               uint32_t seed)
    : spec_(spec), tokens_(std::move(sequence_tokens)), random_(seed) {
  if (spec_.scale == 0.0f) spec_.scale = 1.0f / std::sqrt(static_cast<float>(spec_.head_dim));
  int pages = 1;  // one page that nobody owns
  for (int tokens : tokens_) pages += (tokens + spec_.page_tokens - 1) / spec_.page_tokens;
  std::vector<int32_t> order(static_cast<size_t>(pages));
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), random_);
  pool_ = {nullptr, spec_.dtype, pages, spec_.kv_heads, spec_.head_dim, spec_.page_tokens};
  memory_.assign(static_cast<size_t>(pool_.Bytes()), std::byte{0xff});  // NaN in both dtypes
  pool_.data = memory_.data();
  for (int head = 0; head < spec_.q_heads; ++head) sink_logits_.push_back(Random(2.0f));
  auto next = order.begin();
  for (size_t s = 0; s < tokens_.size(); ++s) {
    const int count = (tokens_[s] + spec_.page_tokens - 1) / spec_.page_tokens;
    page_table_.emplace_back(next, next + count);
    next += count;
    Append(static_cast<int>(s));
  }
}

// In two calls, the second of which starts inside a page and ends with a token without a slot.
void AttentionWorld::Append(int sequence) {
  const int tokens = tokens_[static_cast<size_t>(sequence)];
  GuardedTensor k(spec_.dtype, tokens + 1, spec_.kv_heads, spec_.head_dim);
  GuardedTensor v(spec_.dtype, tokens + 1, spec_.kv_heads, spec_.head_dim);
  FillRandom(&k, 1.0f);
  FillRandom(&v, 1.0f);
  std::vector<float> keys, values;
  std::vector<int32_t> slots;
  for (int t = 0; t < tokens; ++t) {
    const auto page = static_cast<size_t>(t / spec_.page_tokens);
    slots.push_back(page_table_[static_cast<size_t>(sequence)][page] * spec_.page_tokens +
                    t % spec_.page_tokens);
    for (int head = 0; head < spec_.kv_heads; ++head) {
      for (int d = 0; d < spec_.head_dim; ++d) {
        keys.push_back(k.At(t, head, d));
        values.push_back(v.At(t, head, d));
      }
    }
  }
  slots.push_back(-1);
  k_.push_back(std::move(keys));
  v_.push_back(std::move(values));
  ThreadPool threads(2, false);
  const int first = tokens / 3;
  for (const auto& [begin, end] : {std::pair(0, first), std::pair(first, tokens + 1)}) {
    if (begin == end) continue;
    const AppendKvArgs args{k.view().Slice(begin, end - begin), v.view().Slice(begin, end - begin),
                            TensorView(slots.data() + begin, DType::kI32, {end - begin}), pool_};
    ASSERT_TRUE(AppendKvCpu(args, spec_.isa, threads).ok());
  }
}

AttentionParams AttentionWorld::params() const {
  return {spec_.scale, spec_.softcap, spec_.sink_logits ? sink_logits_.data() : nullptr,
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

void AttentionWorld::FillRandom(GuardedTensor* q, float limit) {
  const TensorView view = q->view();
  for (int64_t row = 0; row < view.dim(0); ++row) {
    for (int64_t head = 0; head < view.dim(1); ++head) {
      for (int64_t d = 0; d < view.dim(2); ++d) q->Set(row, head, d, Random(limit));
    }
  }
}

size_t AttentionWorld::KeyIndex(int token, int kv_head) const {
  return static_cast<size_t>((token * spec_.kv_heads + kv_head) * spec_.head_dim);
}

AttentionWorld::Expected AttentionWorld::Reference(const GuardedTensor& q, int64_t row, int head,
                                                   int sequence, int position,
                                                   const std::function<bool(int)>& listed) const {
  const int kv_head = head / (spec_.q_heads / spec_.kv_heads);
  const auto dims = static_cast<size_t>(spec_.head_dim);
  std::vector<std::pair<int, double>> scores;
  for (int key = 0; key < tokens(sequence); ++key) {
    const bool shaped = key <= position && (spec_.shape.window_tokens == 0 ||
                                            key > position - spec_.shape.window_tokens ||
                                            key < spec_.shape.sink_tokens);
    if (!shaped || !listed(key)) continue;
    const float* k = &k_[static_cast<size_t>(sequence)][KeyIndex(key, kv_head)];
    double score = 0.0;
    for (size_t d = 0; d < dims; ++d) score += double{q.At(row, head, static_cast<int>(d))} * k[d];
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
  for (double& value : expected.out) value /= sum;
  return expected;
}

}  // namespace lacuna::kernels::cpu
