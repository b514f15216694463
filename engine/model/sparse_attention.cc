#include "engine/model/sparse_attention.h"

#include <algorithm>
#include <array>

#include "kernels/core/checked_math.h"
#include "kernels/ops/ops.h"

namespace lacuna::engine {
namespace {

using kernels::PageLists;
using kernels::StaticShape;
using kvcache::LayerPlan;
using kvcache::LayerRole;
using kvcache::SparsePlan;

PageLists Sublist(const PageLists& lists, int64_t first, int64_t count) {
  PageLists part = lists;
  part.begins += first;
  part.ends += first;
  part.lists = count;
  return part;
}

// Every `stride`-th row from `first` on.
TensorView Strided(const TensorView& rows, int64_t first, int64_t count, int64_t stride) {
  const TensorView from = rows.Slice(first, 1);
  return TensorView::Rows(from.data(), rows.dtype(), {count, rows.dim(1), rows.dim(2)},
                          stride * rows.stride(0));
}

bool Streams(const SparsePlan& plan, int64_t layer, int32_t kv_head) {
  return plan.head(static_cast<int32_t>(layer), kv_head).role != kvcache::HeadRole::kFull;
}

class LayerRun final {
 public:
  LayerRun(kernels::Backend& backend, const LayerAttention& layer, kernels::Stream& stream)
      : backend_(backend),
        at_(layer),
        step_(layer.step),
        lists_(layer.step.groups[static_cast<size_t>(layer.group)]),
        stream_(stream) {}

  Status Run() {
    LACUNA_RETURN_IF_ERROR(DecodeRows());
    return Chunks();
  }

 private:
  // Heads with a window of the layer's or of their group's are never sparse.
  bool windowed() const { return at_.params.shape.window_tokens > 0; }
  int64_t kv_heads() const { return at_.pool.kv_heads; }
  int64_t group() const { return at_.q.dim(1) / kv_heads(); }
  const LayerPlan& PlanOf(const SparsePlan& plan) const {
    return plan.layers[static_cast<size_t>(at_.layer)];
  }
  bool IsDense(const DecodeClass& rows) const {
    return windowed() || (PlanOf(*rows.plan).decode == LayerRole::kDense && rows.shapes == nullptr);
  }
  bool IsDense(const PrefillClass& chunks) const {
    const bool sparse = chunks.sparse && PlanOf(*chunks.plan).prefill_sparse;
    return windowed() || (!sparse && chunks.shapes == nullptr);
  }
  const StaticShape* LayerShapes(const StaticShape* shapes, int64_t lists) const {
    return shapes == nullptr ? nullptr : shapes + at_.layer * lists * kv_heads();
  }

  // Neighbours that attend densely share a launch.
  Status DecodeRows() {
    int64_t dense_first = 0;
    if (step_.sparse != nullptr) {
      for (const DecodeClass& rows : step_.sparse->decode) {
        if (IsDense(rows)) continue;
        LACUNA_RETURN_IF_ERROR(DenseRows(dense_first, rows.first - dense_first));
        LACUNA_RETURN_IF_ERROR(SparseRows(rows));
        dense_first = rows.first + rows.rows;
      }
    }
    return DenseRows(dense_first, step_.decode_rows - dense_first);
  }

  Status Chunks() {
    int64_t dense_first = 0;
    if (step_.sparse != nullptr) {
      for (const PrefillClass& chunks : step_.sparse->prefill) {
        if (IsDense(chunks)) continue;
        LACUNA_RETURN_IF_ERROR(DenseChunks(dense_first, chunks.first - dense_first));
        LACUNA_RETURN_IF_ERROR(SparseChunks(chunks));
        dense_first = chunks.first + static_cast<int64_t>(chunks.all.size());
      }
    }
    return DenseChunks(dense_first, static_cast<int64_t>(step_.chunks.size()) - dense_first);
  }

  // Over all pages of the rows' sequences; `shapes`, `out`, `lse` may replace the usual.
  kernels::AttendDecodeArgs DecodeArgs(int64_t first, int64_t count) const {
    return {.q = at_.q.Slice(first, count),
            .pool = at_.pool,
            .positions = step_.positions.Slice(first, count),
            .lists = Sublist(lists_.decode, first, count),
            .params = at_.params,
            .dropped_lse = {},
            .out = at_.out.Slice(first, count),
            .lse = {}};
  }

  Status DenseRows(int64_t first, int64_t count) {
    if (count <= 0) return OkStatus();
    return kernels::AttendDecode(backend_, DecodeArgs(first, count), stream_);
  }

  std::span<const kernels::PrefillChunk> ChunksOf(int64_t first, int64_t count) const {
    return (at_.last ? step_.last_chunks : step_.chunks)
        .subspan(static_cast<size_t>(first), static_cast<size_t>(count));
  }

