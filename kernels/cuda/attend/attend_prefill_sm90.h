// Paged prefill attention for Hopper: what it serves, its kernel parameters, its entry point.
//
// The kernel is persistent: its thread blocks draw work items (up to two tiles of 64 query rows and
// the key tiles they see) from a counter in the workspace.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "kernels/core/status.h"
#include "kernels/cuda/ops.h"
#include "kernels/ops/attention.h"

namespace lacuna::kernels::cuda {

// One launch serves this many chunks; more are more launches.
inline constexpr int kPrefillChunksPerLaunch = 96;

struct PrefillChunkEntry final {
  PrefillChunk chunk;
  int32_t index = 0;       // in AttendPrefillArgs::chunks
  int32_t first_item = 0;  // items of the entries before, per kv head
};

// Work items are ordered by (section of kv heads, chunk, query tile descending, kv head, query head
// of its group): the blocks that run at the same time read the same keys, few enough for L2, and
// the longest items of a section come first.
struct PrefillParams final {
  CUtensorMap q;  // [tokens, q_heads, head_dim], boxes of 64 rows x 1 head x 64 columns
  const std::byte* pool = nullptr;
  int64_t slab_bytes = 0;
  PageLists lists;
  KeyRanges ranges;  // begins null: none
  void* out = nullptr;
  float* lse = nullptr;
  const float* sink_logits = nullptr;
  int64_t out_stride = 0;  // elements between rows
  int64_t lse_stride = 0;
  int32_t* counter = nullptr;  // of items drawn; zero at the start
  StaticShape shape;
  const StaticShape* shapes = nullptr;  // [chunks, kv_heads], instead of `shape`
  float scale_log2 = 0.0f;              // of the (capped) score, to base 2
  float cap_scale = 0.0f;               // capped score = tanh(cap_scale * q.k); 0: not capped
  int32_t kv_heads = 0;
  int32_t group = 0;           // query heads per kv head
  int32_t section_heads = 0;   // kv heads per section, divides kv_heads
  int32_t items_per_head = 0;  // of a kv head, all chunks
  int32_t chunks = 0;
  PrefillChunkEntry entries[kPrefillChunksPerLaunch];
};

// sm_90, bf16 or f16, head_dim 64 or 128, page_tokens 64, rows of q and out on 16-byte borders,
// scale > 0.
bool PrefillSm90Serves(const AttendPrefillArgs& args, const DeviceTraits& traits);
inline constexpr int64_t kPrefillSm90WorkspaceBytes = 256;
// `workspace` holds at least kPrefillSm90WorkspaceBytes.
Status AttendPrefillSm90(const AttendPrefillArgs& args, const DeviceTraits& traits,
                         const Workspace& workspace, cudaStream_t stream);

}  // namespace lacuna::kernels::cuda
