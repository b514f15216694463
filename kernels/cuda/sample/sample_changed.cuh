// Rows whose choice is not from the logits as they came: a block's chunks of such a row are copied,
// the copies changed by mask and edits and measured.
#pragma once

#include <cstdint>

#include "kernels/cuda/sample/sample_chunks.cuh"
#include "kernels/cuda/sample/sample_measure.cuh"
#include "kernels/ops/sample.h"

namespace lacuna::kernels::cuda {

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

class ChangedRow final {
 public:
  __device__ ChangedRow(const SampleParams& params, const RowPlan& plan, int index)
      : p_(params), plan_(plan), index_(index), changed_(p_.changed + index * p_.changed_stride) {}

  // The chunks [begin, end) of those of all rows.
  __device__ __forceinline__ void Measure(int begin, int end) const {
    Copy(begin, end);
    if (plan_.edited) Edit(begin, end);
#pragma unroll 1
    for (ChunkCursor of(begin + WarpIndex(), p_.all); of.at < end; of.Move(kMeasureWarps, p_.all)) {
      LaneChunk x;
      LoadLogits(p_, of, x);
      if (IsCut(p_, of)) StoreWhole(x, p_.tails + index_ * kChunk);
      ChunkStats stats;
      stats.raw_greatest = GreatestOf(x);
      stats.raw_sum = plan_.ranked ? SumOf(x, stats.raw_greatest, 1.0f) : 0.0f;
      LoadAligned(changed_ + of.chunk * kChunk, x);
      stats.greatest = GreatestOf(x);
      stats.sum = SumOrPlaceOf(x, stats.greatest, plan_);
      if (LaneIndex() == 0) p_.stats[of.at] = stats;
    }
  }

 private:
  // What the mask bars becomes -inf.
  __device__ __forceinline__ void Copy(int begin, int end) const {
#pragma unroll 1
    for (ChunkCursor of(begin + WarpIndex(), p_.all); of.at < end; of.Move(kMeasureWarps, p_.all)) {
      LaneChunk x;
      LoadLogits(p_, of, x);
      if (p_.mask != nullptr) Mask(of.chunk, x);
      StoreWhole(x, changed_ + of.chunk * kChunk);
    }
  }
  // What the mask lets pass.
  __device__ __forceinline__ void Edit(int begin, int end) const {
    __syncthreads();
    const SampleRow& row = p_.rows[index_];
    const int first = (begin - index_ * p_.all) * kChunk;
    const int last = min((end - index_ * p_.all) * kChunk, p_.vocab);
#pragma unroll 1
    for (int i = row.edits_begin + static_cast<int>(threadIdx.x); i < row.edits_end;
         i += kMeasureThreads) {
      const int token = p_.edits[i].token;
      if (token < first || token >= last || !Allows(token)) continue;
      changed_[token] = Edited(changed_[token], p_.edits[i], row);
    }
    __syncthreads();
  }
  __device__ const uint32_t* MaskOfRow() const {
    return p_.mask + static_cast<int64_t>(index_) * ((p_.vocab + 31) / 32);
  }
  __device__ bool Allows(int token) const {
    return p_.mask == nullptr || (MaskOfRow()[token / 32] >> (token % 32) & 1u) != 0;
  }
  __device__ void Mask(int chunk, LaneChunk& x) const {
    const uint32_t* const mask = MaskOfRow();
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
  const RowPlan& plan_;
  const int index_;
  float* const changed_;
};

}  // namespace lacuna::kernels::cuda
