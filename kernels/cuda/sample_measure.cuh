// The first of two launches: one pass over all logits, spread over the device, which leaves of each
// chunk its greatest value and its mass. Where a row has edits or a mask it leaves the changed row
// too; the logits stay as they are.
#pragma once

#include <cstdint>

#include "kernels/cuda/sample_order.cuh"
#include "kernels/ops/sample.h"

namespace lacuna::kernels::cuda {

constexpr int kMeasureThreads = 128;
constexpr int kMeasureWarps = kMeasureThreads / 32;
constexpr int kMeasureBlocks = 8;  // on a multiprocessor

// Of a chunk. A greatest value of +inf says that there is a NaN or +inf.
struct alignas(16) ChunkStats final {
  float raw_greatest;  // of the logits as they came, where log probabilities are wanted or they are
                       // changed; else 0
  float raw_sum;       // of e^(logit - raw_greatest), where log probabilities are wanted
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
  float* changed;     // [rows, changed_stride]: rows with edits or a mask
  ChunkStats* stats;  // [rows, all]
  float* tails;       // [rows, kChunk]: the last chunk of each row, when it is not whole
  int64_t logits_stride;
  int64_t changed_stride;  // a multiple of kChunk
  int vocab;
  int all;              // chunks of a row
  int measured_chunks;  // of a block of the first launch
  int chunks;           // of a block of the second
  int gathered_max;     // tokens of a selection in shared memory
  bool aligned;         // rows of logits to 16 bytes
};

__device__ inline float Edited(float logit, const LogitEdit& edit, const SampleRow& row) {
  logit = __fadd_rn(logit, edit.bias);
  if ((edit.flags & LogitEdit::kBarred) != 0) logit = -INFINITY;
  if ((edit.flags & LogitEdit::kRepeated) != 0) {
    logit = logit > 0.0f ? __fdiv_rn(logit, row.repetition) : __fmul_rn(logit, row.repetition);
  }
  if (edit.output_count > 0) {
    const double penalty =
        static_cast<double>(row.presence) + static_cast<double>(row.frequency) * edit.output_count;
    logit = __fsub_rn(logit, static_cast<float>(penalty));
  }
  return logit;
}

__device__ inline float GreatestOf(const LaneChunk& x) {
  float most = -INFINITY;
  bool broken = false;
#pragma unroll
  for (int i = 0; i < kLaneValues; ++i) {
    broken = broken || !(x.values[i] <= -kLowest);
    most = fmaxf(most, x.values[i]);
  }
  return FromAscending(__reduce_max_sync(~0u, Ascending(broken ? INFINITY : most)));
}
__device__ inline float SumOf(const LaneChunk& x, float greatest, float inverse) {
  if (!isfinite(greatest)) return 0.0f;
  const float scale = inverse * kLog2E;
  float sum = 0.0f;
#pragma unroll
  for (int i = 0; i < kLaneValues; ++i) sum += Exp2((x.values[i] - greatest) * scale);
  return WarpSum(sum);
}
__device__ inline float PlaceOf(const LaneChunk& x, float greatest) {
  auto place = static_cast<uint32_t>(kChunk);
#pragma unroll
  for (int i = kLaneValues - 1; i >= 0; --i) {
    if (x.values[i] == greatest) place = static_cast<uint32_t>(LaneChunk::Token(i));
  }
  return __uint_as_float(__reduce_min_sync(~0u, place));
}

// What a row asks for.
struct RowPlan final {
  bool ranked;    // log probabilities
  bool draws;     // else greedy, or forced
  bool edited;    // has edits
  bool changes;   // the choice is not from the logits as they came
  float inverse;  // of the temperature

