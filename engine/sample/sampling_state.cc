#include "engine/sample/sampling_state.h"

#include <algorithm>

namespace lacuna::engine {

using kernels::LogitEdit;
using kernels::SampleResult;
using kernels::SampleRow;

SamplingState::SamplingState(const SamplingParams& params, std::span<const TokenId> prompt,
                             std::span<const TokenId> eos, int64_t vocab_size)
    : vocab_size_(vocab_size),
      min_tokens_(params.min_tokens),
      depends_on_output_(params.repetition_penalty != 1.0 || params.presence_penalty != 0.0 ||
                         params.frequency_penalty != 0.0) {
  row_.seed = params.seed;
  row_.temperature = static_cast<float>(params.temperature);
  // A temperature too small for a float is still not zero: it draws among ties.
  if (params.temperature > 0.0) row_.temperature = std::max(row_.temperature, 1e-30f);
  row_.top_p = static_cast<float>(params.top_p);
  row_.min_p = static_cast<float>(params.min_p);
  row_.top_k = params.top_k;
  row_.repetition = static_cast<float>(params.repetition_penalty);
  row_.presence = static_cast<float>(params.presence_penalty);
  row_.frequency = static_cast<float>(params.frequency_penalty);
  row_.logprobs = std::min(params.logprobs, SampleResult::kLogprobsMax);

  for (const auto& [token, bias] : params.logit_bias) {
    if (LogitEdit* edit = EditOf(token)) edit->bias += bias;
  }
  const auto flag = [this](std::span<const TokenId> tokens, int32_t bit) {
    for (const TokenId token : tokens) {
      if (LogitEdit* edit = EditOf(token)) edit->flags |= bit;
    }
  };
  if (min_tokens_ > 0) {
    flag(params.stop_token_ids, LogitEdit::kBarred);
    // An ignored eos ends nothing, so there is no reason to bar it.
    if (!params.ignore_eos) flag(eos, LogitEdit::kBarred);
  }
  if (params.repetition_penalty != 1.0) flag(prompt, LogitEdit::kRepeated);
}

LogitEdit* SamplingState::EditOf(TokenId token) {
  if (token < 0 || token >= vocab_size_) return nullptr;
  const auto [place, added] = places_.try_emplace(token, edits_.size());
  if (added) edits_.push_back({.token = token});
  return &edits_[place->second];
}

SampleRow SamplingState::MakeRow(int64_t index, std::vector<LogitEdit>& edits) const {
  SampleRow row = row_;
  row.index = index;
  row.edits_begin = static_cast<int32_t>(edits.size());
  for (LogitEdit edit : edits_) {
    if (index >= min_tokens_) edit.flags &= ~LogitEdit::kBarred;
    if (edit.bias == 0.0f && edit.flags == 0 && edit.output_count == 0) continue;
    edits.push_back(edit);
  }
  row.edits_end = static_cast<int32_t>(edits.size());
  return row;
}

void SamplingState::Accept(TokenId token) {
  if (!depends_on_output_) return;
  LogitEdit* edit = EditOf(token);
  if (edit == nullptr) return;
  ++edit->output_count;
  if (row_.repetition != 1.0f) edit->flags |= LogitEdit::kRepeated;
}

}  // namespace lacuna::engine
