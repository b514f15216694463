// SelectKeys on the CPU. One caller at a time; the work spreads over the pool.
//
// Inside, a choice is one mask of 64 bits per block of 64 tokens, whatever the page size. A call
// runs in one loop over the pool: scores of chunks of kChunkTokens; whoever scores the last chunk
// of a (row, owner) makes its choice and lists. Sums over query heads that need the softmax of all
// chunks are a second loop, and choices then a third. Chunks do not depend on the threads or on the
// other rows, so neither does any bit of the result.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/core/status.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/select_cut.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/ops/select_keys.h"

namespace lacuna::kernels::cpu {

// What a row of the call does, and where its numbers lie in the scratch.
struct SelectRowState final {
  enum class Act : uint8_t { kDense, kForced, kKeep, kChoose };
  Act act = Act::kDense;
  int64_t tokens = 0;
  int64_t first_entry = 0, pages = 0;  // in PageLists; pages that hold visible tokens
  int64_t chunks = 0;
  int64_t units = 0;
  int64_t query_at = 0;  // in queries
  int64_t score_at = 0;  // [query rows, score_stride] in scores
  int64_t score_stride = 0;
  int64_t stat_at = 0;   // [query rows, chunks, 2] in stats
  int64_t shift_at = 0;  // [query rows] in shifts
  int64_t unit_at = 0;   // [unit rows, units] in units
};

// Keeps its memory from call to call.
struct SelectKeysScratch final {
  struct Worker final {
    std::vector<const std::byte*> slabs;
    std::vector<const float*> rows;  // of scores, with what is taken from each
    std::vector<float> row_shifts, row_offsets;
    std::vector<float> entries, scores, weights;
    std::vector<uint64_t> choice, refined, seen;  // seen: what is chosen and what is forced
    std::vector<int32_t> blocks, candidates;
    std::vector<std::vector<uint64_t>> rankings;
    CutScratch cut;
    double mass = 0;  // of the choice in hand
  };
  // choice: of (row, owner) among those in flight. chunk -1: nothing to score.
  struct Task final {
    int32_t row, owner, choice, chunk;
  };

  explicit SelectKeysScratch(int threads) : workers(static_cast<size_t>(threads)) {}

  std::vector<SelectRowState> rows;
  std::vector<float> queries, scores, stats, shifts, offsets, units;
  std::vector<uint32_t> pairs;  // of scored queries, ScoreJob
  std::vector<Task> tasks;
  std::vector<int32_t> chunks_left;  // [choices in flight], counted down by whoever scores one
  std::vector<Worker> workers;
};

// head_dim: a multiple of 16. kInvalidArgument when rows, lists and counts contradict each other,
// or a list does not fit its stride.
Status SelectKeysCpu(const SelectKeysArgs& args, Isa isa, ThreadPool& pool,
                     SelectKeysScratch& scratch);

}  // namespace lacuna::kernels::cpu
