// Which scoring kernel a call runs, and how it is cut.
#include "kernels/cuda/select/select_score.h"

#include <algorithm>
#include <bit>

#include "kernels/core/checked_math.h"

namespace lacuna::kernels::cuda {
namespace {

constexpr int kStageBytes = 4096;        // of one warp, about
constexpr int kPagesOfStage = 32;        // a lane holds the id of each
constexpr int kProductLanesBytes = 256;  // of one operand: 32 lanes, two words each
constexpr int kHeadBytes = 16 + 4;       // HeadTerms and the operands' scale
constexpr int kStaticBytes = 5 << 10;    // ChunkLine, and what the system takes

// Columns that hold a head's query exactly, or to the last bits of f32.
int PartsOf(const SelectKeysCall& call, bool half_operands) {
  const bool mean = call.heads != call.group;
  if (half_operands) return call.act == DType::kF32 || mean ? 2 : 1;
  if (call.act == DType::kF32 || mean) return 4;
  return call.act == DType::kF16 ? 2 : 1;
}

void CutForTensorCores(const SelectKeysCall& call, ScoreShape* shape) {
  const bool half = shape->bits < 16 || (call.scores_keys && call.pool.dtype == DType::kF16);
  shape->steps = static_cast<int>(CeilDiv(shape->row_bytes, 64));
  shape->parts = PartsOf(call, half);
  shape->column_tiles = static_cast<int>(CeilDiv(call.heads, 8 / shape->parts));
  const int tile_bytes = 1024 * shape->vectors * shape->steps;
  const int page_entries = 1 << shape->page_shift;
  shape->stage_tiles =
      std::clamp(kStageBytes / tile_bytes, 1, std::max(1, kPagesOfStage * page_entries / 16));
  const int scales = shape->bits < 16 ? 64 * shape->vectors : 0;
  shape->stage_bytes = shape->stage_tiles * (tile_bytes + scales);
  const int operands =
      shape->column_tiles * shape->vectors * shape->steps * (32 / shape->bits) * kProductLanesBytes;
  shape->shared_bytes = kScoreWarps * kScoreStages * shape->stage_bytes + operands +
                        call.heads * (4 * shape->width + kHeadBytes);
}

// Whether select_score_fast.cu has a kernel for it.
bool IsFast(const SelectKeysCall& call, const ScoreShape& shape) {
  const bool whole = call.heads == call.group && call.heads <= 8 && call.act != DType::kF32;
  const bool shared = !call.per_head && call.path.owner == OwnerKind::kKvHead;
  if (call.scores_keys || call.normalises || !whole || !shared || !(call.scale > 0)) return false;
  if (shape.bits == 8) return shape.width == 64 || shape.width == 128;
  if (shape.bits != 4 || shape.vectors != 1) return false;
  if (shape.width == 128) return true;
  return (shape.width == 64 || shape.width == 32 || shape.width == 16) && call.entry_tokens == 1 &&
         shape.unit_entries == 64 && call.page_tokens >= 64;
}

}  // namespace

ScoreShape ScoreShapeOf(const SelectKeysCall& call, const DeviceTraits& traits) {
  ScoreShape shape;
  const bool keys = call.scores_keys;
  const MetadataLayout& layout = call.layout;
  shape.vectors = keys ? 1 : layout.vectors;
  shape.width = keys ? call.head_dim : layout.width;
  shape.bits = keys ? 16 : layout.bits;
  shape.row_bytes = keys ? 2 * call.head_dim : layout.row_bytes;
  // Cut in more pieces where each takes longer.
  shape.chunk_tokens = call.entry_tokens == 1 ? 256 : 1024;
  const int page_entries = keys ? call.page_tokens : layout.entries;
  shape.page_shift = std::countr_zero(static_cast<unsigned>(page_entries));
  shape.unit_entries = call.path.unit_tokens / call.entry_tokens;
  const bool pieces = shape.width * shape.bits % 128 == 0;
  if (pieces && !(keys && call.pool.dtype == DType::kF32)) {
    CutForTensorCores(call, &shape);
    shape.tensor_cores = shape.shared_bytes + kStaticBytes <= traits.shared_bytes_max;
  }
  const bool apart = call.per_head || call.path.owner == OwnerKind::kKvHead;
  shape.fast = IsFast(call, shape);
  shape.direct = shape.tensor_cores && !call.normalises && apart &&
                 (shape.unit_entries <= 16 || !call.per_head);
  shape.direct |= shape.fast;
  return shape;
}

}  // namespace lacuna::kernels::cuda
