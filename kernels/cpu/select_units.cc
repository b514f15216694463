// Scores of entries, their softmax, their sums over query heads and units.
#include <atomic>
#include <cmath>

#include "kernels/cpu/select_call.h"

namespace lacuna::kernels::cpu {

void SelectCall::FillPages(const Row& state, int64_t first_page, int64_t end_page, int64_t kv_head,
                           bool metadata, Worker& worker) const {
  const auto* slabs =
      static_cast<const std::byte*>(metadata ? args_.metadata.data : args_.pool.data);
  const int64_t bytes = metadata ? slab_bytes_ : args_.pool.SlabBytes();
  worker.slabs.resize(static_cast<size_t>(end_page - first_page));
  const int32_t* ids = args_.pages.pages + state.first_entry;
  for (int64_t page = first_page; page < end_page; ++page) {
    worker.slabs[static_cast<size_t>(page - first_page)] =
        slabs + (ids[page] * kv_heads_ + kv_head) * bytes;
  }
}

// `layout` is of the metadata; keys have none.
void SelectCall::RunScores(const MetadataLayout& layout, bool keys, ScoreJob& job) const {
  if (!keys) {
    job.entries = layout.entries;
    job.vectors = layout.vectors;
    job.width = layout.width;
    job.bits = layout.bits;
    job.row_bytes = layout.row_bytes;
    job.vector_bytes = layout.vector_bytes;
    job.scales_at = layout.scales_at;
    job.zeros_at = layout.zeros_at;
    job.read_bytes = layout.bytes();
    return layout.lanes ? kernels_.score_lanes(job) : kernels_.score_vectors(job);
  }
  const bool f32 = args_.pool.dtype == DType::kF32;
  job.entries = static_cast<int32_t>(page_tokens_);
  job.vectors = 1;
  job.width = static_cast<int32_t>(head_dim_);
  job.bits = f32 ? 32 : 16;
  job.row_bytes = 4 * page_tokens_;  // of a channel in f32, of two in bf16
  f32 ? kernels_.score_lanes(job) : kernels_.score_pairs(job);
}

void SelectCall::ScoreHead(const SelectKeysScratch::Task& task, int64_t kv_head, Worker& worker) {
  const Row& state = StateOf(task.row);
  const int64_t pages = kChunkTokens / page_tokens_;
  const int64_t first_page = task.chunk * pages;
  const int64_t first = task.chunk * (kChunkTokens / entry_tokens_);
  const float* plain = scratch_.queries.data() + state.query_at;
  const float* scored = plain + plain_floats_;
  const float* sums = scored + scored_floats_ + query_rows_;
  FillPages(state, first_page, std::min(first_page + pages, state.pages), kv_head, !scores_keys_,
            worker);
  const int64_t width = heads_ * layout_.vectors * layout_.width;
  ScoreJob job{};
  job.slabs = worker.slabs.data();
  job.pages = static_cast<int64_t>(worker.slabs.size());
  job.heads = static_cast<int32_t>(heads_);
  job.q = scores_keys_ ? plain + kv_head * heads_ * head_dim_ : scored + kv_head * width;
  if (pairs_) {
    job.q_pairs = scratch_.pairs.data() +
                  (task.row * query_rows_ * layout_.vectors * layout_.width + kv_head * width) / 2;
  }
  job.q_sums = sums + kv_head * layout_.vectors * heads_;
  job.scale = args_.scale;
  job.count = std::min(kChunkTokens / entry_tokens_, EntriesOf(state) - first);
  if (pools_pages_) {
    job.best = UnitScores(state, task.owner) + first_page;
  } else {
    job.stride = state.score_stride;
    job.scores = scratch_.scores.data() + state.score_at + kv_head * heads_ * job.stride + first;
  }
  RunScores(layout_, scores_keys_, job);
  for (int64_t h = 0; normalises_ && h < heads_; ++h) {
    float* stat = scratch_.stats.data() + state.stat_at +
                  2 * ((kv_head * heads_ + h) * state.chunks + task.chunk);
    kernels_.max_sum(job.scores + h * job.stride, job.count, stat, stat + 1);
  }
}

bool SelectCall::ScoreChunk(const SelectKeysScratch::Task& task, Worker& worker) {
  if (task.chunk == kNoChunk) return true;
  const OwnerHeads heads = HeadsOf(task.owner);
  for (int64_t kv = heads.first; kv < heads.end; ++kv) {
    if (!HasWindow(task.row, kv)) ScoreHead(task, kv, worker);
  }
  if (!normalises_ && !pools_pages_) ReduceChunk(task, worker);
  // The last one sees what the others wrote.
  std::atomic_ref<int32_t> left(scratch_.chunks_left[static_cast<size_t>(task.choice)]);
  return left.fetch_sub(1, std::memory_order_acq_rel) == 1;
}

void SelectCall::FinishSoftmax(int64_t row) {
  const Row& state = StateOf(row);
  if (state.act != Row::Act::kChoose) return;
  for (int64_t i = 0; i < query_rows_; ++i) {
    if (HasWindow(row, i / heads_)) continue;
    const float* stats = scratch_.stats.data() + state.stat_at + 2 * i * state.chunks;
    float max = stats[0];
    for (int64_t chunk = 1; chunk < state.chunks; ++chunk) max = std::max(max, stats[2 * chunk]);
    double sum = 0;
    for (int64_t chunk = 0; chunk < state.chunks; ++chunk) {
      sum += stats[2 * chunk + 1] * std::exp(double{stats[2 * chunk]} - max);
    }
    scratch_.shifts[static_cast<size_t>(state.shift_at + i)] =
        static_cast<float>(max + std::log(sum));
  }
}

void SelectCall::ReduceChunk(const SelectKeysScratch::Task& task, Worker& worker) {
  if (task.chunk == kNoChunk) return;
  Row& state = StateOf(task.row);
  const int64_t per_chunk = kChunkTokens / entry_tokens_;
  const int64_t first = task.chunk * per_chunk;
  const int64_t count = std::min(per_chunk, EntriesOf(state) - first);
  const int64_t first_unit = task.chunk * (kChunkTokens / args_.path.unit_tokens);
  worker.rows.clear();
  worker.row_shifts.clear();
  worker.row_offsets.clear();
  const OwnerHeads heads = HeadsOf(task.owner);
  for (int64_t i = heads.first * heads_; i < heads.end * heads_; ++i) {
    if (HasWindow(task.row, i / heads_)) continue;
    worker.rows.push_back(scratch_.scores.data() + state.score_at + i * state.score_stride + first);
    worker.row_shifts.push_back(scratch_.shifts[static_cast<size_t>(state.shift_at + i)]);
    worker.row_offsets.push_back(scratch_.offsets[static_cast<size_t>(i)]);
    if (!per_head_) continue;
    const int64_t last = static_cast<int64_t>(worker.rows.size()) - 1;
    ReduceRows(last, 1, count, UnitScores(state, i) + first_unit, worker);
  }
  if (per_head_) return;
  ReduceRows(0, static_cast<int64_t>(worker.rows.size()), count,
             UnitScores(state, task.owner) + first_unit, worker);
}

void SelectCall::ReduceRows(int64_t first, int64_t count, int64_t entries, float* units,
                            Worker& worker) const {
  const bool pools = args_.path.unit_tokens > entry_tokens_;
  if (pools) worker.entries.resize(static_cast<size_t>(kChunkTokens / entry_tokens_));
  ReduceJob job{};
  job.rows = worker.rows.data() + first;
  job.shifts = worker.row_shifts.data() + first;
  job.offsets = worker.row_offsets.data() + first;
  job.count = static_cast<int32_t>(count);
  job.kind = ReduceJobKind(args_.path.reduce);
  job.exponential = normalises_;
  job.entries = entries;
  job.out = pools ? worker.entries.data() : units;
  kernels_.reduce(job);
  if (pools) PoolUnits(worker.entries.data(), entries, units);
}

// PoolKind::kNone: pages that are smaller than an entry's tokens cut a unit's one entry in several;
// the best of them speaks for it.
void SelectCall::PoolUnits(const float* entries, int64_t count, float* to) const {
  const int64_t each = args_.path.unit_tokens / entry_tokens_;
  const bool adds = args_.path.pool == PoolKind::kSum || args_.path.pool == PoolKind::kMean;
  for (int64_t first = 0; first < count; first += each) {
    const int64_t end = std::min(first + each, count);
    float score = entries[first];
    for (int64_t e = first + 1; e < end; ++e) {
      score = adds ? score + entries[e] : std::max(score, entries[e]);
    }
    if (args_.path.pool == PoolKind::kMean) score /= static_cast<float>(end - first);
    *to++ = score;
  }
}

}  // namespace lacuna::kernels::cpu
