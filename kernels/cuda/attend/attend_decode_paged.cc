#include <algorithm>
#include <cstdint>

#include "kernels/cuda/attend/attend_decode.h"
#include "kernels/cuda/launch.cuh"

namespace lacuna::kernels::cuda {
namespace {

constexpr float kLog2E = 1.4426950408889634f;

// Of DecodeCounters, and an arrival counter per unit.
int64_t CountersBytes(int64_t rows, int64_t q_heads) {
  return (static_cast<int64_t>(sizeof(DecodeCounters)) + rows * q_heads * 4 + 255) / 256 * 256;
}

// By default; two for the range of each block, see SlotOf.
int64_t RangeSlots(int64_t blocks) { return 2 * blocks; }

// As many blocks per multiprocessor as get a ring of at least two stages, or one with what there
// is: a single stage is copied, then read, by turns (head_dim 256 on the 99 KB of a GeForce).
DecodeLaunch ShapeLaunch(const DeviceTraits& traits, int head_dim, int tile_heads,
                         int* ring_stages) {
  constexpr int64_t kReserved = 1024;  // by the system, per block
  const int64_t per_sm = traits.shared_bytes_max + kReserved;
  const int64_t stage = DecodeStageBytes(head_dim, tile_heads);
  int blocks = DecodeBlocksPerSm(head_dim, DecodeWarps(tile_heads));
  int64_t stages = 0;
  for (;; --blocks) {
    stages = (per_sm / blocks - kReserved - kDecodeSharedBytes) / stage;
    if (stages >= 2 || blocks == 1) break;
  }
  *ring_stages = static_cast<int>(std::min<int64_t>(stages, kRingStagesMax));
  DecodeLaunch launch;
  launch.blocks = traits.sm_count * blocks;
  launch.shared_bytes = static_cast<size_t>(*ring_stages * stage);
  return launch;
}

bool Aligned16(const TensorView& view) {
  return reinterpret_cast<uintptr_t>(view.data()) % 16 == 0 && view.stride(0) % 8 == 0;
}

DecodeParams ParamsOf(const AttendDecodeArgs& args) {
  DecodeParams params;
  params.q = args.q.data();
  params.out = args.out.data();
  params.q_row = args.q.stride(0);
  params.out_row = args.out.stride(0);
  if (!args.lse.empty()) {
    params.lse = args.lse.as<float>();
    params.lse_row = args.lse.stride(0);
  }
  params.pool = static_cast<const std::byte*>(args.pool.data);
  params.pool_pages = args.pool.pages;
  params.kv_heads = static_cast<int>(args.pool.kv_heads);
  params.group = static_cast<int>(args.q.dim(1) / args.pool.kv_heads);
  params.tiles = (params.group + kTileHeads - 1) / kTileHeads;
  params.tile_heads = (params.group + params.tiles - 1) / params.tiles;
  params.page_tokens = static_cast<int>(args.pool.page_tokens);
  params.rows = static_cast<int>(args.q.dim(0));
  params.lists_per_row = args.lists_per_row;
  params.positions = args.positions.as<int32_t>();
  params.pages = args.lists.pages;
  params.logical = args.lists.logical;
  params.begins = args.lists.begins;
  params.ends = args.lists.ends;
  params.softcap = args.params.softcap;
  params.scale = args.params.softcap > 0.0f ? args.params.scale / args.params.softcap
                                            : args.params.scale * kLog2E;
  params.sink_logits = args.params.sink_logits;
  params.shape = args.params.shape;
  params.shapes = args.shapes;
  params.masks = args.lists.masks;
  if (!args.dropped_lse.empty()) {
    params.dropped_lse = args.dropped_lse.as<float>();
    params.dropped_row = args.dropped_lse.stride(0);
  }
  return params;
}

}  // namespace

bool DecodeHasKernel(DType dtype, int64_t head_dim, int64_t page_tokens) {
  constexpr int64_t kHeadDims[] = {32, 64, 80, 96, 128, 256};
  return (dtype == DType::kBF16 || dtype == DType::kF16) &&
         (page_tokens == 16 || page_tokens == 64) &&
         std::find(std::begin(kHeadDims), std::end(kHeadDims), head_dim) != std::end(kHeadDims);
}

int64_t DecodeWorkspaceBytes(const DeviceTraits& traits, int64_t rows_max, int64_t q_heads,
                             int64_t head_dim) {
  // Tiles of a group of more than kTileHeads heads may round up by a sixteenth.
  const int64_t head_floats = (head_dim + 2) + (head_dim + 2 + kTileHeads - 1) / kTileHeads + 3;
  const int64_t items = rows_max * q_heads * kListItemsMax;
  const int64_t ranges =
      RangeSlots(int64_t{2} * traits.sm_count) * std::min<int64_t>(q_heads, kTileHeads);
  return CountersBytes(rows_max, q_heads) +
         (std::max(items, ranges) * head_floats * 4 + 255) / 256 * 256;
}

Status AttendDecodePaged(const AttendDecodeArgs& args, const DeviceTraits& traits,
                         bool deterministic, const Workspace& workspace, cudaStream_t stream) {
  if (args.q.dim(0) == 0) return OkStatus();
  DecodeParams params = ParamsOf(args);
  const int head_dim = static_cast<int>(args.pool.head_dim);
  const DecodeLaunch launch = ShapeLaunch(traits, head_dim, params.tile_heads, &params.ring_stages);
  if (params.ring_stages < 1) {
    return InvalidArgument("AttendDecode: too little shared memory for this head_dim");
  }
  const int64_t units = int64_t{params.rows} * params.kv_heads * params.tiles;
  int64_t slots = RangeSlots(launch.blocks);
  if (deterministic) {
    params.list_items =
        std::clamp(launch.blocks / (params.kv_heads * params.tiles), 8, kListItemsMax);
    slots = units * kListItemsMax;
  }
  const int64_t counters_bytes = CountersBytes(params.rows, args.q.dim(1));
  const int64_t slot_bytes = 4 * DecodeSlotFloats(params.tile_heads, head_dim);
  if (workspace.bytes < counters_bytes + slots * slot_bytes) {
    return InvalidArgument("AttendDecode: the workspace is smaller than DecodeWorkspaceBytes");
  }
  if (!Aligned16(args.q) || !Aligned16(args.out) ||
      reinterpret_cast<uintptr_t>(args.pool.data) % 16 != 0 ||
      reinterpret_cast<uintptr_t>(workspace.data) % 16 != 0) {
    return InvalidArgument("AttendDecode: q, out, pool and workspace need 16-byte alignment");
  }
  // The counters, zero between launches, lie at the end, where no number of rows puts partials.
  params.partials = static_cast<float*>(workspace.data);
  auto* end = static_cast<std::byte*>(workspace.data) + workspace.bytes;
  params.counters = reinterpret_cast<DecodeCounters*>(end) - 1;
  params.arrivals = reinterpret_cast<int32_t*>(params.counters) - units;
  return args.pool.dtype == DType::kBF16 ? LaunchDecodeBf16(params, head_dim, launch, stream)
                                         : LaunchDecodeF16(params, head_dim, launch, stream);
}

}  // namespace lacuna::kernels::cuda
