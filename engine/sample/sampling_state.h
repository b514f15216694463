// SamplingState: what the choice of one sequence's next token depends on beside its logits. Turns
// the sampling parameters and the tokens so far into the arguments of the op Sample.
//
// Owned by the sequence; engine thread only.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "engine/sample/params.h"
#include "kernels/ops/sample.h"

namespace lacuna::engine {

class SamplingState final {
 public:
  // `eos` are barred before min_tokens, as are stop_token_ids. Tokens outside of the vocabulary
  // are left out.
  SamplingState(const SamplingParams& params, std::span<const TokenId> prompt,
                std::span<const TokenId> eos, int64_t vocab_size);

  // The row for generated token number `index` (from 0); appends its edits to `edits`.
  kernels::SampleRow MakeRow(int64_t index, std::vector<kernels::LogitEdit>& edits) const;
  // Counts a chosen token for the penalties.
  void Accept(TokenId token);
  // Whether a row depends on the tokens that were generated before it (by their penalties), so
  // that it cannot be made before they are known.
  bool depends_on_output() const { return depends_on_output_; }

 private:
  kernels::LogitEdit* EditOf(TokenId token);  // null: outside of the vocabulary

  kernels::SampleRow row_;  // what all rows share
  int64_t vocab_size_;
  int32_t min_tokens_;
  bool depends_on_output_;
  std::vector<kernels::LogitEdit> edits_;
  std::unordered_map<TokenId, size_t> places_;  // in edits_
};

}  // namespace lacuna::engine
