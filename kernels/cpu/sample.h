// Sample on the CPU: the next token of each row, rows in parallel over the pool.
//
// One row is a pure function of its arguments, on any thread; the scratch is one worker's and keeps
// its memory from call to call.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/core/status.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/ops/sample.h"

namespace lacuna::kernels::cpu {

struct SampleCandidate final {
  float logit = 0.0f;
  int32_t token = 0;
};

struct SampleScratch final {
  std::vector<float> raw;                   // the logits before the edits, for log probabilities
  std::vector<SampleCandidate> candidates;  // of top_k and top_p
};

// `logits` [vocab] are overwritten; `edits` are those of this row; `mask` as in SampleArgs, or
// null. Tokens of edits that lie outside the vocabulary are skipped.
SampleResult SampleOneRow(std::span<float> logits, const SampleRow& row,
                          std::span<const LogitEdit> edits, const uint32_t* mask,
                          SampleScratch& scratch);

// `scratch`: one per worker of the pool.
Status SampleCpu(const SampleArgs& args, ThreadPool& pool, std::span<SampleScratch> scratch);

}  // namespace lacuna::kernels::cpu
