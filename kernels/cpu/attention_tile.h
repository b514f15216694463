// The seam between the attention driver (attention.cc) and the kernels, one translation unit per
// instruction set. Plain data and function pointers only: what an ISA's unit includes must not hold
// inline functions that the linker could then share with units for lesser machines.
//
// A tile is a set of query rows of one kv head: `heads` query heads of consecutive queries, row =
// query * heads + head, so that all of them share each load of K and V. The driver walks the keys
// in blocks of 64, cut at multiples of 64 of the sequence position whatever the page size, so that
// a row's arithmetic depends on neither the tile nor the list around it.
#pragma once

#include <cstdint>

namespace lacuna::kernels::cpu {

inline constexpr int kBlockKeys = 64;
inline constexpr int kGroupKeys = 16;  // the finest grain of pages and key ranges
inline constexpr int kBlockGroups = kBlockKeys / kGroupKeys;
inline constexpr int kTileRowsMax = 256;
inline constexpr int kTileHeadsMax = 64;
inline constexpr int kHeadDimMax = 256;
inline constexpr int kMicroRowsMax = 32;  // rows between two looks at `scores`
inline constexpr int kSumLanes = 16;
// Below every score; finite, so that max - max is 0 and not NaN.
inline constexpr float kNoScore = -1e30f;

struct KvBlock final {
  const void* k[kBlockGroups];  // of 16 keys each; only set where `keys` has one of the group,
  const void* v[kBlockGroups];  // so that no kernel may look at the others
  int64_t first_key;            // position of key 0, a multiple of 64
  uint64_t keys;                // bit j: key j is in the list and the ranges
  bool gathered;                // groups from anywhere, all of `keys` visible; no first_key
};

struct AttentionTile final {
  int32_t rows;
  int32_t head_dim;
  int64_t k_stride;       // elements from one channel (f32) or channel pair (bf16) to the next
  int64_t window_tokens;  // 0: none
  int64_t sink_tokens;
  float scale;               // used when `transform`
  float softcap;             // 0: none
  bool transform;            // scores become softcap(scale * s) first; else scale_log2 holds scale
  float scale_log2;          // > 0; p = exp2((s - max) * scale_log2)
  const int32_t* positions;  // [rows], ascending
  void* q;                   // packed by the kernel
  float* out;                // [rows rounded up to 32, head_dim] unnormalised
  float* max;                // [rows] of the scores as stored
  float* sum;                // [rows, kSumLanes] partial sums of p, to be added up in order
  float* scores;             // [kMicroRowsMax, kBlockKeys]
  void* probs;               // [kMicroRowsMax, kBlockKeys] of the kernel's operand type
  void* values;              // V of one block: [kBlockKeys, head_dim] as stored
};

struct AttentionKernels final {
  void (*begin)(const AttentionTile& tile);  // on the worker's thread, before the first block
  void (*pack_row)(const AttentionTile& tile, int row, const void* q);
  // Folds one block into out, max and sum; prefetches `next` unless null.
  void (*block)(const AttentionTile& tile, const KvBlock& block, const KvBlock* next);
  void (*store_row)(const AttentionTile& tile, int row, float factor, void* out);
  void (*end)();
  bool gathers;  // takes gathered blocks
};

extern const AttentionKernels kAttentionScalarF32, kAttentionScalarBf16;
extern const AttentionKernels kAttentionAvx2F32, kAttentionAvx2Bf16;
extern const AttentionKernels kAttentionAvx512F32, kAttentionAvx512Bf16Widened;
extern const AttentionKernels kAttentionAvx512Bf16;
extern const AttentionKernels kAttentionAmxBf16;  // head_dim % 32 == 0, pages of 64

}  // namespace lacuna::kernels::cpu
