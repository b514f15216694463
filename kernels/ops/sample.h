// Arguments of Sample: the next token of each row from its logits, with the log probabilities asked
// for. SEAM.
//
// The op is a pure function of its arguments: penalties come as a list of edits per row, random
// numbers are a function of (seed, index) alone, so that a preempted and recomputed sequence, or a
// batched one, draws the same tokens.
#pragma once

#include <cstdint>

#include "kernels/core/tensor_view.h"

namespace lacuna::kernels {

// A change of one token's logit before the choice, applied in this order:
//   1. logit += bias;  2. kBarred: logit = -inf;
//   3. kRepeated: logit = logit > 0 ? logit / repetition : logit * repetition  (Keskar et al. 2019)
//   4. output_count > 0: logit -= presence + frequency * output_count          (OpenAI)
// At most one edit per token and row.
struct LogitEdit final {
  static constexpr int32_t kBarred = 1;
  static constexpr int32_t kRepeated = 2;
  int32_t token = 0;
  float bias = 0.0f;
  int32_t flags = 0;
  int32_t output_count = 0;
};

// How one row is sampled. After the edits: temperature, min_p, top_k, top_p, each on what the one
// before left; the draw walks the kept tokens by id.
struct SampleRow final {
  uint64_t seed = 0;
  int64_t index = 0;        // of the generated token in its sequence
  int32_t edits_begin = 0;  // its edits: [edits_begin, edits_end)
  int32_t edits_end = 0;
  float temperature = 0.0f;  // 0: greedy (ties: the lower id)
  float top_p = 1.0f;        // (0, 1]
  float min_p = 0.0f;        // [0, 1]
  int32_t top_k = 0;         // 0: off
  float repetition = 1.0f;
  float presence = 0.0f;
  float frequency = 0.0f;
  int32_t forced_token = -1;  // >= 0: not sampled, only its log probability is wanted
  int32_t logprobs = -1;      // -1: none; n <= kLogprobsMax: the token's and the n likeliest ones'
};

struct SampleResult final {
  static constexpr int32_t kLogprobsMax = 20;
  // kNotANumber: a NaN or +inf among the logits; kImpossible: every logit is -inf. `token` is then
  // 0 and the row's request fails.
  enum Status : int32_t { kOk = 0, kNotANumber = 1, kImpossible = 2 };
  int32_t token = 0;
  int32_t status = kOk;
  float logprob = 0.0f;  // of `token`, log softmax of the logits before any edit; floor -9999
  // 1: on CUDA, the row's logits were read a second time: for a large top_k, a low min_p, or a
  // top_p that the likelier tokens left by the first pass do not serve, as they are too few, or as
  // log probabilities, edits or a mask are wanted too.
  int32_t rereads = 0;
  int32_t top_count = 0;
  int32_t top_tokens[kLogprobsMax] = {};  // likeliest first; ties: the lower id
  float top_logprobs[kLogprobsMax] = {};
};

struct SampleArgs final {
  TensorView logits;                 // [rows, vocab] f32; overwritten
  const SampleRow* rows = nullptr;   // [rows], device memory
  const LogitEdit* edits = nullptr;  // device memory
  const uint32_t* mask = nullptr;    // [rows, ceil(vocab / 32)] bit set = allowed, or null
  SampleResult* results = nullptr;   // [rows], device memory
  int32_t* tokens = nullptr;         // [rows], device memory: the tokens again, for the next step
};

}  // namespace lacuna::kernels
