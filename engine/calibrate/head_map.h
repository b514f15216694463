// HeadMap: the attention of one query head over one prompt, at some of its rows: what every table
// of engine/calibrate is made from. Pure functions, one thread.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "kernels/core/tensor_view.h"

namespace lacuna::engine {

// Keys of a prompt, [begin, end).
struct TokenSpan final {
  int32_t begin = 0, end = 0;
};

// What is known of a prompt beside its tokens.
struct PromptMarks final {
  // A query whose next token repeats a part of the prompt, and where that and what leads to it
  // stand.
  struct Answer {
    int32_t row = 0;
    std::vector<TokenSpan> spans;
  };
  std::vector<Answer> answers;  // ascending rows
};

// Queries and keys of one layer over one prompt, from position 0 on.
struct LayerSample final {
  int32_t layer = 0;
  int32_t tokens = 0, q_heads = 0, kv_heads = 0, head_dim = 0;
  int32_t window_tokens = 0;  // 0: full
  float scale = 1, softcap = 0;
  std::vector<float> q;  // [q_heads, tokens, head_dim], rotated
  std::vector<float> k;  // [kv_heads, head_dim, tokens], rotated: a channel of all keys in a row

  // q: [tokens, q_heads, head_dim], k: [tokens, kv_heads, head_dim]; f32, bf16 or f16.
  void Take(const TensorView& query, const TensorView& key);

  int32_t KvHead(int32_t q_head) const { return q_head / (q_heads / kv_heads); }
  const float* Query(int32_t q_head, int32_t row) const {
    return q.data() + (int64_t{q_head} * tokens + row) * head_dim;
  }
  const float* KeyChannel(int32_t kv_head, int32_t channel) const {
    return k.data() + (int64_t{kv_head} * head_dim + channel) * tokens;
  }
  // Logits of keys [0, row], into out[0 .. row].
  void Logits(int32_t q_head, int32_t row, std::span<float> out) const;
};

inline constexpr int32_t kProbeRows = 64;  // the last rows of a prompt, which every map has

struct HeadMap final {
  const LayerSample* sample = nullptr;
  int32_t head = 0;
  std::vector<int32_t> rows;  // ascending positions of queries
  std::vector<float> probs;   // [rows, tokens]; 0 behind the row

  int32_t tokens() const { return sample->tokens; }
  const float* Probs(size_t index) const {
    return probs.data() + index * static_cast<size_t>(sample->tokens);
  }
  // The first of the last `count` rows of the prompt, all of which the map has.
  size_t TailBegin(int32_t count) const;
};

// Every row_stride-th position, the last kProbeRows and those of answers.
std::vector<int32_t> SampledRows(int32_t tokens, int32_t row_stride, const PromptMarks& marks);
// softmax of each row's logits; a windowed layer sees its window.
void FillMap(const LayerSample& sample, int32_t head, std::span<const int32_t> rows, HeadMap& map);

// To 1/4096: a figure from a sample has no more to say, and files stay short.
float Rounded(double value);

}  // namespace lacuna::engine
