// StepBatch and StepRunner: the seam between the engine loop and the device. SEAM.
//
// The engine loop fills a StepBatch from committed state; a StepRunner (the Executor, or a fake in
// the simulator) runs it and samples the rows that were asked for. Engine thread only.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/event.h"
#include "kernels/core/ids.h"
#include "kernels/core/status.h"
#include "kernels/ops/correct.h"
#include "kernels/ops/sample.h"
#include "kernels/ops/select_keys.h"
#include "kernels/ops/select_ranges.h"
#include "kvcache/pages/page_span.h"
#include "kvcache/sparse/plan.h"

namespace lacuna::engine {

struct StepSequence final {
  std::span<const TokenId> tokens;  // ids to run, at positions first_position, + 1, ...
  // >= 0: the one token is what this row of the step launched before chose, which the host may not
  // know yet; `tokens` then has one element, which is not read.
  int32_t sampled_row = -1;
  int32_t first_position = 0;
  bool decode = false;                       // one generated token (else a chunk of the prompt)
  std::span<const kvcache::PageSpan> pages;  // one per KvGroup, new tokens' pages included
  int32_t logits_from = -1;  // rows are sampled for tokens [logits_from, size); -1: for none

  // Sparse attention; null: dense. The plan outlives the step.
  const kvcache::SparsePlan* plan = nullptr;
  int32_t prompt_tokens = 0;
  // Of a decode row: place of what the sequence keeps between steps, < running_max, its own as long
  // as it runs; decode steps since its last choice, -1 when it has none.
  int32_t choice = 0;
  int32_t steps_since_choice = -1;
  float budget_scale = 1.0f;       // of the plan's budget, see SparseOptions::mass_floor
  kernels::SelectRow select = {};  // what kvcache::MakeSelectRow makes of these
  bool audit = false;
};

// What the attention of one sequence with a plan read in one step, over all layers.
struct SparseReport final {
  int32_t sequence = 0;        // index in the batch
  kernels::SelectStats keys;   // over kv heads; of a decode row
  bool dense = false;          // the decode row was too short to select
  kernels::RangeStats blocks;  // of a chunk
  kernels::AttentionAudit audits[SparseUsage::kLayerGroups];
};

struct StepBatch final {
  std::vector<StepSequence> sequences;
  // One for each sampled token, in the order of the sequences, and the edits they point into.
  std::vector<kernels::SampleRow> rows;
  std::vector<kernels::LogitEdit> edits;
};

// Launched as one recorded graph, or op by op. kEagerDecode: a device that records had nothing but
// decode rows, and did not: an audit, too many paths, or the first step of its kind.
enum class StepKind { kEager, kEagerDecode, kGraph };

class StepRunner {
 public:
  virtual ~StepRunner() = default;
  // Whether Launch returns before the step is done. Then a second step may be launched before the
  // first was waited for; else the loop gains nothing by that.
  virtual bool asynchronous() const = 0;
  // Starts a step after those launched before; what `batch` points to is read before it returns.
  // At most two steps may be launched and not waited for. An error, here or of Wait, is the
  // device's: every running sequence fails.
  virtual Result<StepKind> Launch(const StepBatch& batch) = 0;
  // Waits for the oldest step not yet waited for. One result per row of its batch; valid until the
  // next Launch.
  virtual Result<std::span<const kernels::SampleResult>> Wait() = 0;
  // Of the step that Wait gave last: one for each of its sequences with a plan, in their order.
  virtual std::span<const SparseReport> reports() const { return {}; }
};

}  // namespace lacuna::engine