  __device__ RowPlan(const SampleRow& row, const SampleParams& params) {
    const bool forced = row.forced_token >= 0;
    ranked = forced || row.logprobs >= 0;
    draws = !forced && row.temperature != 0.0f;
    edited = !forced && row.edits_end > row.edits_begin;
    changes = !forced && (edited || params.mask != nullptr);
    constexpr float kTemperatureMin = 1e-6f;  // below, this would overflow
    inverse = __frcp_rn(fmaxf(row.temperature, kTemperatureMin));
  }
};

// A block takes `measured_chunks` neighbours of a row, a warp one at a time.
class ChunkMeasure final {
 public:
  __device__ explicit ChunkMeasure(const SampleParams& params)
      : p_(params),
        index_(static_cast<int>(blockIdx.y)),
        begin_(static_cast<int>(blockIdx.x) * p_.measured_chunks),
        end_(min(begin_ + p_.measured_chunks, p_.all)),
        changed_(p_.changed + index_ * p_.changed_stride) {}

  __device__ void Run() const {
    const SampleRow& row = p_.rows[index_];
    const RowPlan plan(row, p_);
    if (plan.edited) Edit(row);
    for (int chunk = begin_ + WarpIndex(); chunk < end_; chunk += kMeasureWarps) {
      LaneChunk x;
      LoadLogits(chunk, x);
      if ((chunk + 1) * kChunk > p_.vocab) StoreWhole(x, p_.tails + index_ * kChunk);
      ChunkStats stats;
      bool raw = plan.ranked || plan.changes;
      if (!raw) stats.raw_greatest = stats.raw_sum = 0.0f;
#pragma unroll 1
      for (;;) {  // as they came, if that is asked for; then what the choice is from
        const bool sums = raw ? plan.ranked : plan.draws;
        stats.greatest = GreatestOf(x);
        stats.sum =
            sums ? SumOf(x, stats.greatest, raw ? 1.0f : plan.inverse) : PlaceOf(x, stats.greatest);
        if (!raw) break;
        raw = false;
        stats.raw_greatest = stats.greatest;
        stats.raw_sum = stats.sum;
        if (plan.changes) Change(plan, chunk, x);
      }
      if (LaneIndex() == 0) p_.stats[static_cast<int64_t>(index_) * p_.all + chunk] = stats;
    }
  }

 private:
  // -inf behind the row.
  __device__ void LoadLogits(int chunk, LaneChunk& x) const {
    const float* const from = p_.logits + index_ * p_.logits_stride + chunk * kChunk;
    const int count = p_.vocab - chunk * kChunk;
    if (count >= kChunk && p_.aligned) {
      LoadAligned(from, x);
    } else {
      LoadUnaligned(from, count, x);
    }
  }
  __device__ void Change(const RowPlan& plan, int chunk, LaneChunk& x) const {
    if (plan.edited) LoadAligned(changed_ + chunk * kChunk, x);
    if (p_.mask != nullptr) Mask(chunk, x);
    StoreWhole(x, changed_ + chunk * kChunk);
  }
  // Copies the block's chunks and changes the copies.
  __device__ void Edit(const SampleRow& row) const {
    for (int chunk = begin_ + WarpIndex(); chunk < end_; chunk += kMeasureWarps) {
      LaneChunk x;
      LoadLogits(chunk, x);
      StoreWhole(x, changed_ + chunk * kChunk);
    }
    __syncthreads();
    const int first = begin_ * kChunk;
    const int end = min(end_ * kChunk, p_.vocab);
    for (int i = row.edits_begin + static_cast<int>(threadIdx.x); i < row.edits_end;
         i += kMeasureThreads) {
      const int token = p_.edits[i].token;
      if (token < first || token >= end) continue;
      changed_[token] = Edited(changed_[token], p_.edits[i], row);
    }
    __syncthreads();
  }
  __device__ void Mask(int chunk, LaneChunk& x) const {
    const uint32_t* const mask = p_.mask + static_cast<int64_t>(index_) * ((p_.vocab + 31) / 32);
#pragma unroll
    for (int i = 0; i < kLaneValues; i += 4) {
      const int token = chunk * kChunk + LaneChunk::Token(i);  // four have one word
      const uint32_t allowed = token < p_.vocab ? mask[token / 32] >> (token % 32) : 0u;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if ((allowed >> j & 1u) == 0) x.values[i + j] = -INFINITY;
      }
    }
  }

  const SampleParams& p_;
  const int index_;
  const int begin_;
  const int end_;
  float* const changed_;
};

}  // namespace lacuna::kernels::cuda
