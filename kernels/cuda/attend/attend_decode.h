// What the host and the kernels of paged decode attention share: the kernel's parameters, and how a
// launch is shaped. Internal to attend_decode*.
//
// A unit is one (row, kv head, tile of at most kTileHeads of its query heads): it reads one page
// list once. A stage is kStageTokens tokens of a list (one page of 64, or four of 16), the step in
// which a thread block copies and computes.
#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "kernels/core/status.h"
#include "kernels/cuda/ops.h"

namespace lacuna::kernels::cuda {

inline constexpr int kStageTokens = 64;
inline constexpr int kTileHeads = 16;
// Four consumer warps (16 keys of a stage each) per 8 query heads, and a producer warp.
__host__ __device__ constexpr int DecodeWarps(int tile_heads) {
  return (tile_heads + 7) / 8 * 4 + 1;
}
// Deterministic mode cuts a list into at most kListItemsMax items of at least kItemStagesMin
// stages.
inline constexpr int kListItemsMax = 32;
inline constexpr int kItemStagesMin = 4;
// By default a block gets an equal share of at least kShareStagesMin stages.
inline constexpr int kShareStagesMin = 2;
// A list of so few is not cut, where each list is cut by itself: a merge waits longer, behind the
// weights that the next kernel fetches, than its stages take one after the other.
inline constexpr int kWholeStages = 4;

// Zero between launches.
struct DecodeCounters final {
  int32_t next;  // range to hand out
  int32_t done;  // blocks that found none
};

struct DecodeParams final {
  const void* q = nullptr;  // [rows, q_heads, head_dim]
  void* out = nullptr;
  float* lse = nullptr;                         // or null
  int64_t q_row = 0, out_row = 0, lse_row = 0;  // strides, in elements
  const std::byte* pool = nullptr;
  int64_t pool_pages = 0;
  int kv_heads = 0;
  int group = 0;       // query heads per kv head
  int tiles = 0;       // units per (row, kv head)
  int tile_heads = 0;  // query heads of a unit; the last tile may have fewer
  int page_tokens = 0;
  int rows = 0;
  int lists_per_row = 0;
  const int32_t* positions = nullptr;
  const int32_t* pages = nullptr;
  const int32_t* logical = nullptr;
  const int64_t* begins = nullptr;
  const int64_t* ends = nullptr;
  float scale = 0.0f;  // times log2(e) when there is no softcap
  float softcap = 0.0f;
  const float* sink_logits = nullptr;
  StaticShape shape;
  const StaticShape* shapes = nullptr;  // [rows, kv_heads], instead of `shape`
  const uint64_t* masks = nullptr;      // of `pages`: their listed tokens
  const float* dropped_lse = nullptr;   // [rows, q_heads], or null
  int64_t dropped_row = 0;              // its stride, in elements
  float* partials = nullptr;    // slots of tile_heads * head_dim sums, then tile_heads (max, sum)
  int32_t* arrivals = nullptr;  // [units], zero between launches
  int list_items = 0;           // deterministic: items of a list at most; 0: cut anywhere
  DecodeCounters* counters = nullptr;
  int ring_stages = 0;  // of a thread block
};

// What the registers allow; the shared memory may allow less.
__host__ __device__ constexpr int DecodeBlocksPerSm(int head_dim, int warps) {
  return head_dim <= 128 && warps == DecodeWarps(8) ? 2 : 1;
}

// A stage in shared memory: the slabs of kStageTokens tokens, then the unit's queries in padded
// rows (or what else the consumers need to add up their sums there).
__host__ __device__ constexpr int DecodeQueryRowBytes(int head_dim) { return head_dim * 2 + 16; }
__host__ __device__ constexpr int DecodeSlabsBytes(int head_dim) {
  return 2 * kStageTokens * head_dim * 2;
}
__host__ __device__ constexpr int DecodeStageBytes(int head_dim, int tile_heads) {
  const int query_bytes = (tile_heads * DecodeQueryRowBytes(head_dim) + 127) / 128 * 128;
  return DecodeSlabsBytes(head_dim) + (query_bytes > 1024 ? query_bytes : 1024);
}
inline constexpr int kRingStagesMax = 8;
inline constexpr int kDecodeSharedBytes = 8192;  // beside the stages, at most

__host__ __device__ constexpr int DecodeSlotFloats(int tile_heads, int head_dim) {
  return (tile_heads * (head_dim + 2) + 3) / 4 * 4;
}

struct DecodeLaunch final {
  int blocks = 0;
  size_t shared_bytes = 0;
};

// Whether the tensor core kernel has an instance for it.
bool DecodeHasKernel(DType dtype, int64_t head_dim, int64_t page_tokens);

// AttendDecode where DecodeHasKernel. kInvalidArgument when the workspace or a block's shared
// memory is too small, or q, out or the pool are not aligned to 16 bytes.
Status AttendDecodePaged(const AttendDecodeArgs& args, const DeviceTraits& traits,
                         bool deterministic, const Workspace& workspace, cudaStream_t stream);

// attend_decode_{bf16,f16}.cu: the launch of the instance for head_dim.
Status LaunchDecodeBf16(const DecodeParams& params, int64_t head_dim, const DecodeLaunch& launch,
                        cudaStream_t stream);
Status LaunchDecodeF16(const DecodeParams& params, int64_t head_dim, const DecodeLaunch& launch,
                       cudaStream_t stream);

}  // namespace lacuna::kernels::cuda