  kernels::AttendPrefillArgs PrefillArgs(int64_t first, int64_t count) const {
    return {.q = at_.q,
            .pool = at_.pool,
            .chunks = ChunksOf(first, count),
            .lists = Sublist(lists_.prefill, first, count),
            .params = PrefillParams(),
            .out = at_.out,
            .lse = {}};
  }

  kernels::AttentionParams PrefillParams() const {
    kernels::AttentionParams params = at_.params;
    params.shape = at_.prefill_shape;
    return params;
  }

  Status DenseChunks(int64_t first, int64_t count) {
    if (count <= 0) return OkStatus();
    return kernels::AttendPrefill(backend_, PrefillArgs(first, count), stream_);
  }

  // The first rows of scratch memory that has room for all query heads, as these heads use it.
  TensorView Rows(const TensorView& scratch, int64_t rows) const {
    if (scratch.empty()) return {};
    if (scratch.rank() == 2)
      return TensorView(scratch.data(), scratch.dtype(), {rows, at_.q.dim(1)});
    return TensorView(scratch.data(), scratch.dtype(), {rows, at_.q.dim(1), at_.q.dim(2)});
  }

  Status SparseRows(const DecodeClass& rows) {
    const LayerRole role = PlanOf(*rows.plan).decode;
    const bool reads_lists = role == LayerRole::kSelect || role == LayerRole::kReuse;
    if (role == LayerRole::kSelect) LACUNA_RETURN_IF_ERROR(Choose(rows));
    if (role == LayerRole::kReuse) LACUNA_RETURN_IF_ERROR(Reuse(rows));
    kernels::AttendDecodeArgs args = DecodeArgs(rows.first, rows.rows);
    args.shapes = LayerShapes(rows.shapes, rows.rows);
    if (reads_lists) {
      args.lists = rows.lists.Lists(rows.rows * kv_heads());
      args.lists_per_row = static_cast<int>(kv_heads());
      args.dropped_lse = Rows(rows.dropped_lse, rows.rows);
    }
    // A planner that attends without shapes loses nothing.
    const bool audits = rows.audited > 0 && (reads_lists || rows.shapes != nullptr);
    if (audits) args.lse = Rows(step_.sparse->scratch.sparse_lse, rows.rows);
    LACUNA_RETURN_IF_ERROR(kernels::AttendDecode(backend_, args, stream_));
    if (audits) LACUNA_RETURN_IF_ERROR(Audit(rows));
    return role == LayerRole::kPlanner ? Choose(rows) : OkStatus();
  }

  Status Select(const DecodeClass& rows, const kernels::SelectRow* select,
                const StaticShape* shapes) {
    const SparsePlan& plan = *rows.plan;
    const bool chooses = select == rows.select;
    kernels::KeyChoices choices = rows.choices;
    const int64_t slot = rows.launches->SlotOf(plan, at_.layer);
    choices.masks += slot * rows.slot_masks;
    if (choices.queries != nullptr) choices.queries += slot * rows.slot_queries;
    if (plan.decode.owner == kernels::OwnerKind::kKvHead) choices.owners = kv_heads();
    kernels::DecodePath path = plan.decode;
    if (!chooses) {  // neither by another layer's query, nor by metadata that only the source has
      path.refresh = kernels::RefreshKind::kEveryN;
      path.score = kernels::ScoreKind::kKeys;
      path.metadata = path.refine_metadata = {};
    }
    const auto stored = [&](const kernels::MetadataSpec& spec) {
      return step_.metadata == nullptr ? kernels::MetadataPool{}
                                       : step_.metadata->Find(spec, at_.group, at_.layer_in_group);
    };
    return kernels::SelectKeys(
        backend_,
        {.q = at_.q.Slice(rows.first, rows.rows),
         .pool = at_.pool,
         .metadata = stored(path.metadata),
         .refine_metadata = stored(path.refine_metadata),
         .positions = step_.positions.Slice(rows.first, rows.rows),
         .pages = Sublist(lists_.decode, rows.first, rows.rows),
         .path = path,
         .rows = select,
         .thresholds = rows.thresholds == nullptr
                           ? nullptr
                           : rows.thresholds + at_.layer * plan.shape.q_heads,
         .shapes = shapes,
         .scale = at_.params.scale,
         .choices = choices,
         .out = rows.lists,
         .stats = chooses ? rows.stats + rows.launches->StatsOf(rows.rows, kv_heads()) : nullptr,
         .dropped_lse = Rows(rows.dropped_lse, rows.rows)},
        stream_);
  }

