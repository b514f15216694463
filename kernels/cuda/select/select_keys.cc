// SelectKeys on CUDA: the derived shape of a call, and its rows in groups that fit the workspace.
#include "kernels/cuda/select/select_keys.h"

#include <algorithm>
#include <string>

#include "kernels/core/checked_math.h"
#include "kernels/cuda/select/select_score.h"

namespace lacuna::kernels::cuda {
namespace {

constexpr int64_t kAlign = 256;
constexpr int64_t kWorkspaceBytes = int64_t{256} << 20;  // unless one row needs more

void TakeArguments(const SelectKeysArgs& args, SelectKeysCall* call) {
  call->q = args.q.data();
  call->q_stride = args.q.stride(0);
  call->act = args.q.dtype();
  call->pool = args.pool;
  call->metadata = args.metadata;
  call->refine_metadata = args.refine_metadata;
  call->positions = args.positions.as<const int32_t>();
  call->pages = args.pages;
  call->path = args.path;
  call->rows = args.rows;
  call->thresholds = args.thresholds;
  call->shapes = args.shapes;
  call->scale = args.scale;
  call->choices = args.choices;
  call->out = args.out;
  call->stats = args.stats;
  if (args.dropped_lse.empty()) return;
  call->dropped_lse = args.dropped_lse.as<float>();
  call->dropped_stride = args.dropped_lse.stride(0);
}

void Derive(const SelectKeysArgs& args, SelectKeysCall* call) {
  const DecodePath& path = args.path;
  const KvPool& pool = args.pool;
  call->kv_heads = static_cast<int32_t>(pool.kv_heads);
  call->group = static_cast<int32_t>(args.q.dim(1) / pool.kv_heads);
  call->head_dim = static_cast<int32_t>(pool.head_dim);
  call->page_tokens = static_cast<int32_t>(pool.page_tokens);
  call->heads = path.query == QueryForm::kGroupMean ? 1 : call->group;
  call->query_rows = call->kv_heads * call->heads;
  call->owners = path.owner == OwnerKind::kLayer ? 1 : call->kv_heads;
  call->per_head = path.reduce == ReduceKind::kUnion || path.reduce == ReduceKind::kRoundRobin;
  call->unit_rows = call->per_head ? call->query_rows : call->owners;
  call->chooses = path.select == SelectKind::kTopK || path.select == SelectKind::kTopP ||
                  path.select == SelectKind::kThreshold;
  call->scores_keys = !path.metadata.any();
  call->normalises = path.normalise || path.score == ScoreKind::kProbs;
  call->refines = call->chooses && path.refine != RefineKind::kNone;
  call->slab_bytes = pool.SlabBytes();
  if (path.metadata.any()) {
    call->layout = MetadataLayout(path.metadata, pool.head_dim, pool.page_tokens);
    call->metadata_slab_bytes = args.metadata.SlabBytes();
  }
  if (path.refine_metadata.any()) {
    call->refine_layout = MetadataLayout(path.refine_metadata, pool.head_dim, pool.page_tokens);
    call->refine_slab_bytes = args.refine_metadata.SlabBytes();
  }
  call->entry_tokens = call->scores_keys ? 1 : call->layout.entry_tokens;
}

// Scratch of one row; every part is a multiple of kAlign bytes.
struct RowBytes final {
  int64_t units = 0, scores = 0, sums = 0, choose = 0;
  int64_t total() const { return units + scores + sums + choose + kAlign; }
};

RowBytes SizeRow(bool direct, int64_t pages_max, SelectKeysCall* call) {
  RowBytes bytes;
  call->pages_max = static_cast<int32_t>(pages_max);
  const int64_t tokens = pages_max * call->page_tokens;
  if (call->chooses) {
    call->units_stride = RoundUp(CeilDiv(tokens, int64_t{call->path.unit_tokens}), 64);
    bytes.units = call->unit_rows * call->units_stride * 4;
  }
  if (call->chooses && !direct) {
    const int64_t entries = CeilDiv(tokens, int64_t{call->entry_tokens});
    call->scores_stride = RoundUp(entries, 64);
    bytes.scores = call->query_rows * call->scores_stride * 4;
    call->chunks_max = static_cast<int32_t>(CeilDiv(entries, int64_t{kSumEntries}));
    bytes.sums = RoundUp(int64_t{call->query_rows} * call->chunks_max * 8, kAlign);
  }
  bytes.choose = ChooseRowBytes(*call);
  return bytes;
}

// Rows of one group. A workspace made for a shorter context than pages_max bounds the rows that
// choose by what fits.
int64_t SizeGroup(const SelectKeysArgs& args, const Workspace& workspace, bool direct,
                  RowBytes* bytes, SelectKeysCall* call) {
  int64_t pages_max = std::min(args.choices.pages_max, args.pool.pages);
  *bytes = SizeRow(direct, pages_max, call);
  while (bytes->total() > workspace.bytes && pages_max > 0) {
    const int64_t fits = pages_max * workspace.bytes / bytes->total();
    pages_max = std::min(pages_max - 1, fits);
    *bytes = SizeRow(direct, pages_max, call);
  }
  return std::min<int64_t>(kSelectRowsMax, workspace.bytes / bytes->total());
}

// Returns the part of the workspace that is left to ChooseKeys.
Workspace LayOut(const Workspace& workspace, const RowBytes& bytes, SelectKeysCall* call) {
  char* at = static_cast<char*>(workspace.data);
  const int64_t rows = call->group_rows;
  const auto take = [&](int64_t of_row) {
    char* from = at;
    at += rows * of_row;
    return from;
  };
  call->units = reinterpret_cast<float*>(take(bytes.units));
  call->scores = reinterpret_cast<float*>(take(bytes.scores));
  call->chunk_sums = reinterpret_cast<float2*>(take(bytes.sums));
  call->turned = reinterpret_cast<int32_t*>(take(kAlign));
  return {at, rows * bytes.choose};
}

}  // namespace

Status FirstGroup(const SelectKeysArgs& args, const DeviceTraits& traits,
                  const Workspace& workspace, SelectGroup* group) {
  SelectKeysCall& call = group->call;
  TakeArguments(args, &call);
  Derive(args, &call);
  group->shape = ScoreShapeOf(call, traits);
  RowBytes bytes;
  const int64_t rows_max = SizeGroup(args, workspace, group->shape.direct, &bytes, &call);
  if (rows_max < 1) {
    return InternalError("SelectKeys: a workspace of " + std::to_string(workspace.bytes) +
                         " bytes holds no row");
  }
  call.first_row = 0;
  call.group_rows = static_cast<int32_t>(std::min(rows_max, args.q.dim(0)));
  group->rest = LayOut(workspace, bytes, &call);
  return OkStatus();
}

Status ScoreUnits(const SelectGroup& group, cudaStream_t stream) {
  const auto& [call, shape, rest] = group;
  if (!call.chooses || call.pages_max == 0) return OkStatus();
  if (call.path.refresh == RefreshKind::kCosine) {
    LACUNA_RETURN_IF_ERROR(RefreshQueries(call, stream));
  }
  if (shape.fast) return ScoreFast(call, shape, stream);
  LACUNA_RETURN_IF_ERROR(!shape.tensor_cores ? ScoreAny(call, shape, stream)
                         : shape.bits < 16   ? ScoreCodes(call, shape, stream)
                                             : ScoreWide(call, shape, stream));
  return shape.direct ? OkStatus() : ReduceScores(call, stream);
}

int64_t SelectKeysWorkspaceBytes(int64_t rows_max, int64_t q_heads, int64_t context_tokens_max) {
  // Units and raw scores of every token and head, and what choosing needs.
  const int64_t tokens = RoundUp(context_tokens_max, 64) + 64;
  const int64_t row = q_heads * (tokens * (4 + 4 + kChooseBytesPerToken) +
                                 CeilDiv(tokens, int64_t{kSumEntries}) * 8) +
                      kChooseBytesPerRow + 4 * kAlign;
  return std::max(row, std::min(rows_max * row, kWorkspaceBytes));
}

Status SelectKeys(const SelectKeysArgs& args, const DeviceTraits& traits,
                  const Workspace& workspace, cudaStream_t stream) {
  if (args.pool.head_dim % 16 != 0) {
    return InvalidArgument("SelectKeys: pool: need a head_dim that is a multiple of 16");
  }
  const int64_t rows = args.q.dim(0);
  if (rows == 0) return OkStatus();
  SelectGroup group;
  LACUNA_RETURN_IF_ERROR(FirstGroup(args, traits, workspace, &group));
  const int64_t rows_max = group.call.group_rows;
  for (int64_t first = 0; first < rows; first += rows_max) {
    group.call.first_row = static_cast<int32_t>(first);
    group.call.group_rows = static_cast<int32_t>(std::min(rows_max, rows - first));
    LACUNA_RETURN_IF_ERROR(ScoreUnits(group, stream));
    LACUNA_RETURN_IF_ERROR(ChooseKeys(group.call, traits, group.rest, stream));
  }
  return OkStatus();
}

}  // namespace lacuna::kernels::cuda
