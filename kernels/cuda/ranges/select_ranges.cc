// SelectRanges on CUDA: cuts a chunk into slices whose scratch fits the workspace, and launches the
// stages (range_kernels.h) for each: pack, product, choose; then the ranges of all its tiles.
#include <algorithm>
#include <bit>
#include <cmath>
#include <string>

#include "kernels/core/checked_math.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/ranges/range_kernels.h"
#include "kernels/cuda/ranges/range_work.h"
#include "kernels/ops/range_limits.h"

namespace lacuna::kernels::cuda {
namespace {

constexpr int kHeadDimMax = 256;
constexpr int64_t kWorkspaceBytesWanted = int64_t{512} << 20;
constexpr int64_t kAlignment = 1024;

int32_t Int(int64_t value) { return static_cast<int32_t>(value); }

// Of kVerticalSlash some heads may read the best blocks of each row.
bool Means(const RangeWork& work) {
  return work.path.estimate == EstimateKind::kProbePooled ||
         work.path.select == PrefillSelectKind::kVerticalSlash ||
         (work.path.estimate == EstimateKind::kPooled && !work.antidiagonal());
}

int32_t DenseFrom(const RangeChunk& part, PrefillCorrectKind correct) {
  const PrefillDials& dials = part.dials;
  const int64_t prompt = part.prompt_tokens;
  if (prompt < dials.dense_below_tokens) return 0;
  int64_t from = prompt - dials.last_rows;
  if (correct != PrefillCorrectKind::kNone) {
    const int64_t stride = std::max(dials.correct_stride_rows, 1);
    from = std::min(from, prompt / stride * stride - dials.correct_last_rows);
  }
  return Int(std::max<int64_t>(from, 0));
}

// What the keys and the dials alone decide.
void SetKeys(RangeWork* work, int64_t keys) {
  const int64_t block = work->path.block_tokens;
  work->keys = Int(keys);
  work->key_blocks = Int(CeilDiv(keys, block));
  work->block_words = Int(CeilDiv(work->key_blocks, 32));
  work->unit = work->path.select == PrefillSelectKind::kVerticalSlash ? 1 : Int(block);
  work->unit_words = Int(CeilDiv(CeilDiv(keys, work->unit), 32));
  work->strips = Int(CeilDiv(keys, kRangeStripTokens));
  RangeProduct& product = work->product;
  product.stride = work->antidiagonal() ? work->path.stride_tokens : 1;
  work->logit_factor = work->scale / static_cast<float>(product.stride) * 1.442695041f;
  product.steps = Int(CeilDiv(int64_t{product.stride} * work->head_dim, kRangeTileColumns));
  product.key_tiles = Int(2 * CeilDiv(CeilDiv(keys, product.stride), 2 * kRangeTileRows));
  product.sum_shift = std::countr_zero(static_cast<uint32_t>(block / product.stride));
  work->sums_stride = product.key_tiles << (7 - product.sum_shift);
  work->keys_stride = product.key_tiles * kRangeTileRows;
  product.runs = Int(ProbeRuns(work->path, work->dials));
  product.run_rows = work->dials.probe_rows;
  if (work->spreads()) product.run_rows = Int(RoundUp(product.run_rows, kRangePieceRows));
  const int64_t first = work->chunk.first_position;
  work->chunk_blocks = Int(CeilDiv(keys, block) - first / block);
  const int64_t cell = work->path.cell_tokens;
  work->chunk_cells = Int(CeilDiv(keys, cell) - first / cell);
}

void SetRows(RangeWork* work, int64_t first, int64_t end) {
  work->first = Int(first);
  work->end = Int(end);
  work->blocks = Int(CeilDiv(end, work->path.block_tokens) - first / work->path.block_tokens);
  const int64_t cell = work->path.cell_tokens;
  work->cells = Int(CeilDiv(end, cell) - first / cell);
  RangeProduct& product = work->product;
  product.first_row = Int(first / product.stride);
  product.rows = work->antidiagonal() ? Int(CeilDiv(end, product.stride)) - product.first_row
                                      : work->cells * product.runs * product.run_rows;
  product.row_tiles = Int(CeilDiv(int64_t{work->members} * product.rows, kRangeTileRows));
}

// Hands out the workspace; with a null base it only counts.
class Carver final {
 public:
  explicit Carver(void* base) : base_(static_cast<std::byte*>(base)) {}
  template <typename T>
  void Take(int64_t count, T** to) {
    *to = base_ == nullptr ? nullptr : static_cast<T*>(static_cast<void*>(base_ + bytes_));
    bytes_ += RoundUp(count * static_cast<int64_t>(sizeof(T)), kAlignment);
  }
  void TakeBytes(int64_t bytes, void** to) {
    std::byte* at = nullptr;
    Take(bytes, &at);
    *to = at;
  }
  int64_t bytes() const { return bytes_; }

