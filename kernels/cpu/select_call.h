// SelectCall: one call of SelectKeys, its derived shape and its stages. Private to select_*.cc and
// their benchmark; one worker per task.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <span>

#include "kernels/cpu/metadata_layout.h"
#include "kernels/cpu/select_keys.h"
#include "kernels/cpu/select_score.h"

namespace lacuna::kernels::cpu {

inline constexpr int64_t kBlockTokens = 64;
inline constexpr int64_t kChunkTokens = 4096;
inline constexpr int32_t kNoChunk = -1;

// Bits [first, end) of a block's mask; both are tokens counted from the block's first.
inline uint64_t BlockMask(int64_t first, int64_t end) {
  first = std::clamp<int64_t>(first, 0, kBlockTokens);
  end = std::clamp<int64_t>(end, 0, kBlockTokens);
  if (first >= end) return 0;
  const uint64_t below_end = end == kBlockTokens ? ~uint64_t{0} : (uint64_t{1} << end) - 1;
  return below_end & ~uint64_t{0} << first;
}

inline ReduceJob::Kind ReduceJobKind(ReduceKind reduce) {
  if (reduce == ReduceKind::kMean) return ReduceJob::kMean;
  return reduce == ReduceKind::kSum ? ReduceJob::kSum : ReduceJob::kMax;
}

const SelectKernels& SelectKernelsOf(Isa isa);

class SelectCall final {
 public:
  using Row = SelectRowState;
  using Worker = SelectKeysScratch::Worker;

  SelectCall(const SelectKeysArgs& args, const SelectKernels& kernels, SelectKeysScratch& scratch);

  // Stage 0, of each row: checks it, says what it does, converts its queries. select_rows.cc
  Status PlanRow(int64_t row);
  int64_t rows() const { return args_.q.dim(0); }
  int64_t owners() const { return owners_; }
  bool normalises() const { return normalises_; }
  // Lays out the scratch of rows [begin, end) and lists their scoring tasks.
  void LayOut(int64_t begin, int64_t end);
  int64_t ScoreFloats(const Row& row) const;

  // Stages 1 and 2, of each task. ScoreChunk: whether that was the last one of its (row, owner).
  // select_units.cc
  bool ScoreChunk(const SelectKeysScratch::Task& task, Worker& worker);
  void FinishSoftmax(int64_t row);
  void ReduceChunk(const SelectKeysScratch::Task& task, Worker& worker);

  // Stage 3, of each (row, owner): its choice and its lists. select_choice.cc, select_lists.cc
  void Choose(int64_t row, int64_t owner, Worker& worker);
  bool overflowed() const { return overflowed_.load(std::memory_order_relaxed); }

 private:
  // Query rows of a kv head lie together; with QueryForm::kGroupMean it has one.
  struct OwnerHeads final {
    int64_t first, end;  // kv heads
  };
  OwnerHeads HeadsOf(int64_t owner) const {
    return args_.path.owner == OwnerKind::kLayer ? OwnerHeads{0, kv_heads_}
                                                 : OwnerHeads{owner, owner + 1};
  }
  bool HasWindow(int64_t row, int64_t kv_head) const {
    return args_.shapes != nullptr && args_.shapes[row * kv_heads_ + kv_head].window_tokens > 0;
  }
  const SelectRow& RowOf(int64_t row) const { return args_.rows[row]; }
  Row& StateOf(int64_t row) { return scratch_.rows[static_cast<size_t>(row)]; }
  float* UnitScores(const Row& row, int64_t unit_row) {
    return scratch_.units.data() + row.unit_at + unit_row * row.units;
  }
  int64_t UnitRows() const { return per_head_ ? query_rows_ : owners_; }
  bool ScoresHeads(int64_t row, int64_t owner) const;

  // PlanRow, LayOut.
  void AddTasks(int64_t row, int64_t first_choice);
  void ConvertQueries(int64_t row, const Row& state);
  bool RefreshQuery(int64_t row) const;
  void ScoreQueries(const float* plain, float* to) const;
  void PairQueries(int64_t row, const float* scored);

  // ScoreChunk.
  void ScoreHead(const SelectKeysScratch::Task& task, int64_t kv_head, Worker& worker);
  void FillPages(const Row& state, int64_t first_page, int64_t end_page, int64_t kv_head,
                 bool metadata, Worker& worker) const;
  void RunScores(const MetadataLayout& layout, bool keys, ScoreJob& job) const;
  void ReduceRows(int64_t first, int64_t count, int64_t entries, float* units,
                  Worker& worker) const;
  void PoolUnits(const float* entries, int64_t count, float* to) const;
  int64_t EntriesOf(const Row& state) const {
    return CeilDiv(state.tokens, int64_t{entry_tokens_});
  }

  // Choose.
  double ChooseUnits(int64_t row, int64_t owner, Worker& worker);
  uint64_t CutOf(int64_t row, std::span<const float> all, CutScratch& cut) const;
  void TakeUnits(int64_t row, std::span<const float> scores, uint64_t cut, Worker& worker) const;
  void TakeInTurn(int64_t row, int64_t owner, Worker& worker);
  void AddUnit(int64_t unit, std::vector<uint64_t>* blocks) const;
  double MassOf(int64_t row, std::span<const float> scores, Worker& worker) const;
  uint64_t ForcedIn(int64_t row, int64_t block) const;
  void AddForced(int64_t row, std::vector<uint64_t>* blocks) const;

  // Choose, of the second stage. select_refine.cc
  double Refine(int64_t row, int64_t owner, Worker& worker);
  void ScoreSurvivors(int64_t row, int64_t owner, Worker& worker);
  uint64_t SurvivorsIn(int64_t row, int64_t block, const Worker& worker) const;
  double RefineBy(int64_t row, Worker& worker);

  // The kept choice of (row, owner), from and to pages.
  void KeepChoice(int64_t row, int64_t owner, const Worker& worker) const;
  void ReadChoice(int64_t row, int64_t owner, Worker& worker) const;
  uint64_t* ChoiceOf(int64_t row, int64_t owner) const;
  // Choose, of the lists.
  void MakeLists(int64_t row, int64_t owner, Worker& worker);
  struct ListCounts final {
    int64_t pages = 0, keys = 0;
  };
  ListCounts MakeList(int64_t row, int64_t kv_head, const Worker& worker);
  uint64_t MaskOf(int64_t row, int64_t kv_head, int64_t page, const Worker& worker) const;
  void WriteDropped(int64_t row, int64_t kv_head, int64_t dropped) const;

  const SelectKeysArgs& args_;
  const SelectKernels& kernels_;
  SelectKeysScratch& scratch_;
  int64_t kv_heads_, group_, head_dim_, page_tokens_;
  int64_t heads_;       // query rows of a kv head
  int64_t query_rows_;  // of a row
  int64_t owners_;
  MetadataLayout layout_, refine_layout_;
  bool scores_keys_, normalises_, per_head_, chooses_, refines_;
  int32_t entry_tokens_;
  bool pairs_;        // scored queries are exact in bf16
  bool pools_pages_;  // a unit is a page of one kv head, its score the best of its keys and heads
  int64_t slab_bytes_ = 0;  // of the metadata
  // Floats of one row's queries: as they are, as they are scored, and the sums of both.
  int64_t plain_floats_, scored_floats_, query_floats_;
  std::atomic<bool> overflowed_{false};
};

}  // namespace lacuna::kernels::cpu
