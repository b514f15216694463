#include "engine/calibrate/head_map.h"

#include <algorithm>
#include <cmath>

namespace lacuna::engine {
namespace {

float ValueAt(const TensorView& view, int64_t at) {
  if (view.dtype() == DType::kBF16) return ToFloat(view.as<const BF16>()[at]);
  if (view.dtype() == DType::kF16) return ToFloat(view.as<const F16>()[at]);
  return view.as<const float>()[at];
}

}  // namespace

void LayerSample::Take(const TensorView& query, const TensorView& key) {
  tokens = static_cast<int32_t>(query.dim(0));
  q_heads = static_cast<int32_t>(query.dim(1));
  kv_heads = static_cast<int32_t>(key.dim(1));
  head_dim = static_cast<int32_t>(query.dim(2));
  q.resize(static_cast<size_t>(query.elements()));
  k.resize(static_cast<size_t>(key.elements()));
  for (int64_t row = 0; row < tokens; ++row) {
    for (int64_t i = 0; i < int64_t{q_heads} * head_dim; ++i) {
      const int64_t head = i / head_dim, channel = i % head_dim;
      q[static_cast<size_t>((head * tokens + row) * head_dim + channel)] =
          ValueAt(query, row * query.stride(0) + i);
    }
    for (int64_t i = 0; i < int64_t{kv_heads} * head_dim; ++i) {
      k[static_cast<size_t>(i * tokens + row)] = ValueAt(key, row * key.stride(0) + i);
    }
  }
}

void LayerSample::Logits(int32_t q_head, int32_t row, std::span<float> out) const {
  const float* query = Query(q_head, row);
  const int32_t kv_head = KvHead(q_head), keys = row + 1;
  float* const logits = out.data();
  std::fill_n(logits, keys, 0.0f);
  for (int32_t c = 0; c < head_dim; ++c) {  // channel by channel: no sum is reordered
    const float factor = query[c] * scale;
    const float* channel = KeyChannel(kv_head, c);
    for (int32_t j = 0; j < keys; ++j) logits[j] += factor * channel[j];
  }
  if (softcap == 0) return;
  for (int32_t j = 0; j < keys; ++j) logits[j] = softcap * std::tanh(logits[j] / softcap);
}

size_t HeadMap::TailBegin(int32_t count) const {
  return static_cast<size_t>(std::ranges::lower_bound(rows, tokens() - count) - rows.begin());
}

std::vector<int32_t> SampledRows(int32_t tokens, int32_t row_stride, const PromptMarks& marks) {
  std::vector<int32_t> rows;
  for (int32_t row = row_stride - 1; row < tokens; row += row_stride) rows.push_back(row);
  for (int32_t row = std::max(tokens - kProbeRows, 0); row < tokens; ++row) rows.push_back(row);
  for (const PromptMarks::Answer& answer : marks.answers) rows.push_back(answer.row);
  std::ranges::sort(rows);
  rows.erase(std::unique(rows.begin(), rows.end()), rows.end());
  return rows;
}

void FillMap(const LayerSample& sample, int32_t head, std::span<const int32_t> rows, HeadMap& map) {
  map.sample = &sample;
  map.head = head;
  map.rows.assign(rows.begin(), rows.end());
  map.probs.assign(rows.size() * static_cast<size_t>(sample.tokens), 0.0f);
  for (size_t i = 0; i < rows.size(); ++i) {
    float* const probs = map.probs.data() + i * static_cast<size_t>(sample.tokens);
    const int32_t keys = rows[i] + 1;
    sample.Logits(head, rows[i], {probs, static_cast<size_t>(keys)});
    const int32_t first = sample.window_tokens > 0 ? std::max(keys - sample.window_tokens, 0) : 0;
    std::fill_n(probs, first, 0.0f);
    const float max = *std::max_element(probs + first, probs + keys);
    double sum = 0;
    for (int32_t j = first; j < keys; ++j) {
      probs[j] = std::exp(probs[j] - max);
      sum += static_cast<double>(probs[j]);
    }
    const float factor = static_cast<float>(1.0 / sum);
    for (int32_t j = first; j < keys; ++j) probs[j] *= factor;
  }
}

float Rounded(double value) { return static_cast<float>(std::round(value * 4096) / 4096); }

}  // namespace lacuna::engine