 private:
  std::byte* base_;
  int64_t bytes_ = 0;
};

// Scratch of one slice of heads and its largest slice of rows, which SetRows has described.
int64_t Carve(void* base, int64_t element_bytes, RangeWork* work) {
  Carver carver(base);
  const RangeProduct& product = work->product;
  const int64_t heads = work->head_count();
  const int64_t tile_bytes = element_bytes * kRangeTileRows * kRangeTileColumns;
  carver.Take(heads * work->chunk_blocks * work->block_words, &work->kept);
  if (Means(*work)) {
    carver.Take(int64_t{work->kvs} * work->head_dim * work->key_blocks, &work->mean_keys);
    carver.Take(heads * work->blocks * work->head_dim, &work->mean_queries);
  }
  if (Means(*work) || work->antidiagonal()) {
    carver.Take((work->bands() ? 2 : 1) * heads * work->blocks * work->key_blocks, &work->scores);
  }
  if (!work->antidiagonal() && !Probes(work->path)) return carver.bytes();
  carver.TakeBytes(int64_t{work->kvs} * product.key_tiles * product.steps * tile_bytes,
                   &work->packed_keys);
  carver.TakeBytes(int64_t{work->kvs} * product.row_tiles * product.steps * tile_bytes,
                   &work->packed_queries);
  carver.Take(product.rows, &work->visible);
  carver.Take(heads * product.rows * product.key_tiles, &work->tile_sums);
  if (work->antidiagonal()) {
    carver.Take(heads * product.rows * work->sums_stride, &work->block_sums);
    return carver.bytes();
  }
  const int64_t marks = heads * work->chunk_cells * work->unit_words;
  carver.Take(marks, &work->columns);
  carver.Take(marks, &work->distances);
  carver.Take(heads * work->chunk_cells, &work->reads_map);
  carver.Take(heads * product.rows, &work->lse);
  if (work->spreads()) {
    const int64_t pieces = heads * work->pieces();
    carver.Take(pieces * work->strips * kRangePartials, &work->partials);
    carver.Take(pieces * work->keys_stride, &work->column_sums);
    return carver.bytes();
  }
  const int64_t sums = heads * work->cells * work->key_blocks;
  carver.Take(heads * product.rows * work->sums_stride, &work->part_sums);
  carver.Take(2 * sums, &work->unit_sums);
  carver.Take(sums, &work->pooled);
  return carver.bytes();
}

// How many kv heads, members of a group and cells go together.
struct SliceSize final {
  int32_t kvs, members, cells;
};
// The largest slice of rows: whole cells, or the whole chunk.
void SetLargestRows(const SliceSize& size, RangeWork* work) {
  const int64_t tokens = work->path.cell_tokens, cell = work->chunk.first_position / tokens;
  const bool whole = size.cells >= work->chunk_cells;
  const int64_t end = (cell + std::min(size.cells, work->chunk_cells)) * tokens;
  SetRows(work, whole ? work->chunk.first_position : cell * tokens, end);
}

int64_t BytesOf(RangeWork work, const SliceSize& size, int64_t element_bytes) {
  work.kvs = size.kvs;
  work.members = size.members;
  SetLargestRows(size, &work);
  return Carve(nullptr, element_bytes, &work);
}

// The largest slice that fits: fewer kv heads, then fewer rows, then fewer members of a group.
Result<SliceSize> ChooseSlice(const RangeWork& work, int64_t element_bytes, int64_t bytes) {
  SliceSize size{work.kv_heads, work.group, work.chunk_cells};
  while (BytesOf(work, size, element_bytes) > bytes) {
    if (size.kvs > 1) {
      size.kvs = Int(CeilDiv(size.kvs, 2));
    } else if (size.cells > 1) {
      size.cells = Int(CeilDiv(size.cells, 2));
    } else if (size.members > 1) {
      size.members = Int(CeilDiv(size.members, 2));
    } else {
      return InternalError("SelectRanges: the workspace is too small");
    }
  }
  return size;
}

// The rows of one slice: estimates and chooses.
Status RunRows(const RangeWork& work, DType dtype, const DeviceTraits& traits,
               cudaStream_t stream) {
  if (work.antidiagonal()) {
    LACUNA_RETURN_IF_ERROR(PackRangeQueries(work, dtype, stream));
    LACUNA_RETURN_IF_ERROR(RangeScores(work, dtype, traits, stream));
    LACUNA_RETURN_IF_ERROR(CombineRangeScores(work, stream));
    return ChooseRangeBlocks(work, stream);
  }
  if (Means(work)) LACUNA_RETURN_IF_ERROR(RangeMeanMap(work, dtype, stream));
  if (!Probes(work.path)) return ChooseRangeBlocks(work, stream);
  LACUNA_RETURN_IF_ERROR(PackRangeQueries(work, dtype, stream));
  LACUNA_RETURN_IF_ERROR(RangeScores(work, dtype, traits, stream));
  LACUNA_RETURN_IF_ERROR(RangeLse(work, stream));
  if (work.spreads()) {
    LACUNA_RETURN_IF_ERROR(RangeSpread(work, dtype, traits, stream));
    LACUNA_RETURN_IF_ERROR(ChooseRangeBlocks(work, stream));
    return ChooseRangeSingles(work, stream);
  }
  LACUNA_RETURN_IF_ERROR(CombineRangeParts(work, stream));
  if (work.path.estimate == EstimateKind::kProbePooled) {
    LACUNA_RETURN_IF_ERROR(CompareRangeMaps(work, dtype, stream));
  }
  if (Means(work)) LACUNA_RETURN_IF_ERROR(ChooseRangeBlocks(work, stream));
  return ChooseRangeCells(work, stream);
}

// One slice of heads: all rows, then the ranges.
Status RunHeads(RangeWork work, const SliceSize& size, DType dtype, const DeviceTraits& traits,
                cudaStream_t stream) {
  // Of a probe with a map the packing of keys leaves their means.
  const bool packed = work.path.estimate == EstimateKind::kProbePooled;
  if (Means(work) && !packed) LACUNA_RETURN_IF_ERROR(RangeMeanKeys(work, dtype, stream));
  if (work.packed_keys != nullptr) LACUNA_RETURN_IF_ERROR(PackRangeKeys(work, dtype, stream));
  for (int64_t first = work.chunk.first_position; first < work.keys;) {
    const int64_t cell = work.path.cell_tokens;
    const int64_t end = std::min<int64_t>((first / cell + size.cells) * cell, work.keys);
    SetRows(&work, first, end);
    LACUNA_RETURN_IF_ERROR(RunRows(work, dtype, traits, stream));
    first = end;
  }
  return WriteRanges(work, stream);
}

RangeWork MakeWork(const SelectRangesArgs& args, size_t index) {
  const RangeChunk& part = args.chunks[index];
  const auto chunk = static_cast<int64_t>(index);
  const int64_t element_bytes = static_cast<int64_t>(DTypeBytes(args.q.dtype()));
  RangeWork work;
  work.q = args.q.data();
  work.q_row = args.q.stride(0);
  work.q_head = args.q.stride(1);
  work.q_aligned = reinterpret_cast<uintptr_t>(work.q) % 16 == 0 &&
                   work.q_row * element_bytes % 16 == 0 && work.q_head * element_bytes % 16 == 0;
  work.pool = static_cast<const std::byte*>(args.pool.data);
  work.slab_bytes = args.pool.SlabBytes();
  work.kv_heads = Int(args.pool.kv_heads);
  work.head_dim = Int(args.pool.head_dim);
  work.page_tokens = Int(args.pool.page_tokens);
  work.lists = args.lists;
  work.chunk_index = chunk;
  work.path = args.path;
  work.dials = part.dials;
  work.heads = args.heads;
  if (args.shapes != nullptr) work.shapes = args.shapes + chunk * args.pool.kv_heads;
  work.scale = args.scale;
  work.chunk = part.chunk;
  work.dense_from = DenseFrom(part, args.path.correct);
  work.out = args.out;
  if (args.stats != nullptr) work.stats = args.stats + chunk * args.q.dim(1);
  work.group = Int(args.q.dim(1) / args.pool.kv_heads);
  work.kvs = work.kv_heads;
  work.members = work.group;
  return work;
}

Status RunChunk(const SelectRangesArgs& args, size_t index, const DeviceTraits& traits,
                const Workspace& workspace, cudaStream_t stream) {
  RangeWork work = MakeWork(args, index);
  const int64_t first = work.chunk.first_position, end = first + work.chunk.rows;
  if (args.path.estimate == EstimateKind::kNone || first >= work.dense_from) {
    return WriteRanges(work, stream);
  }
  // Cells whose rows all attend densely are not estimated.
  SetKeys(&work, std::min(end, RoundUp(work.dense_from, int64_t{work.path.cell_tokens})));
  const DType dtype = args.q.dtype();
  const auto element_bytes = static_cast<int64_t>(DTypeBytes(dtype));
  LACUNA_ASSIGN_OR_RETURN(const SliceSize size, ChooseSlice(work, element_bytes, workspace.bytes));
  for (work.first_kv = 0; work.first_kv < work.kv_heads; work.first_kv += size.kvs) {
    work.kvs = std::min(size.kvs, work.kv_heads - work.first_kv);
    for (work.first_member = 0; work.first_member < work.group; work.first_member += size.members) {
      work.members = std::min(size.members, work.group - work.first_member);
      SetLargestRows(size, &work);
      Carve(workspace.data, element_bytes, &work);
      LACUNA_RETURN_IF_ERROR(RunHeads(work, size, dtype, traits, stream));
    }
  }
  return OkStatus();
}

// ---- the workspace ----

// A chunk of step_tokens at the end of the context.
RangeWork LastChunk(const PrefillPath& path, const PrefillDials& dials, int64_t step_tokens,
                    int64_t context_tokens, int64_t head_dim) {
  RangeWork work;
  work.path = path;
  work.dials = dials;
  work.head_dim = Int(head_dim);
  // A cell more than fits: chunks need not begin with a cell.
  const int64_t rows = std::min(step_tokens + path.cell_tokens, context_tokens);
  work.chunk = {0, Int(rows), Int(context_tokens - rows)};
  SetKeys(&work, context_tokens);
  return work;
}

// Calls fn(path, dials) for kinds of estimates of which some other needs no more scratch.
template <typename Fn>
void ForKinds(bool every, Fn&& fn) {
  PrefillPath path;
  PrefillDials dials;
  path.estimate = EstimateKind::kPooled;
  path.select = PrefillSelectKind::kTopP;
  path.pool = PrefillPool::kAntidiagonal;
  for (const int block : {64, 128}) {
    path.block_tokens = block;
    for (int stride = every ? 1 : 8; stride <= (every ? block : 16); stride *= 2) {
      path.stride_tokens = stride;
      fn(path, dials);
    }
  }
  path.block_tokens = 64;
  path.pool = PrefillPool::kBands;
  fn(path, dials);
  path.estimate = EstimateKind::kProbe;
  path.pool = PrefillPool::kMean;
  path.select = PrefillSelectKind::kVerticalSlash;
  if (every) {
    path.cell_tokens = kCellTokensMax;
    dials.probe_rows = kProbeRowsMax;
  }
  fn(path, dials);
  path.estimate = EstimateKind::kProbePooled;
  path.select = PrefillSelectKind::kCover;
  fn(path, dials);
}

Status CheckCuda(const SelectRangesArgs& args) {
  const int64_t dim = args.pool.head_dim;
  if (dim > kHeadDimMax || (args.pool.dtype != DType::kF32 && dim % 8 != 0)) {
    return InvalidArgument("SelectRanges: head_dim " + std::to_string(dim) +
                           " is no multiple of 8 up to " + std::to_string(kHeadDimMax));
  }
  return OkStatus();
}

}  // namespace

int64_t SelectRangesWorkspaceBytes(DType dtype, int64_t step_tokens, int64_t q_heads,
                                   int64_t head_dim, int64_t context_tokens) {
  const auto element_bytes = static_cast<int64_t>(DTypeBytes(dtype));
  int64_t least = 0, wanted = 0;
  ForKinds(true, [&](const PrefillPath& path, const PrefillDials& dials) {
    const RangeWork work = LastChunk(path, dials, step_tokens, context_tokens, head_dim);
    least = std::max(least, BytesOf(work, {1, 1, 1}, element_bytes));
  });
  // All heads at once, in groups of four as most models have them.
  const int64_t kv_heads = CeilDiv(q_heads, 4);
  ForKinds(false, [&](const PrefillPath& path, const PrefillDials& dials) {
    const RangeWork work = LastChunk(path, dials, step_tokens, context_tokens, head_dim);
    const SliceSize all{Int(kv_heads), Int(CeilDiv(q_heads, kv_heads)), work.chunk_cells};
    wanted = std::max(wanted, BytesOf(work, all, element_bytes));
  });
  return std::max(least, std::min(wanted, kWorkspaceBytesWanted));
}

Status SelectRanges(const SelectRangesArgs& args, const DeviceTraits& traits,
                    const Workspace& workspace, cudaStream_t stream) {
  LACUNA_RETURN_IF_ERROR(CheckCuda(args));
  for (size_t chunk = 0; chunk < args.chunks.size(); ++chunk) {
    if (args.chunks[chunk].chunk.rows == 0) continue;
    LACUNA_RETURN_IF_ERROR(RunChunk(args, chunk, traits, workspace, stream));
  }
  return OkStatus();
}

}  // namespace lacuna::kernels::cuda
