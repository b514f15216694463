// The two matrix products of a consumer warpgroup of the Hopper prefill kernel (sm_90a).
//
// Stages are constants in each branch, so that the operands stay in uniform registers, where wgmma
// wants them: with stages in ordinary registers each wgmma waits for four moves.
#pragma once

#include <cstdint>

#include "kernels/cuda/attend/attend_prefill_sm90_shared.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace lacuna::kernels::cuda {

template <typename T, int kHeadDim>
class Products final {
 public:
  __device__ Products(Shared<kHeadDim>& shared, int half)
      : q_operand_(SwizzledOperand(SharedAddress(shared.q[0][half]), kAtomBytes)),
        k_operand_(SwizzledOperand(SharedAddress(shared.k), kAtomBytes)),
        v_operand_(SwizzledOperand(SharedAddress(shared.v), kAtomBytes, 2 * kPieceBytes)) {}

  // s = Q K^T, asynchronous.
  __device__ void IssueQk(float (&s)[64], int q_stage, int stage) const {
    static_assert(kStages == 2);
    if (q_stage == 0) {
      stage == 0 ? IssueQk<0, 0>(s) : IssueQk<0, 1>(s);
    } else {
      stage == 0 ? IssueQk<1, 0>(s) : IssueQk<1, 1>(s);
    }
  }
  // o += P V, asynchronous.
  __device__ void IssuePv(float (&o)[kHeadDim / 2], const uint32_t (&p)[32], int stage) const {
    stage == 0 ? IssuePv<0>(o, p) : IssuePv<1>(o, p);
  }

 private:
  static constexpr uint32_t kAtomBytes = 1024;
  static constexpr uint32_t kStageBytes = kTileKeys * kHeadDim * 2;
  static constexpr uint32_t kQBytes = kHalves * kHalfRows * kHeadDim * 2;

  template <int kQStage, int kStage>
  __device__ void IssueQk(float (&s)[64]) const {
    const uint64_t q = AdvanceOperand(q_operand_, kQStage * kQBytes);
    const uint64_t k = AdvanceOperand(k_operand_, kStage * kStageBytes);
    WgmmaFence();
    WgmmaShared<T, false>(s, q, k);
#pragma unroll
    for (int i = 1; i < kHeadDim / 16; ++i) {
      const int stripe = i / 4;
      const int step = i % 4 * 32;
      WgmmaShared<T, true>(s, AdvanceOperand(q, stripe * kPieceBytes + step),
                           AdvanceOperand(k, stripe * 2 * kPieceBytes + step));
    }
    WgmmaCommit();
  }
  template <int kStage>
  __device__ void IssuePv(float (&o)[kHeadDim / 2], const uint32_t (&p)[32]) const {
    const uint64_t v = AdvanceOperand(v_operand_, kStage * kStageBytes);
    WgmmaFence();
#pragma unroll
    for (int i = 0; i < kTileKeys / 16; ++i) {
      WgmmaRegisters<T, true, true>(o, &p[4 * i], AdvanceOperand(v, i * 16 * kStripeBytes));
    }
    WgmmaCommit();
  }

  const uint64_t q_operand_, k_operand_, v_operand_;
};

}  // namespace lacuna::kernels::cuda
