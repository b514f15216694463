#include "engine/execute/sparse_image.h"

#include <algorithm>
#include <cstring>

#include "engine/execute/sparse_memory.h"
#include "kernels/core/checked_math.h"
#include "kvcache/sparse/decode_counts.h"

namespace lacuna::engine {
namespace {

using kernels::AttentionAudit;
using kernels::KeyRanges;
using kernels::RangeStats;
using kernels::SelectRow;
using kernels::SelectStats;
using kernels::StaticShape;
using kvcache::LayerPlan;
using kvcache::LayerRole;
using kvcache::SparsePlan;

constexpr int64_t kAlign = 16;

template <typename T>
T* At(std::byte* base, int64_t offset) {
  return reinterpret_cast<T*>(base + offset);
}

template <typename T>
std::span<const T> Part(const std::byte* base, int64_t offset, int64_t count) {
  if (count == 0) return {};
  return {reinterpret_cast<const T*>(base + offset), static_cast<size_t>(count)};
}

// The row's stats, whatever number of heads a launch spoke of.
template <typename T, typename Fn>
void ForEachHead(const std::byte* report, const ReportPlace::Stats& stats, Fn&& fn) {
  for (int64_t n = stats.split_heads ? 1 : stats.heads; n <= stats.heads; ++n) {
    const int64_t first = StatsOf(stats.rows, n, stats.split_heads) + stats.row * n;
    for (const T& one : Part<T>(report, stats.at + first * static_cast<int64_t>(sizeof(T)), n)) {
      fn(one);
    }
  }
}

int64_t StatsCount(int64_t rows, int64_t heads, bool split_heads) {
  return split_heads ? StatsOf(rows, heads + 1, true) : rows * heads;
}

bool HasWindow(const SparsePlan& plan, int32_t layer) {
  const std::vector<int32_t>& windows = plan.shape.layer_window_tokens;
  return !windows.empty() && windows[static_cast<size_t>(layer)] > 0;
}

// Whether a decode row's attention in this layer can lose anything.
bool LosesNothing(const SparsePlan& plan, const StepOrder& order, int32_t layer) {
  const LayerRole role = plan.layers[static_cast<size_t>(layer)].decode;
  const bool dense = role == LayerRole::kDense || role == LayerRole::kPlanner;
  if (HasWindow(plan, layer) || (dense && !order.HasShapes(plan))) return true;
  // What the streaming heads of such a model might have read is not stored.
  for (int32_t head = 0; head < plan.shape.kv_heads; ++head) {
    if (plan.head(layer, head).role == kvcache::HeadRole::kFull) return false;
  }
  return order.split_heads;
}

// Ranges for every query head and tile of each chunk.
void FillOffsets(std::span<const kernels::RangeChunk> chunks, int64_t q_heads, int64_t* offsets) {
  int64_t lists = 0;
  for (const kernels::RangeChunk& one : chunks) {
    *offsets++ = lists;
    lists += q_heads * CeilDiv(one.chunk.rows, KeyRanges::kQueryTileTokens);
  }
}

}  // namespace

SparseReport ReadReport(const ReportPlace& place, const std::byte* report) {
  SparseReport sum;
  sum.sequence = place.sequence;
  sum.dense = place.dense;
  ForEachHead<SelectStats>(report, place.stats, [&](const SelectStats& one) {
    sum.keys.pages_considered += one.pages_considered;
    sum.keys.pages_selected += one.pages_selected;
    sum.keys.keys_selected += one.keys_selected;
    sum.keys.layers += one.layers;
    sum.keys.estimated_mass += one.estimated_mass;
    sum.keys.choices += one.choices;
  });
  ForEachHead<RangeStats>(report, place.blocks, [&](const RangeStats& one) {
    sum.blocks.blocks_considered += one.blocks_considered;
    sum.blocks.blocks_selected += one.blocks_selected;
  });
  if (!place.audited) return sum;
  const auto audits =
      Part<AttentionAudit>(report, place.audits, place.audits < 0 ? 0 : kAuditGroups);
  for (size_t group = 0; group < kAuditGroups; ++group) {
    if (!audits.empty()) sum.audits[group] = audits[group];
    // Nothing was compared, for nothing can differ.
    if (place.lossless[group]) sum.audits[group] = {.captured_mass = 1, .layers = 1};
  }
  return sum;
}

template <typename T>
int64_t SparseImage::Take(int64_t count) {
  const int64_t offset = bytes_;
  bytes_ += RoundUp(count * static_cast<int64_t>(sizeof(T)), kAlign);
  return offset;
}

void SparseImage::SetBatch(const StepBatch& batch, const StepOrder& order, int64_t page_tokens) {
  bytes_ = 0;
  decode_.assign(order.decode.size(), {});
  prefill_.assign(order.prefill.size(), {});
  decode_places_.assign(order.decode.size(), {});
  prefill_places_.assign(order.prefill.size(), {});
  for (size_t c = 0; c < decode_.size(); ++c) {
    const StepOrder::Class& one = order.decode[c];
    decode_[c].plan = one.plan;
    decode_[c].first = one.first;
    decode_[c].rows = one.count;
    decode_[c].audited = one.audited;
    decode_[c].split_heads = order.split_heads;
    for (int64_t i = one.first; i < one.first + one.count; ++i) {
      const StepSequence& sequence = batch.sequences[order.sequences[static_cast<size_t>(i)]];
      const int64_t pages = CeilDiv(int64_t{sequence.first_position} + 1, page_tokens);
      decode_[c].lists.stride = std::max(decode_[c].lists.stride, pages);
    }
  }
  TakeReports(batch, order);
  for (size_t c = 0; c < decode_.size(); ++c) TakeRows(decode_[c], decode_places_[c]);
  for (size_t c = 0; c < prefill_.size(); ++c) {
    const StepOrder::Class& one = order.prefill[c];
    prefill_[c].plan = one.plan;
    prefill_[c].first = one.first;
    prefill_[c].sparse = one.sparse;
    prefill_[c].split_heads = order.split_heads;
    TakeChunks(batch, order, one, prefill_places_[c]);
  }
}

// Everything that is added up, and for each sequence with a plan where its share lies.
void SparseImage::TakeReports(const StepBatch& batch, const StepOrder& order) {
  places_.clear();
  for (size_t i = 0; i < batch.sequences.size(); ++i) {
    const StepSequence& sequence = batch.sequences[i];
    if (sequence.plan == nullptr) continue;
    const SparsePlan& plan = *sequence.plan;
    ReportPlace place;
    place.sequence = static_cast<int32_t>(i);
    place.decode = IsDecode(sequence);
    place.dense = place.decode && order.rows[i].counts.dense;
    place.audited = place.decode && sequence.audit;
    std::fill(std::begin(place.lossless), std::end(place.lossless), true);
    for (int32_t layer = 0; layer < plan.shape.layers; ++layer) {
      if (!LosesNothing(plan, order, layer))
        place.lossless[AuditGroup(layer, plan.shape.layers)] = false;
    }
    places_.push_back(place);
  }
  const auto place_of = [&](int64_t index) -> ReportPlace& {
    const auto sequence = static_cast<int32_t>(order.sequences[static_cast<size_t>(index)]);
    return *std::ranges::lower_bound(places_, sequence, {}, &ReportPlace::sequence);
  };
  std::vector<bool> in_class(batch.sequences.size());
  for (size_t c = 0; c < decode_.size(); ++c) {
    const DecodeClass& rows = decode_[c];
    const int64_t kv_heads = rows.plan->shape.kv_heads;
    decode_places_[c].stats = Take<SelectStats>(StatsCount(rows.rows, kv_heads, order.split_heads));
    decode_places_[c].audits = Take<AttentionAudit>(rows.audited * kAuditGroups);
    for (int64_t i = 0; i < rows.rows; ++i) {
      ReportPlace& place = place_of(rows.first + i);
      in_class[static_cast<size_t>(place.sequence)] = true;
      place.stats = {decode_places_[c].stats, rows.rows, i, kv_heads, order.split_heads};
      if (i >= rows.audited) continue;
      place.audits = decode_places_[c].audits +
                     i * kAuditGroups * static_cast<int64_t>(sizeof(AttentionAudit));
    }
  }
  for (size_t c = 0; c < prefill_.size(); ++c) {
    const StepOrder::Class& one = order.prefill[c];
    const int64_t q_heads = one.plan->shape.q_heads;
    prefill_places_[c].stats = Take<RangeStats>(StatsCount(one.count, q_heads, order.split_heads));
    for (int64_t i = 0; i < one.count; ++i) {
      place_of(order.decode_rows + one.first + i).blocks = {prefill_places_[c].stats, one.count, i,
                                                            q_heads, order.split_heads};
    }
  }
  for (ReportPlace& place : places_) {  // dense in this step
    if (place.audited && !in_class[static_cast<size_t>(place.sequence)]) {
      std::fill(std::begin(place.lossless), std::end(place.lossless), true);
    }
  }
  report_bytes_ = bytes_;
}

void SparseImage::TakeRows(const DecodeClass& rows, DecodePlace& place) {
  const SparsePlan& plan = *rows.plan;
  const int64_t heads = rows.rows * plan.shape.kv_heads;
  place.select = Take<SelectRow>(rows.rows);
  if (!plan.static_heads || rows.split_heads) return;
  place.kept = Take<SelectRow>(rows.rows);
  place.shapes = Take<StaticShape>(plan.shape.layers * heads);
  place.choosing = Take<StaticShape>(plan.slots * heads);
}

void SparseImage::TakeChunks(const StepBatch& batch, const StepOrder& order,
                             const StepOrder::Class& one, PrefillPlace& place) {
  const SparsePlan& plan = *one.plan;
  if (order.HasShapes(plan)) {
    place.shapes = Take<StaticShape>(plan.shape.layers * one.count * plan.shape.kv_heads);
  }
  const bool corrects = one.sparse && plan.prefill.correct != kernels::PrefillCorrectKind::kNone;
  for (const size_t i :
       order.Chunks().subspan(static_cast<size_t>(one.first), static_cast<size_t>(one.count))) {
    const StepSequence& sequence = batch.sequences[i];
    place.all.push_back({.chunk = {.rows = static_cast<int32_t>(sequence.tokens.size()),
                                   .first_position = sequence.first_position},
                         .prompt_tokens = sequence.prompt_tokens,
                         .dials = sequence.plan->prefill_dials});
    place.correct_firsts.push_back(place.correct_rows);
    if (corrects) place.correct_rows += RowsToCorrect(place.all.back()).count;
  }
  if (!one.sparse) return;
  place.offsets = Take<int64_t>(one.count);
  place.last_offsets = Take<int64_t>(one.count);
  place.positions = Take<int32_t>(place.correct_rows);
  place.begins = Take<int64_t>(place.correct_rows);
  place.ends = Take<int64_t>(place.correct_rows);
}

void SparseImage::Fill(const StepBatch& batch, const StepOrder& order, const StepChunks& chunks,
                       const kvcache::SelectionArrays& prefill, std::byte* base) {
  std::memset(base, 0, static_cast<size_t>(report_bytes_));
  for (size_t c = 0; c < decode_.size(); ++c) {
    FillRows(batch, order, decode_[c], decode_places_[c], base);
  }
  for (size_t c = 0; c < prefill_.size(); ++c) {
    FillChunks(batch, order, chunks, prefill, prefill_[c], prefill_places_[c], base);
  }
}

void SparseImage::FillRows(const StepBatch& batch, const StepOrder& order, const DecodeClass& rows,
                           const DecodePlace& place, std::byte* base) const {
  const SparsePlan& plan = *rows.plan;
  const bool kept = SparseMemory::KeepsChoices(plan);
  for (int64_t i = 0; i < rows.rows; ++i) {
    const size_t index = order.sequences[static_cast<size_t>(rows.first + i)];
    const StepSequence& sequence = batch.sequences[index];
    SelectRow row = order.rows[index];
    row.choice = kept ? sequence.choice : static_cast<int32_t>(rows.first + i);
    At<SelectRow>(base, place.select)[i] = row;
    if (!order.HasShapes(plan)) continue;
    row.choose = false;
    At<SelectRow>(base, place.kept)[i] = row;
    const int64_t tokens = int64_t{sequence.first_position} + 1;
    const int64_t heads = plan.shape.kv_heads;
    StaticShape* shapes = At<StaticShape>(base, place.shapes);
    StaticShape* choosing = At<StaticShape>(base, place.choosing);
    for (int32_t layer = 0; layer < plan.shape.layers; ++layer) {
      const LayerPlan& role = plan.layers[static_cast<size_t>(layer)];
      for (int32_t head = 0; head < plan.shape.kv_heads; ++head) {
        const StaticShape shape = kvcache::DecodeShape(plan, layer, head, tokens);
        shapes[(layer * rows.rows + i) * heads + head] = shape;
        if (role.slot < 0) continue;
        StaticShape& common = choosing[(role.slot * rows.rows + i) * heads + head];
        if (role.source == layer || shape.window_tokens == 0) common = shape;
      }
    }
  }
}

void SparseImage::FillChunks(const StepBatch& batch, const StepOrder& order,
                             const StepChunks& chunks, const kvcache::SelectionArrays& prefill,
                             const PrefillClass& one, PrefillPlace& place, std::byte* base) const {
  const SparsePlan& plan = *one.plan;
  const auto count = static_cast<int64_t>(place.all.size());
  place.last = place.all;
  for (int64_t i = 0; i < count; ++i) {
    const auto chunk = static_cast<size_t>(one.first + i);
    const auto at = static_cast<size_t>(i);
    place.all[at].chunk = chunks.all[chunk];
    place.last[at].chunk = chunks.last[chunk];
    if (order.HasShapes(plan)) {
      const StepSequence& sequence = batch.sequences[order.Chunks()[chunk]];
      StaticShape* shapes = At<StaticShape>(base, place.shapes);
      for (int32_t layer = 0; layer < plan.shape.layers; ++layer) {
        for (int32_t head = 0; head < plan.shape.kv_heads; ++head) {
          shapes[(layer * count + i) * plan.shape.kv_heads + head] =
              kvcache::PrefillShape(plan, layer, head, sequence.prompt_tokens);
        }
      }
    }
    if (place.correct_rows == 0) continue;
    const CorrectRows rows = RowsToCorrect(place.all[at]);
    for (int64_t row = 0; row < rows.count; ++row) {
      const int64_t to = place.correct_firsts[at] + row;
      At<int32_t>(base, place.positions)[to] =
          static_cast<int32_t>(place.all[at].chunk.first_position + rows.first +
                               row * place.all[at].dials.correct_stride_rows);
      At<int64_t>(base, place.begins)[to] = prefill.offsets[chunk];
      At<int64_t>(base, place.ends)[to] = prefill.offsets[chunk + 1];
    }
  }
  if (!one.sparse) return;
  FillOffsets(place.all, plan.shape.q_heads, At<int64_t>(base, place.offsets));
  FillOffsets(place.last, plan.shape.q_heads, At<int64_t>(base, place.last_offsets));
}

void SparseImage::Locate(std::byte* base, const kvcache::SelectionArrays& prefill) {
  for (size_t c = 0; c < decode_.size(); ++c) {
    DecodeClass& rows = decode_[c];
    const DecodePlace& place = decode_places_[c];
    rows.select = At<SelectRow>(base, place.select);
    rows.stats = At<SelectStats>(base, place.stats);
    rows.audits = At<AttentionAudit>(base, place.audits);
    if (!rows.plan->static_heads || rows.split_heads) continue;
    rows.kept = At<SelectRow>(base, place.kept);
    rows.shapes = At<StaticShape>(base, place.shapes);
    rows.choosing = At<StaticShape>(base, place.choosing);
  }
  for (size_t c = 0; c < prefill_.size(); ++c) {
    PrefillClass& chunks = prefill_[c];
    const PrefillPlace& place = prefill_places_[c];
    chunks.all = place.all;
    chunks.last = place.last;
    chunks.stats = At<RangeStats>(base, place.stats);
    if (chunks.plan->static_heads && !chunks.split_heads)
      chunks.shapes = At<StaticShape>(base, place.shapes);
    if (!chunks.sparse) continue;
    chunks.ranges.chunk_offsets = At<int64_t>(base, place.offsets);
    chunks.last_ranges.chunk_offsets = At<int64_t>(base, place.last_offsets);
    chunks.correct_firsts = place.correct_firsts;
    chunks.correct_positions = At<int32_t>(base, place.positions);
    chunks.correct_lists = {.pages = prefill.pages,
                            .logical = prefill.logical,
                            .begins = At<int64_t>(base, place.begins),
                            .ends = At<int64_t>(base, place.ends),
                            .lists = place.correct_rows};
  }
}

}  // namespace lacuna::engine