  // A head that streams here and not in a layer that reads the choice must choose all the same;
  // what it reads itself is then made in a second pass.
  Status Choose(const DecodeClass& rows) {
    if (rows.shapes == nullptr) return Select(rows, rows.select, nullptr);
    const int64_t slot = PlanOf(*rows.plan).slot;
    LACUNA_RETURN_IF_ERROR(
        Select(rows, rows.select, rows.choosing + slot * rows.rows * kv_heads()));
    return ChoosesForOthers(*rows.plan)
               ? Select(rows, rows.kept, LayerShapes(rows.shapes, rows.rows))
               : OkStatus();
  }

  bool ChoosesForOthers(const SparsePlan& plan) const {
    const int64_t slot = PlanOf(plan).slot;
    for (int64_t layer = at_.layer + 1; layer < at_.layers; ++layer) {
      if (plan.layers[static_cast<size_t>(layer)].slot != slot) continue;
      for (int32_t head = 0; head < plan.shape.kv_heads; ++head) {
        if (Streams(plan, layer, head) != Streams(plan, at_.layer, head)) return true;
      }
    }
    return false;
  }

  // The lists are those of the layer that made or read them last: the same, unless heads differ.
  Status Reuse(const DecodeClass& rows) {
    if (rows.shapes == nullptr) return OkStatus();
    const SparsePlan& plan = *rows.plan;
    int64_t before = at_.layer - 1;
    while (plan.layers[static_cast<size_t>(before)].slot != PlanOf(plan).slot) --before;
    bool same = true;
    for (int32_t head = 0; head < plan.shape.kv_heads; ++head) {
      same = same && Streams(plan, before, head) == Streams(plan, at_.layer, head);
    }
    return same ? OkStatus() : Select(rows, rows.kept, LayerShapes(rows.shapes, rows.rows));
  }

  Status Audit(const DecodeClass& rows) {
    const SparseScratch& scratch = step_.sparse->scratch;
    kernels::AttendDecodeArgs dense = DecodeArgs(rows.first, rows.audited);
    dense.out = Rows(scratch.audit_out, rows.audited);
    dense.lse = Rows(scratch.dense_lse, rows.audited);
    LACUNA_RETURN_IF_ERROR(kernels::AttendDecode(backend_, dense, stream_));
    return kernels::CompareAttention(backend_,
                                     {.sparse = at_.out.Slice(rows.first, rows.audited),
                                      .dense = dense.out,
                                      .sparse_lse = Rows(scratch.sparse_lse, rows.audited),
                                      .dense_lse = dense.lse,
                                      .audits = rows.audits + AuditGroup(at_.layer, at_.layers),
                                      .stride = kAuditGroups},
                                     stream_);
  }

  Status SparseChunks(const PrefillClass& chunks) {
    const auto count = static_cast<int64_t>(chunks.all.size());
    kernels::AttendPrefillArgs args = PrefillArgs(chunks.first, count);
    args.shapes = LayerShapes(chunks.shapes, count);
    if (!chunks.sparse || !PlanOf(*chunks.plan).prefill_sparse) {
      return kernels::AttendPrefill(backend_, args, stream_);
    }
    const kernels::RangeArrays& room = at_.last ? chunks.last_ranges : chunks.ranges;
    LACUNA_RETURN_IF_ERROR(kernels::SelectRanges(
        backend_,
        {.q = at_.q,
         .pool = at_.pool,
         .chunks = at_.last ? chunks.last : chunks.all,
         .lists = args.lists,
         .path = chunks.plan->prefill,
         .heads = chunks.heads + at_.layer * chunks.plan->shape.q_heads,
         .shapes = args.shapes,
         .scale = at_.params.scale,
         .out = room,
         .stats = chunks.stats + chunks.launches->StatsOf(count, kv_heads()) * group()},
        stream_));
    const kernels::KeyRanges ranges = room.Ranges();
    args.ranges = &ranges;
    LACUNA_RETURN_IF_ERROR(kernels::AttendPrefill(backend_, args, stream_));
    if (chunks.plan->prefill.correct == kernels::PrefillCorrectKind::kNone) return OkStatus();
    for (size_t c = 0; c < chunks.all.size(); ++c) LACUNA_RETURN_IF_ERROR(Correct(chunks, c));
    return OkStatus();
  }

