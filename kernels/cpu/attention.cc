#include "kernels/cpu/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "kernels/core/check.h"
#include "kernels/core/checked_math.h"
#include "kernels/cpu/attention_blocks.h"

namespace lacuna::kernels::cpu {
namespace {

constexpr double kLog2E = 1.4426950408889634;
constexpr int kPartialsPerThread = 8;
// A split of a decode row reads at least this many pages: the merge must stay cheap beside it.
constexpr int64_t kSplitPagesMin = 8;
// A prefill cuts its tiles down to this many queries while workers would stay without a tile.
constexpr int kTileQueriesMin = 16;

constexpr size_t kTileBytes =
    sizeof(float) * (2 * kTileRowsMax + kBlockKeys) * kHeadDimMax +       // q, out, values
    sizeof(float) * kTileRowsMax * (2 + kSumLanes) +                      // positions, max, sum
    2 * sizeof(float) * static_cast<size_t>(kMicroRowsMax) * kBlockKeys;  // scores, probs
constexpr size_t kPartialBytes = sizeof(float) * kTileHeadsMax * (kHeadDimMax + 2);
static_assert(kTileBytes % 64 == 0 && kPartialBytes % 64 == 0);

float* Floats(std::byte* memory) { return static_cast<float*>(static_cast<void*>(memory)); }

// A tile's place in the problem.
struct TileWork final {
  int64_t kv_head = 0;
  int64_t first_head = 0;  // query heads [first_head, first_head + heads) of that kv head
  int heads = 1;
  int64_t first_row = 0;  // in q and out
  int queries = 1;
  int64_t first_position = 0;
  StaticShape shape;
  int64_t list_begin = 0;
  int64_t list_end = 0;
  int64_t range_begin = -1;  // -1: no ranges
  int64_t range_end = 0;
  bool gather = false;  // BlockCursor::Scope
};

// One call, with what prefill and decode share.
class Attention final {
 public:
  Attention(const KvPool& pool, const PageLists& lists, const KeyRanges* ranges,
            const AttentionParams& params, const TensorView& q, const TensorView& out,
            const TensorView& lse, const TensorView& dropped_lse, const AttentionKernels& kernels)
      : pool_(pool),
        lists_(lists),
        ranges_(ranges),
        params_(params),
        q_(q),
        out_(out),
        lse_(lse),
        dropped_lse_(dropped_lse),
        kernels_(kernels),
        transform_(params.softcap > 0.0f || !(params.scale > 0.0f)) {}

  // Scores, softmax and sums of one tile; what follows is FinishTile or KeepPartial.
  void RunTile(const TileWork& work, AttentionTile* tile) const;
  void FinishTile(const TileWork& work, const AttentionTile& tile) const;
  void KeepPartial(const AttentionTile& tile, const AttentionScratch::Partial& partial) const;
  // Merges the partials [first, first + count) of one row and writes it.
  void MergePartials(const TileWork& work, const AttentionScratch& scratch, int first, int count,
                     AttentionTile* tile) const;

 private:
  void FillTile(const TileWork& work, AttentionTile* tile) const;
  void FinishRow(const AttentionTile& tile, int row, int64_t token, int64_t head, float sum) const;
  double NormFactor(double max, float sum, int64_t token, int64_t head) const;
  float Log2Scale() const {
    return static_cast<float>((transform_ ? 1.0 : double{params_.scale}) * kLog2E);
  }

