// The stages of ChooseKeys and the memory between them. Private to select_choice*.cu,
// select_refine*.cu and select_lists.cu. Host code; kernels take the structs by value.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/core/status.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/select/select_keys.h"

namespace lacuna::kernels::cuda {

inline constexpr int kRefineChunkTokens = 1024;  // whose exponentials are summed together

// Between the kernels of one group of rows. Null or empty: the path does not need it.
struct ChooseScratch final {
  float* masses = nullptr;  // [group_rows, owners] share of the mass that the first choice holds
  // Round robin: [group_rows, owners, units_stride], the turn at which a unit comes first.
  uint32_t* turns = nullptr;
  // Refinement. Rounds: query rows with ReduceKind::kUnion, else owners.
  float* logits = nullptr;      // [group_rows, query_rows, tokens_stride] of survivors
  float2* sums = nullptr;       // [group_rows, query_rows, chunks]: maximum, sum of exponentials
  uint32_t* keys = nullptr;     // [group_rows, rounds, tokens_stride] of candidates, in order
  uint64_t* refined = nullptr;  // [group_rows, owners, blocks]: a mask for each 64 tokens
  float* shares = nullptr;      // [group_rows, rounds] share of the survivors' mass that stays
  int64_t tokens_stride = 0, blocks = 0;
  int32_t chunks = 0, rounds = 0;
};

// How many keys a choosing block keeps in dynamic shared memory, and the bytes beside them.
struct KeyCache final {
  int32_t keys = 0;
  int32_t beside_bytes = 0;

  size_t bytes() const { return 4 * static_cast<size_t>(keys) + static_cast<size_t>(beside_bytes); }
};
// For up to `keys_max` keys, in what `static_bytes` and `beside_bytes` leave of a block's memory.
KeyCache CacheFor(const DeviceTraits& traits, int64_t keys_max, int64_t static_bytes,
                  int64_t beside_bytes);

// select_choice_top.cu: top-k by each kv head alone, with the lists, for units that fit a block's
// registers: the common path.
bool TopFits(const SelectKeysCall& call);
Status ChooseTop(const SelectKeysCall& call, cudaStream_t stream);
// select_choice_turns.cu: who comes first when heads take turns.
Status RankTurns(const SelectKeysCall& call, const ChooseScratch& scratch,
                 const DeviceTraits& traits, cudaStream_t stream);
// select_refine_score.cu: logits of the survivors of the first choice, and their sums; clears what
// the second choice fills.
Status ScoreSurvivors(const SelectKeysCall& call, const ChooseScratch& scratch,
                      const DeviceTraits& traits, cudaStream_t stream);
// select_refine.cu: the second choice.
Status RefineChoices(const SelectKeysCall& call, const ChooseScratch& scratch,
                     const DeviceTraits& traits, cudaStream_t stream);
// select_lists.cu: lists of choices that are in memory, kept or refined.
Status MakeLists(const SelectKeysCall& call, const ChooseScratch& scratch, cudaStream_t stream);

}  // namespace lacuna::kernels::cuda
