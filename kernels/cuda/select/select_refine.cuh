// Survivors: the tokens that the first choice of an owner and the forced units leave to the second
// one. Device code.
#pragma once

#include <cstdint>

#include "kernels/cuda/select/select_choice.h"
#include "kernels/cuda/select/select_lists.cuh"

namespace lacuna::kernels::cuda {

struct Survivors final {
  const uint64_t* choice;  // of the owner, by pages
  ForcedTokens forced;
  int pages, page_tokens;

  __device__ Survivors(const SelectKeysCall& call, const RowPlan& plan, const SelectRow& what,
                       int owner)
      : choice(ChoiceOf(call, what, owner)),
        forced(call, plan, what),
        pages(plan.pages),
        page_tokens(call.page_tokens) {}

  // Of 16 tokens from `first`, a multiple of 16, on.
  __device__ uint32_t In16(int first) const {
    if (first >= forced.tokens) return 0;
    const uint64_t chosen = choice[first / page_tokens] >> first % page_tokens;
    return static_cast<uint32_t>((chosen | forced.In(first)) & forced.Visible(first)) & 0xffffu;
  }
  // Of the 64 tokens of a block.
  __device__ uint64_t InBlock(int block) const {
    const int first = block * kMaskTokens, each = kMaskTokens / page_tokens;
    uint64_t chosen = 0;
    for (int i = 0; i < each; ++i) {
      const int page = block * each + i;
      if (page < pages) chosen |= choice[page] << i * page_tokens;
    }
    return (chosen | forced.In(first)) & forced.Visible(first);
  }
};

__device__ inline int OwnerOf(const SelectKeysCall& call, int kv_head) {
  return call.path.owner == OwnerKind::kLayer ? 0 : kv_head;
}
__device__ inline float* LogitsOf(const SelectKeysCall& call, const ChooseScratch& scratch, int row,
                                  int query_row) {
  return scratch.logits +
         (int64_t{row - call.first_row} * call.query_rows + query_row) * scratch.tokens_stride;
}
__device__ inline float2* SumsOf(const SelectKeysCall& call, const ChooseScratch& scratch, int row,
                                 int query_row) {
  return scratch.sums +
         (int64_t{row - call.first_row} * call.query_rows + query_row) * scratch.chunks;
}
__device__ inline uint64_t* RefinedOf(const SelectKeysCall& call, const ChooseScratch& scratch,
                                      int row, int owner) {
  return scratch.refined + (int64_t{row - call.first_row} * call.owners + owner) * scratch.blocks;
}

}  // namespace lacuna::kernels::cuda