  const KvPool& pool_;
  const PageLists& lists_;
  const KeyRanges* ranges_;
  const AttentionParams& params_;
  const TensorView& q_;
  const TensorView& out_;
  const TensorView& lse_;
  const TensorView& dropped_lse_;
  const AttentionKernels& kernels_;
  bool transform_;
};

std::byte* RowOf(const TensorView& view, int64_t token, int64_t head) {
  const int64_t at = token * view.stride(0) + head * view.stride(1);
  return view.as<std::byte>() + at * static_cast<int64_t>(DTypeBytes(view.dtype()));
}

float SumOfLanes(const float* lanes) {
  float sum = 0.0f;
  for (int i = 0; i < kSumLanes; ++i) sum += lanes[i];
  return sum;
}

void Attention::FillTile(const TileWork& work, AttentionTile* tile) const {
  tile->rows = work.queries * work.heads;
  tile->head_dim = static_cast<int32_t>(pool_.head_dim);
  tile->k_stride = pool_.page_tokens * (pool_.dtype == DType::kBF16 ? 2 : 1);
  tile->window_tokens = work.shape.window_tokens;
  tile->sink_tokens = work.shape.sink_tokens;
  tile->scale = params_.scale;
  tile->softcap = params_.softcap;
  tile->transform = transform_;
  tile->scale_log2 = Log2Scale();
}

void Attention::RunTile(const TileWork& work, AttentionTile* tile) const {
  FillTile(work, tile);
  auto* positions = const_cast<int32_t*>(tile->positions);
  for (int row = 0; row < tile->rows; ++row) {
    const int query = row / work.heads;
    kernels_.pack_row(*tile, row,
                      RowOf(q_, work.first_row + query, work.first_head + row % work.heads));
    positions[row] = static_cast<int32_t>(work.first_position + query);
    tile->max[row] = kNoScore;
  }
  std::fill_n(tile->out, tile->rows * tile->head_dim, 0.0f);
  std::fill_n(tile->sum, tile->rows * kSumLanes, 0.0f);
  if (kernels_.begin != nullptr) kernels_.begin(*tile);

  BlockCursor cursor(pool_,
                     {&lists_, work.list_begin, work.list_end, work.kv_head, work.first_position,
                      work.first_position + work.queries - 1, work.shape, work.gather});
  if (work.range_begin >= 0) cursor.Limit(*ranges_, work.range_begin, work.range_end);
  KvBlock blocks[2];
  bool more = cursor.Next(&blocks[0]);
  for (int at = 0; more; at ^= 1) {
    more = cursor.Next(&blocks[at ^ 1]);
    kernels_.block(*tile, blocks[at], more ? &blocks[at ^ 1] : nullptr);
  }
  if (kernels_.end != nullptr) kernels_.end();
}

void Attention::FinishTile(const TileWork& work, const AttentionTile& tile) const {
  for (int row = 0; row < tile.rows; ++row) {
    FinishRow(tile, row, work.first_row + row / work.heads, work.first_head + row % work.heads,
              SumOfLanes(tile.sum + row * kSumLanes));
  }
}

// What the row's accumulators take: 1 / denominator, relative to 2^max, which sink logits and
// dropped keys join.
double Attention::NormFactor(double max, float sum, int64_t token, int64_t head) const {
  if (sum == 0.0f) return 0.0;
  constexpr double kNone = -std::numeric_limits<double>::infinity();
  const double sink =
      params_.sink_logits == nullptr ? kNone : double{params_.sink_logits[head]} * kLog2E;
  const double dropped =
      dropped_lse_.empty()
          ? kNone
          : double{dropped_lse_.as<float>()[token * dropped_lse_.stride(0) + head]} * kLog2E;
  const double top = std::max({max, sink, dropped});
  if (sink == kNone && dropped == kNone) return 1.0 / sum;
  return std::exp2(max - top) /
         (sum * std::exp2(max - top) + std::exp2(sink - top) + std::exp2(dropped - top));
}

// `sum` is that of 2^(log2 score - max), so 0 only where no key was visible.
void Attention::FinishRow(const AttentionTile& tile, int row, int64_t token, int64_t head,
                          float sum) const {
  const double max = double{tile.max[row]} * tile.scale_log2;
  const auto factor = static_cast<float>(NormFactor(max, sum, token, head));
  kernels_.store_row(tile, row, factor, RowOf(out_, token, head));
  if (!lse_.empty()) {
    lse_.as<float>()[token * lse_.stride(0) + head] =
        sum == 0.0f ? -std::numeric_limits<float>::infinity()
                    : static_cast<float>((max + std::log2(double{sum})) / kLog2E);
  }
}

void Attention::KeepPartial(const AttentionTile& tile,
                            const AttentionScratch::Partial& partial) const {
  std::copy_n(tile.out, tile.rows * tile.head_dim, partial.out);
  std::copy_n(tile.max, tile.rows, partial.max);
  for (int row = 0; row < tile.rows; ++row) {
    partial.sum[row] = SumOfLanes(tile.sum + row * kSumLanes);
  }
}

void Attention::MergePartials(const TileWork& work, const AttentionScratch& scratch, int first,
                              int count, AttentionTile* tile) const {
  FillTile(work, tile);
  for (int row = 0; row < tile->rows; ++row) {
    float max = kNoScore;
    for (int i = 0; i < count; ++i) max = std::max(max, scratch.PartialAt(first + i).max[row]);
    float sum = 0.0f;
    float* out = tile->out + row * tile->head_dim;
    std::fill_n(out, tile->head_dim, 0.0f);
    for (int i = 0; i < count; ++i) {
      const AttentionScratch::Partial partial = scratch.PartialAt(first + i);
      const float weight = std::exp2((partial.max[row] - max) * tile->scale_log2);
      sum += weight * partial.sum[row];
      const float* from = partial.out + row * tile->head_dim;
      for (int d = 0; d < tile->head_dim; ++d) out[d] += weight * from[d];
    }
    tile->max[row] = max;
    FinishRow(*tile, row, work.first_row, work.first_head + row, sum);
  }
}

const AttentionKernels& KernelsFor(const KvPool& pool, Isa isa) {
  if (pool.dtype == DType::kF32) {
    if (isa >= Isa::kAvx512) return kAttentionAvx512F32;
    return isa >= Isa::kAvx2 ? kAttentionAvx2F32 : kAttentionScalarF32;
  }
  if (isa >= Isa::kAmx && pool.head_dim % 32 == 0 && pool.page_tokens == kBlockKeys) {
    return kAttentionAmxBf16;
  }
  if (isa >= Isa::kAvx512Bf16) return kAttentionAvx512Bf16;
  if (isa >= Isa::kAvx512) return kAttentionAvx512Bf16Widened;
  return isa >= Isa::kAvx2 ? kAttentionAvx2Bf16 : kAttentionScalarBf16;
}

Status CheckPool(const KvPool& pool) {
  if (pool.head_dim <= 0 || pool.head_dim % 16 != 0 || pool.head_dim > kHeadDimMax) {
    return InvalidArgument("attention: head_dim " + std::to_string(pool.head_dim) +
                           " is no multiple of 16 up to " + std::to_string(kHeadDimMax));
  }
  if (pool.page_tokens % kGroupKeys != 0 || pool.page_tokens <= 0 ||
      kBlockKeys % pool.page_tokens != 0) {
    return InvalidArgument("attention: page_tokens " + std::to_string(pool.page_tokens) +
                           " is none of 16, 32, 64");
  }
  if (pool.dtype != DType::kF32 && pool.dtype != DType::kBF16) {
    return InvalidArgument("attention: the KV pool is neither f32 nor bf16");
  }
  return OkStatus();
}

// How the query heads of one kv head are cut: a group above kTileHeadsMax goes in parts.
struct HeadCut final {
  int64_t group;
  int64_t heads;  // of a tile
  int64_t parts;  // of a kv head
  HeadCut(int64_t q_heads, int64_t kv_heads, int64_t heads_max)
      : group(q_heads / kv_heads),
        heads(std::min(group, heads_max)),
        parts(CeilDiv(group, heads)) {}
  // Fills in the heads of part `index`, counted over all kv heads.
  void Fill(int64_t index, TileWork* work) const {
    work->kv_head = index / parts;
    const int64_t first = index % parts * heads;
    work->first_head = work->kv_head * group + first;
    work->heads = static_cast<int>(std::min(heads, group - first));
  }
};

int64_t CountTiles(std::span<const PrefillChunk> chunks, int64_t tile_queries) {
  int64_t tiles = 0;
  for (const PrefillChunk& chunk : chunks) tiles += CeilDiv(chunk.rows, tile_queries);
  return tiles;
}

// The static shape of a row (decode) or chunk (prefill) in one kv head.
template <typename Args>
StaticShape ShapeOf(const Args& args, int64_t index, int64_t kv_head) {
  if (args.shapes == nullptr) return args.params.shape;
  return args.shapes[index * args.pool.kv_heads + kv_head];
}

// Tiles of all chunks, the last (under a causal mask the longest) tile of each chunk first.
TileWork PrefillTile(const AttendPrefillArgs& args, int64_t tile, int64_t tile_queries,
                     const HeadCut& cut, int64_t part) {
  size_t index = 0;
  int64_t tiles = CeilDiv(args.chunks[0].rows, tile_queries);
  while (tile >= tiles) {
    tile -= tiles;
    tiles = CeilDiv(args.chunks[++index].rows, tile_queries);
  }
  const PrefillChunk& chunk = args.chunks[index];
  const int64_t first = (tiles - 1 - tile) * tile_queries;
  TileWork work;
  cut.Fill(part, &work);
  work.first_row = chunk.first_row + first;
  work.queries = static_cast<int>(std::min(tile_queries, chunk.rows - first));
  work.first_position = chunk.first_position + first;
  work.shape = ShapeOf(args, static_cast<int64_t>(index), work.kv_head);
  work.list_begin = args.lists.begins[index];
  work.list_end = args.lists.ends[index];
  if (args.ranges != nullptr) {
    const int64_t range_tiles = CeilDiv(chunk.rows, KeyRanges::kQueryTileTokens);
    const int64_t list = args.ranges->chunk_offsets[index] + work.first_head * range_tiles +
                         first / KeyRanges::kQueryTileTokens;
    work.range_begin = args.ranges->begins[list];
    work.range_end = args.ranges->ends[list];
  }
  return work;
}

// Lists may differ in length by much, so a row is cut by its own pages.
int64_t SplitsOf(int64_t tiles, int64_t pages_max, bool deterministic,
                 const AttentionScratch& scratch) {
  if (deterministic) return 1;
  return std::clamp<int64_t>(pages_max / kSplitPagesMin, 1,
                             std::max<int64_t>(scratch.partials() / tiles, 1));
}

}  // namespace

AttentionScratch::AttentionScratch(int threads) : partials_(kPartialsPerThread * threads) {
  const size_t tile_bytes = kTileBytes * static_cast<size_t>(threads);
  const size_t bytes = tile_bytes + kPartialBytes * static_cast<size_t>(partials_);
  memory_.reset(static_cast<std::byte*>(std::aligned_alloc(64, bytes)));
  LACUNA_CHECK(memory_ != nullptr);
  partial_memory_ = memory_.get() + tile_bytes;
}

AttentionTile AttentionScratch::Tile(int worker) const {
  float* memory = Floats(memory_.get() + kTileBytes * static_cast<size_t>(worker));
  AttentionTile tile{};
  tile.q = memory;
  tile.out = memory + kTileRowsMax * kHeadDimMax;
  tile.scores = tile.out + kTileRowsMax * kHeadDimMax;
  tile.probs = tile.scores + kMicroRowsMax * kBlockKeys;
  tile.values = tile.scores + 2 * kMicroRowsMax * kBlockKeys;
  tile.sum = tile.scores + 2 * kMicroRowsMax * kBlockKeys + kBlockKeys * kHeadDimMax;
  tile.max = tile.sum + kTileRowsMax * kSumLanes;
  tile.positions = static_cast<int32_t*>(static_cast<void*>(tile.max + kTileRowsMax));
  return tile;
}

AttentionScratch::Partial AttentionScratch::PartialAt(int index) const {
  float* memory = Floats(partial_memory_ + kPartialBytes * static_cast<size_t>(index));
  float* max = memory + kTileHeadsMax * kHeadDimMax;
  return {memory, max, max + kTileHeadsMax};
}

Status AttendPrefillCpu(const AttendPrefillArgs& args, Isa isa, bool /*deterministic*/,
                        ThreadPool& pool, AttentionScratch& scratch) {
  LACUNA_RETURN_IF_ERROR(CheckPool(args.pool));
  // Key ranges are per query head, so its group shares no tile.
  const HeadCut cut(args.q.dim(1), args.pool.kv_heads, args.ranges != nullptr ? 1 : kTileHeadsMax);
  const int64_t parts = args.pool.kv_heads * cut.parts;
  int64_t tile_queries = KeyRanges::kQueryTileTokens;
  while (tile_queries * cut.heads > kTileRowsMax ||
         (tile_queries > kTileQueriesMin &&
          CountTiles(args.chunks, tile_queries) * parts < 4 * pool.threads())) {
    tile_queries /= 2;
  }
  const TensorView no_dropped_lse;
  const Attention attention(args.pool, args.lists, args.ranges, args.params, args.q, args.out,
                            args.lse, no_dropped_lse, KernelsFor(args.pool, isa));
  pool.ParallelFor(CountTiles(args.chunks, tile_queries) * parts, [&](int64_t task, int worker) {
    const TileWork work = PrefillTile(args, task / parts, tile_queries, cut, task % parts);
    AttentionTile tile = scratch.Tile(worker);
    attention.RunTile(work, &tile);
    attention.FinishTile(work, tile);
  });
  return OkStatus();
}

Status AttendDecodeCpu(const AttendDecodeArgs& args, Isa isa, bool deterministic, ThreadPool& pool,
                       AttentionScratch& scratch) {
  LACUNA_RETURN_IF_ERROR(CheckPool(args.pool));
  const HeadCut cut(args.q.dim(1), args.pool.kv_heads, kTileHeadsMax);
  const int64_t parts = args.pool.kv_heads * cut.parts;
  const int64_t tiles = args.q.dim(0) * parts;
  int64_t pages_max = 0;
  for (int64_t i = 0; i < args.lists.lists; ++i) {
    pages_max = std::max(pages_max, args.lists.ends[i] - args.lists.begins[i]);
  }
  const int64_t splits = SplitsOf(tiles, pages_max, deterministic, scratch);
  const Attention attention(args.pool, args.lists, nullptr, args.params, args.q, args.out, args.lse,
                            args.dropped_lse, KernelsFor(args.pool, isa));
  const bool gather = args.lists.masks != nullptr && KernelsFor(args.pool, isa).gathers;
  const auto row_work = [&](int64_t tile) {
    TileWork work;
    work.gather = gather;
    cut.Fill(tile % parts, &work);
    work.first_row = tile / parts;
    work.first_position = args.positions.as<const int32_t>()[work.first_row];
    work.shape = ShapeOf(args, work.first_row, work.kv_head);
    const int64_t list =
        work.first_row * args.lists_per_row + (args.lists_per_row > 1 ? work.kv_head : 0);
    work.list_begin = args.lists.begins[list];
    work.list_end = args.lists.ends[list];
    return work;
  };
  pool.ParallelFor(tiles * splits, [&](int64_t task, int worker) {
    TileWork work = row_work(task / splits);
    const int64_t pages = work.list_end - work.list_begin;
    const int64_t split = task % splits;
    work.list_end = work.list_begin + pages * (split + 1) / splits;
    work.list_begin += pages * split / splits;
    AttentionTile tile = scratch.Tile(worker);
    attention.RunTile(work, &tile);
    if (splits == 1) {
      attention.FinishTile(work, tile);
    } else {
      attention.KeepPartial(tile, scratch.PartialAt(static_cast<int>(task)));
    }
  });
  if (splits == 1) return OkStatus();
  for (int64_t row = 0; row < tiles; ++row) {
    AttentionTile tile = scratch.Tile(0);
    attention.MergePartials(row_work(row), scratch, static_cast<int>(row * splits),
                            static_cast<int>(splits), &tile);
  }
  return OkStatus();
}

}  // namespace lacuna::kernels::cpu
