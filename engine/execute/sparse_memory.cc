#include "engine/execute/sparse_memory.h"

#include <algorithm>

#include "kernels/core/checked_math.h"
#include "kernels/ops/range_limits.h"

namespace lacuna::engine {
namespace {

using kernels::KeyRanges;
using kvcache::SparsePlan;

constexpr int64_t kI32 = sizeof(int32_t), kI64 = sizeof(int64_t), kF32 = sizeof(float);

template <typename T>
T* At(const kernels::Buffer& buffer, int64_t index) {
  return reinterpret_cast<T*>(buffer.data()) + index;
}

int64_t Tiles(const PrefillClass& chunks) {
  int64_t tiles = 0;
  for (const kernels::RangeChunk& one : chunks.all) {
    tiles += CeilDiv(one.chunk.rows, KeyRanges::kQueryTileTokens);
  }
  return tiles;
}

// Where heads have pages of their own, every plan streams the same ones, and each layer chooses for
// itself: the heads that select differ from layer to layer.
Status CheckHeads(const SparsePlan& plan, const HeadOrder* order) {
  if (order == nullptr) return OkStatus();
  for (int32_t layer = 0; layer < plan.shape.layers; ++layer) {
    if (plan.layers[static_cast<size_t>(layer)].decode == kvcache::LayerRole::kReuse) {
      return InvalidArgument("plan " + plan.name + ": got layers that reuse a choice, need none " +
                             "where streaming heads keep only what they see");
    }
    for (int32_t place = 0; place < plan.shape.kv_heads; ++place) {
      const int32_t head = order->heads(layer)[static_cast<size_t>(place)];
      const bool streams = plan.head(layer, head).role == kvcache::HeadRole::kStreaming;
      if (streams == (place < order->full_heads(layer))) {
        return InvalidArgument("plan " + plan.name +
                               ": got other streaming heads than those that " +
                               "keep only what they see");
      }
    }
  }
  return OkStatus();
}

int64_t RangeStride(const PrefillClass& chunks) {
  int64_t tokens = 0;
  for (const kernels::RangeChunk& one : chunks.all) {
    tokens = std::max<int64_t>(tokens, one.chunk.first_position + one.chunk.rows);
  }
  return kernels::RangesMax(chunks.plan->prefill, tokens);
}

}  // namespace

Status SparseMemory::Allocate(const SparseLimits& limits) {
  if (limits.plans.empty()) return OkStatus();
  const kvcache::AttentionShape& shape = limits.plans[0]->shape;
  act_ = limits.act;
  launches_ = limits.launches;
  for (const auto& plan : limits.plans) {
    LACUNA_RETURN_IF_ERROR(CheckHeads(*plan, limits.head_order));
  }
  running_max_ = limits.running_max;
  decode_rows_max_ = limits.decode_rows_max;
  q_heads_ = shape.q_heads;
  kv_heads_ = shape.kv_heads;
  head_dim_ = shape.head_dim;
  pages_max_ = CeilDiv(limits.context_tokens_max, shape.page_tokens);
  LACUNA_RETURN_IF_ERROR(AllocateDecode(limits));
  LACUNA_RETURN_IF_ERROR(AllocatePrefill(limits));
  return tables_.Allocate(device_, limits.plans, limits.head_order, limits.running_max);
}

Status SparseMemory::AllocateDecode(const SparseLimits& limits) {
  bool any = false, drops = false, statics = false;
  bool owned[2] = {};  // choices by head, by layer
  int64_t query_slots = 0;
  for (const auto& plan : limits.plans) {
    statics = statics || plan->static_heads;
    if (!plan->sparse_decode) continue;
    any = true;
    owned[ByLayer(*plan)] = true;
    const int64_t slots = KeepsChoices(*plan) ? launches_->Slots(*plan) : 0;
    ChoicesOf(*plan).kept_slots = std::max(ChoicesOf(*plan).kept_slots, slots);
    const bool queries = plan->decode.refresh == kernels::RefreshKind::kCosine;
    if (queries) query_slots = std::max(query_slots, slots);
    drops = drops || plan->decode.correct == kernels::DecodeCorrectKind::kDenominator;
  }
  const int64_t lists = decode_rows_max_ * kv_heads_, entries = lists * pages_max_;
  const int64_t row_lse = decode_rows_max_ * q_heads_ * kF32;
  const int64_t out =
      decode_rows_max_ * q_heads_ * head_dim_ * static_cast<int64_t>(DTypeBytes(act_));
  const int64_t queries = running_max_ * q_heads_ * head_dim_ * kF32;
  const auto take = [&](kernels::Buffer& buffer, int64_t bytes) -> Status {
    if (bytes == 0) return OkStatus();
    LACUNA_ASSIGN_OR_RETURN(buffer, device_.Allocate(bytes));
    return OkStatus();
  };
  if (any || statics) {
    LACUNA_RETURN_IF_ERROR(take(audit_out_, out));
    LACUNA_RETURN_IF_ERROR(take(sparse_lse_, row_lse));
    LACUNA_RETURN_IF_ERROR(take(dense_lse_, row_lse));
  }
  if (!any) return OkStatus();
  LACUNA_RETURN_IF_ERROR(take(list_pages_, entries * kI32));
  LACUNA_RETURN_IF_ERROR(take(list_logical_, entries * kI32));
  LACUNA_RETURN_IF_ERROR(take(list_masks_, entries * kI64));
  LACUNA_RETURN_IF_ERROR(take(list_begins_, lists * kI64));
  LACUNA_RETURN_IF_ERROR(take(list_ends_, lists * kI64));
  for (const bool by_layer : {false, true}) {
    if (!owned[by_layer]) continue;
    Choices& choices = by_layer ? layer_choices_ : head_choices_;
    const int64_t row = (by_layer ? 1 : kv_heads_) * pages_max_ * kI64;
    LACUNA_RETURN_IF_ERROR(take(choices.masks, decode_rows_max_ * row));
    LACUNA_RETURN_IF_ERROR(take(choices.kept_masks, choices.kept_slots * running_max_ * row));
  }
  LACUNA_RETURN_IF_ERROR(take(kept_queries_, query_slots * queries));
  return take(dropped_lse_, drops ? row_lse : 0);
}

Status SparseMemory::AllocatePrefill(const SparseLimits& limits) {
  int64_t stride = 0, correct_stride = 0;
  for (const auto& plan : limits.plans) {
    if (!plan->sparse_prefill) continue;
    stride = std::max(stride, kernels::RangesMax(plan->prefill, limits.context_tokens_max));
    if (plan->prefill.correct == kernels::PrefillCorrectKind::kNone) continue;
    const int64_t rows = plan->prefill_dials.correct_stride_rows;
    correct_stride = correct_stride == 0 ? rows : std::min(correct_stride, rows);
  }
  if (stride == 0) return OkStatus();
  const int64_t lists = q_heads_ * TilesMax(limits.step_tokens_max);
  LACUNA_ASSIGN_OR_RETURN(range_entries_, device_.Allocate(lists * stride * 2 * kI32));
  LACUNA_ASSIGN_OR_RETURN(range_lists_, device_.Allocate(lists * 2 * kI64));
  if (correct_stride == 0) return OkStatus();
  correct_rows_max_ = limits.step_tokens_max / correct_stride + 1;
  LACUNA_ASSIGN_OR_RETURN(correct_out_, device_.Allocate(correct_rows_max_ * q_heads_ * head_dim_ *
                                                         static_cast<int64_t>(DTypeBytes(act_))));
  return OkStatus();
}

int64_t SparseMemory::TilesMax(int64_t step_tokens_max) {
  return CeilDiv(step_tokens_max, KeyRanges::kQueryTileTokens) + 1;
}

int64_t SparseMemory::bytes() const {
  int64_t bytes = tables_.bytes();
  for (const kernels::Buffer* buffer :
       {&list_pages_, &list_logical_, &list_masks_, &list_begins_, &list_ends_, &dropped_lse_,
        &head_choices_.masks, &head_choices_.kept_masks, &layer_choices_.masks,
        &layer_choices_.kept_masks, &kept_queries_, &audit_out_, &sparse_lse_, &dense_lse_,
        &correct_out_, &range_entries_, &range_lists_}) {
    bytes += buffer->bytes();
  }
  return bytes;
}

Status SparseMemory::Bind(std::span<DecodeClass> decode, std::span<PrefillClass> prefill,
                          int64_t step, kernels::Stream& stream) {
  for (DecodeClass& rows : decode) LACUNA_RETURN_IF_ERROR(BindRows(rows, step, stream));
  for (PrefillClass& chunks : prefill) LACUNA_RETURN_IF_ERROR(BindChunks(chunks, step, stream));
  return OkStatus();
}

Status SparseMemory::BindRows(DecodeClass& rows, int64_t step, kernels::Stream& stream) {
  const SparsePlan& plan = *rows.plan;
  if (!plan.sparse_decode) return OkStatus();
  const bool kept = KeepsChoices(plan);
  const bool drops = plan.decode.correct == kernels::DecodeCorrectKind::kDenominator;
  const bool queries = plan.decode.refresh == kernels::RefreshKind::kCosine;
  const Choices& choices = ChoicesOf(plan);
  if (choices.masks.bytes() == 0 || (kept && launches_->Slots(plan) > choices.kept_slots) ||
      (drops && dropped_lse_.bytes() == 0) || (queries && kept_queries_.bytes() == 0)) {
    return InternalError("a step holds plan " + plan.name + ", for which no memory was provided");
  }
  LACUNA_ASSIGN_OR_RETURN(const PathTables::Tables tables, tables_.Of(plan, step, stream));
  rows.thresholds = tables.thresholds;
  rows.lists.stride = pages_max_;
  const int64_t lists = rows.first * kv_heads_;
  rows.lists.pages = At<int32_t>(list_pages_, lists * pages_max_);
  rows.lists.logical = At<int32_t>(list_logical_, lists * pages_max_);
  rows.lists.masks = At<uint64_t>(list_masks_, lists * pages_max_);
  rows.lists.begins = At<int64_t>(list_begins_, lists);
  rows.lists.ends = At<int64_t>(list_ends_, lists);
  rows.choices.owners = ByLayer(plan) ? 1 : kv_heads_;
  rows.choices.pages_max = pages_max_;
  rows.choices.masks = At<uint64_t>(kept ? choices.kept_masks : choices.masks, 0);
  rows.slot_masks = kept ? running_max_ * rows.choices.owners * pages_max_ : 0;
  if (queries) {
    rows.choices.queries = At<float>(kept_queries_, 0);
    rows.slot_queries = running_max_ * q_heads_ * head_dim_;
  }
  if (drops) {
    rows.dropped_lse = TensorView(At<float>(dropped_lse_, rows.first * q_heads_), DType::kF32,
                                  {rows.rows, q_heads_});
  }
  return OkStatus();
}

Status SparseMemory::BindChunks(PrefillClass& chunks, int64_t step, kernels::Stream& stream) {
  if (!chunks.sparse) return OkStatus();
  const SparsePlan& plan = *chunks.plan;
  const int64_t stride = RangeStride(chunks), lists = q_heads_ * Tiles(chunks);
  if (lists * stride * 2 * kI32 > range_entries_.bytes() ||
      lists * 2 * kI64 > range_lists_.bytes()) {
    return InternalError("a step holds plan " + plan.name + ", for which no memory was provided");
  }
  LACUNA_ASSIGN_OR_RETURN(const PathTables::Tables tables, tables_.Of(plan, step, stream));
  chunks.heads = tables.heads;
  for (kernels::RangeArrays* arrays : {&chunks.ranges, &chunks.last_ranges}) {
    arrays->stride = stride;
    arrays->begins = At<int64_t>(range_lists_, 0);
    arrays->ends = At<int64_t>(range_lists_, lists);
    arrays->begin = At<int32_t>(range_entries_, 0);
    arrays->end = At<int32_t>(range_entries_, lists * stride);
  }
  return OkStatus();
}

SparseScratch SparseMemory::scratch() const {
  const auto outs = [&](const kernels::Buffer& buffer, int64_t rows) {
    return buffer.bytes() == 0 ? TensorView()
                               : TensorView(buffer.data(), act_, {rows, q_heads_, head_dim_});
  };
  const auto lse = [&](const kernels::Buffer& buffer) {
    return buffer.bytes() == 0
               ? TensorView()
               : TensorView(buffer.data(), DType::kF32, {decode_rows_max_, q_heads_});
  };
  return {.correct_rows_max = correct_rows_max_,
          .correct_out = outs(correct_out_, correct_rows_max_),
          .audit_out = outs(audit_out_, decode_rows_max_),
          .sparse_lse = lse(sparse_lse_),
          .dense_lse = lse(dense_lse_)};
}

}  // namespace lacuna::engine
