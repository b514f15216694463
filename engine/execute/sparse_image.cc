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

// The row's stats, whatever number of heads a launch spoke of; none for a place without rows.
template <typename T, typename Fn>
void ForEachHead(const std::byte* report, const HeadLaunches& launches,
                 const ReportPlace::Stats& stats, Fn&& fn) {
  if (stats.rows == 0) return;
  for (const int64_t heads : launches.counts()) {
    const int64_t first = launches.StatsOf(stats.rows, heads) + stats.row * heads;
    const int64_t at = stats.at + first * stats.each * static_cast<int64_t>(sizeof(T));
    for (const T& one : Part<T>(report, at, heads * stats.each)) fn(one);
  }
}

bool HasWindow(const SparsePlan& plan, int32_t layer) {
  const std::vector<int32_t>& windows = plan.shape.layer_window_tokens;
  return !windows.empty() && windows[static_cast<size_t>(layer)] > 0;
}

// Whether a decode row's attention in this layer can lose anything.
bool LosesNothing(const SparsePlan& plan, const HeadLaunches& launches, int32_t layer) {
  const LayerRole role = plan.layers[static_cast<size_t>(layer)].decode;
  const bool dense = role == LayerRole::kDense || role == LayerRole::kPlanner;
  if (HasWindow(plan, layer) || (dense && !launches.TakesShapes(plan))) return true;
  // What the streaming heads of such a model might have read is not stored.
  for (int32_t head = 0; head < plan.shape.kv_heads; ++head) {
    if (plan.head(layer, head).role == kvcache::HeadRole::kFull) return false;
  }
  return !launches.all_stored();
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

SparseReport ReadReport(const ReportPlace& place, const HeadLaunches& launches,
                        const std::byte* report) {
  SparseReport sum;
  sum.sequence = place.sequence;
  sum.dense = place.dense;
  ForEachHead<SelectStats>(report, launches, place.stats, [&](const SelectStats& one) {
    sum.keys.pages_considered += one.pages_considered;
    sum.keys.pages_selected += one.pages_selected;
    sum.keys.keys_selected += one.keys_selected;
    sum.keys.layers += one.layers;
    sum.keys.estimated_mass += one.estimated_mass;
    sum.keys.choices += one.choices;
  });
  ForEachHead<RangeStats>(report, launches, place.blocks, [&](const RangeStats& one) {
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

int64_t SparseImage::BytesMax(std::span<const std::shared_ptr<const SparsePlan>> plans,
                              const HeadLaunches& launches, int64_t sequences_max) {
  const int64_t rows = PaddedRowsMax(sequences_max);
  int64_t bytes = 0;
  for (const auto& plan : plans) {
    const int64_t heads = launches.TakesShapes(*plan) ? plan->shape.kv_heads : 0;
    const int64_t shapes = heads * (2 * plan->shape.layers + plan->slots);
    // Arrays of one sequence, each as a class of its own.
    const int64_t sequence =
        launches.StatsCount(1) * (static_cast<int64_t>(sizeof(SelectStats)) +
                                  plan->shape.group() * static_cast<int64_t>(sizeof(RangeStats))) +
        shapes * static_cast<int64_t>(sizeof(StaticShape)) +
        kAuditGroups * static_cast<int64_t>(sizeof(AttentionAudit)) +
        2 * static_cast<int64_t>(sizeof(SelectRow) + sizeof(int64_t)) + 16 * kAlign;
    bytes = std::max(bytes, rows * sequence);
  }
  return bytes;
}

void SparseImage::SetBatch(const StepBatch& batch, const StepOrder& order) {
  bytes_ = 0;
  decode_.assign(order.decode.size(), {});
  prefill_.assign(order.prefill.size(), {});
  decode_places_.assign(order.decode.size(), {});
  prefill_places_.assign(order.prefill.size(), {});
  for (size_t c = 0; c < decode_.size(); ++c) {
    const StepOrder::Class& one = order.decode[c];
    decode_[c].plan = one.plan;
    decode_[c].launches = &launches_;
    decode_[c].first = one.row;
    decode_[c].rows = one.rows;
    decode_[c].audited = one.audited;
  }
  TakeReports(batch, order);
  for (size_t c = 0; c < decode_.size(); ++c) TakeRows(decode_[c], decode_places_[c]);
  for (size_t c = 0; c < prefill_.size(); ++c) {
    const StepOrder::Class& one = order.prefill[c];
    prefill_[c].plan = one.plan;
    prefill_[c].launches = &launches_;
    prefill_[c].first = one.first;
    prefill_[c].sparse = one.sparse;
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
    place.dense = place.decode && sequence.select.counts.dense;
    place.audited = place.decode && sequence.audit;
    std::fill(std::begin(place.lossless), std::end(place.lossless), true);
    for (int32_t layer = 0; layer < plan.shape.layers; ++layer) {
      if (!LosesNothing(plan, launches_, layer))
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
    const StepOrder::Class& one = order.decode[c];
    DecodePlace& at = decode_places_[c];
    at.stats = Take<SelectStats>(launches_.StatsCount(one.rows));
    at.audits = Take<AttentionAudit>(one.audited * kAuditGroups);
    for (int64_t i = 0; i < one.count; ++i) {
      ReportPlace& place = place_of(one.first + i);
      in_class[static_cast<size_t>(place.sequence)] = true;
      place.stats = {.at = at.stats, .rows = one.rows, .row = i, .each = 1};
      if (i >= one.audited) continue;
      place.audits = at.audits + i * kAuditGroups * static_cast<int64_t>(sizeof(AttentionAudit));
    }
  }
  for (size_t c = 0; c < prefill_.size(); ++c) {
    const StepOrder::Class& one = order.prefill[c];
    const int64_t group = one.plan->shape.group();
    prefill_places_[c].stats = Take<RangeStats>(launches_.StatsCount(one.count) * group);
    for (int64_t i = 0; i < one.count; ++i) {
      place_of(order.decode_sequences + one.first + i).blocks = {
          .at = prefill_places_[c].stats, .rows = one.count, .row = i, .each = group};
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
  if (!launches_.TakesShapes(plan)) return;
  place.kept = Take<SelectRow>(rows.rows);
  place.shapes = Take<StaticShape>(plan.shape.layers * heads);
  place.choosing = Take<StaticShape>(plan.slots * heads);
}

void SparseImage::TakeChunks(const StepBatch& batch, const StepOrder& order,
                             const StepOrder::Class& one, PrefillPlace& place) {
  const SparsePlan& plan = *one.plan;
  if (launches_.TakesShapes(plan)) {
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
    FillRows(batch, order, order.decode[c], decode_places_[c], base);
  }
  for (size_t c = 0; c < prefill_.size(); ++c) {
    FillChunks(batch, order, chunks, prefill, prefill_[c], prefill_places_[c], base);
  }
}

void SparseImage::FillRows(const StepBatch& batch, const StepOrder& order,
                           const StepOrder::Class& one, const DecodePlace& place,
                           std::byte* base) const {
  const SparsePlan& plan = *one.plan;
  const bool kept = SparseMemory::KeepsChoices(plan), shaped = launches_.TakesShapes(plan);
  for (int64_t i = 0; i < one.rows; ++i) {
    SelectRow row;  // padding is dense and keeps no choice
    row.choose = false;
    int64_t tokens = 1;
    if (i < one.count) {
      const size_t index = order.sequences[static_cast<size_t>(one.first + i)];
      const StepSequence& sequence = batch.sequences[index];
      row = sequence.select;
      row.choice = kept ? sequence.choice : static_cast<int32_t>(one.row + i);
      tokens = int64_t{sequence.first_position} + 1;
    }
    At<SelectRow>(base, place.select)[i] = row;
    if (!shaped) continue;
    row.choose = false;
    At<SelectRow>(base, place.kept)[i] = row;
    FillShapes(plan, tokens, one.rows, i, place, base);
  }
}

// Of row `row` of a class with `rows`, whose sequence has so many tokens.
void SparseImage::FillShapes(const SparsePlan& plan, int64_t tokens, int64_t rows, int64_t row,
                             const DecodePlace& place, std::byte* base) const {
  const int64_t heads = plan.shape.kv_heads;
  StaticShape* shapes = At<StaticShape>(base, place.shapes);
  StaticShape* choosing = At<StaticShape>(base, place.choosing);
  for (int32_t layer = 0; layer < plan.shape.layers; ++layer) {
    const LayerPlan& role = plan.layers[static_cast<size_t>(layer)];
    for (int32_t head = 0; head < plan.shape.kv_heads; ++head) {
      const StaticShape shape = kvcache::DecodeShape(plan, layer, head, tokens);
      shapes[(layer * rows + row) * heads + head] = shape;
      if (role.slot < 0) continue;
      StaticShape& common = choosing[(role.slot * rows + row) * heads + head];
      if (role.source == layer || shape.window_tokens == 0) common = shape;
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
    if (launches_.TakesShapes(plan)) {
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
    if (!launches_.TakesShapes(*rows.plan)) continue;
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
    if (launches_.TakesShapes(*chunks.plan)) chunks.shapes = At<StaticShape>(base, place.shapes);
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
