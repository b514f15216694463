// What both launches of Sample get, what a row asks of them, what the first leaves of each chunk
// for the second, and where the choice goes.
#pragma once

#include <bit>
#include <cstdint>
#include <iterator>

#include "kernels/cuda/sample/sample_team.cuh"
#include "kernels/ops/sample.h"

namespace lacuna::kernels::cuda {

// Likely tokens that a chunk may leave: so many, a lane each, and where there are more up to
// kCandidatesMax in all.
constexpr int kCandidates = 32;
constexpr int kCandidatesMax = 120;

// Of a chunk. A greatest value of +inf says that there is a NaN or +inf.
struct alignas(16) ChunkStats final {
  float raw_greatest;  // of the logits as they came; where Candidates are left their floor
  float raw_sum;       // of e^(logit - raw_greatest), where log probabilities are wanted; where
                       // Candidates are left the bits of an int32, their number
  float greatest;      // after edits and mask
  float sum;  // of e^((value - greatest) / temperature); of a greedy row the bits of an int32, the
              // place of the first greatest value
};

struct SampleParams final {
  const float* logits;
  const SampleRow* rows;
  const LogitEdit* edits;
  const uint32_t* mask;
  SampleResult* results;
  int32_t* tokens;
  float* changed;     // [rows, changed_stride]: rows with edits or a mask; of others a CandidateRow
  ChunkStats* stats;  // [rows, all]
  float* tails;       // [rows, kChunk]: the last chunk of each row, when it is not whole
  int64_t logits_stride;
  int64_t changed_stride;  // a multiple of kChunk
  int vocab;
  int all;              // chunks of a row
  int measured;         // chunks of all rows
  int measured_chunks;  // of a block of the first launch
  int chunks;           // of a block of the second
  int gathered_max;     // tokens of a selection in shared memory
  int likely_max;       // Candidates of a row there
  bool aligned;         // rows of logits to 16 bytes
};

// The choice for a row of which no log probabilities are wanted, or why there is none (token 0).
__device__ inline void StoreChoice(const SampleParams& params, int row, int token,
                                   SampleResult::Status status) {
  SampleResult& result = params.results[row];
  result.token = token;
  result.status = status;
  result.logprob = 0.0f;
  result.top_count = 0;
  result.rereads = 0;
  params.tokens[row] = token;
}

// All at once, as what a row asks for is looked at one by one. kPastL1: where L1 may still have
// what it was in an earlier step.
template <bool kPastL1>
__device__ __forceinline__ SampleRow LoadRow(const SampleRow& from) {
  struct Words final {
    uint2 words[sizeof(SampleRow) / sizeof(uint2)];
  } words;
#pragma unroll
  for (size_t i = 0; i < std::size(words.words); ++i) {
    const auto* const word = reinterpret_cast<const uint2*>(&from) + i;
    words.words[i] = kPastL1 ? __ldcg(word) : __ldca(word);
  }
  return std::bit_cast<SampleRow>(words);
}

// What a row asks for.
struct RowPlan final {
  bool ranked;    // log probabilities
  bool draws;     // else greedy, or forced
  bool edited;    // has edits
  bool changes;   // the choice is not from the logits as they came
  bool leaves;    // Candidates of each chunk, as it is cut by a top_p alone
  float inverse;  // of the temperature

  __device__ RowPlan(const SampleRow& row, const SampleParams& params) {
    const bool forced = row.forced_token >= 0;
    ranked = forced || row.logprobs >= 0;
    draws = !forced && row.temperature != 0.0f;
    edited = !forced && row.edits_end > row.edits_begin;
    changes = !forced && (edited || params.mask != nullptr);
    constexpr float kTemperatureMin = 1e-6f;  // below, this would overflow
    inverse = __frcp_rn(fmaxf(row.temperature, kTemperatureMin));
    const bool cut_by_mass = row.top_k <= 0 && row.top_p < 1.0f && !(row.min_p > 0.0f);
    const bool fits = params.all <= kSampleThreads && params.all * kCandidates <= params.likely_max;
    leaves = draws && cut_by_mass && !ranked && !changes && fits;
  }
};

}  // namespace lacuna::kernels::cuda