  // Dense rows at the stride, and the correction by them, of one chunk.
  Status Correct(const PrefillClass& chunks, size_t index) {
    const kernels::RangeChunk& range = (at_.last ? chunks.last : chunks.all)[index];
    const int64_t stride = range.dials.correct_stride_rows;
    const CorrectRows rows = RowsToCorrect(range);
    if (rows.count == 0) return OkStatus();
    kernels::PrefillChunk chunk = range.chunk;
    // Where the whole chunk's rows stand, the last layer's are the later ones.
    const CorrectRows whole = RowsToCorrect(chunks.all[index]);
    const int64_t first = chunks.correct_firsts[index] + whole.count - rows.count;
    const SparseScratch& scratch = step_.sparse->scratch;
    if (rows.count > scratch.correct_rows_max) {
      return InternalError("a correction of more rows than was provided for");
    }
    const TensorView dense = scratch.correct_out.Slice(0, rows.count);
    const TensorView q = Strided(at_.q, chunk.first_row + rows.first, rows.count, stride);
    const kernels::PageLists lists = Sublist(chunks.correct_lists, first, rows.count);
    if (backend_.deterministic() && !backend_.decode_equals_prefill()) {
      LACUNA_RETURN_IF_ERROR(AsPrefill(q, lists, chunk.first_position + rows.first, stride, dense));
    } else {
      int32_t* positions = const_cast<int32_t*>(chunks.correct_positions) + first;
      LACUNA_RETURN_IF_ERROR(
          kernels::AttendDecode(backend_,
                                {.q = q,
                                 .pool = at_.pool,
                                 .positions = TensorView(positions, DType::kI32, {rows.count}),
                                 .lists = lists,
                                 .params = at_.params,
                                 .dropped_lse = {},
                                 .out = dense,
                                 .lse = {}},
                                stream_));
    }
    chunk.rows = rows.chunk_rows;
    return kernels::CorrectPrefill(backend_,
                                   {.kind = chunks.plan->prefill.correct,
                                    .chunks = {&chunk, 1},
                                    .stride_rows = static_cast<int32_t>(stride),
                                    .dense = dense,
                                    .out = at_.out},
                                   stream_);
  }

  // The rows of q, at every `stride`-th position from `position` on, with the bits of a dense
  // prefill: each is a chunk of its own, which wastes most of a tile.
  Status AsPrefill(const TensorView& q, const kernels::PageLists& lists, int64_t position,
                   int64_t stride, const TensorView& out) {
    std::array<kernels::PrefillChunk, 64> single;
    for (int64_t done = 0; done < q.dim(0);) {
      const int64_t count = std::min<int64_t>(q.dim(0) - done, std::ssize(single));
      for (int64_t i = 0; i < count; ++i) {
        single[static_cast<size_t>(i)] = {
            .first_row = static_cast<int32_t>(done + i),
            .rows = 1,
            .first_position = static_cast<int32_t>(position + (done + i) * stride)};
      }
      LACUNA_RETURN_IF_ERROR(
          kernels::AttendPrefill(backend_,
                                 {.q = q,
                                  .pool = at_.pool,
                                  .chunks = std::span(single).first(static_cast<size_t>(count)),
                                  .lists = Sublist(lists, done, count),
                                  .params = PrefillParams(),
                                  .out = out,
                                  .lse = {}},
                                 stream_));
      done += count;
    }
    return OkStatus();
  }

  kernels::Backend& backend_;
  const LayerAttention& at_;
  const StepInputs& step_;
  const StepInputs::Group& lists_;
  kernels::Stream& stream_;
};

}  // namespace

CorrectRows RowsToCorrect(const kernels::RangeChunk& chunk) {
  const int32_t stride = chunk.dials.correct_stride_rows;
  const int32_t first_position = chunk.chunk.first_position;
  const int32_t prompt = chunk.prompt_tokens;
  const int32_t dense_end = std::min(prompt - chunk.dials.last_rows,
                                     prompt - prompt % stride - chunk.dials.correct_last_rows);
  const int32_t rows = std::clamp(dense_end - first_position, 0, chunk.chunk.rows);
  const int32_t first = (stride - first_position % stride) % stride;
  if (first >= rows) return {};
  return {.first = first, .count = CeilDiv(rows - first, stride), .chunk_rows = rows};
}

Status AttendLayer(kernels::Backend& backend, const LayerAttention& layer,
                   kernels::Stream& stream) {
  return LayerRun(backend, layer, stream).Run();
}

Status AppendLayerMetadata(kernels::Backend& backend, const LayerAttention& layer,
                           kernels::Stream& stream) {
  const kvcache::MetadataStorage* metadata = layer.step.metadata;
  if (metadata == nullptr) return OkStatus();
  const StepInputs::Group& group = layer.step.groups[static_cast<size_t>(layer.group)];
  for (size_t store = 0; store < metadata->stores(); ++store) {
    const kernels::MetadataPool pool = metadata->pool(store, layer.group, layer.layer_in_group);
    if (pool.data == nullptr) continue;
    const bool reaches_back = pool.spec.window_tokens > pool.spec.sub_tokens;
    LACUNA_RETURN_IF_ERROR(kernels::AppendMetadata(
        backend,
        {.slots = group.slots,
         .previous_pages = reaches_back ? group.previous_pages : TensorView(),
         .keys = layer.pool,
         .metadata = pool},
        stream));
  }
  return OkStatus();
}

}  // namespace lacuna::engine
