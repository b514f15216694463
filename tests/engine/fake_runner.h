// A StepRunner whose KV is real and whose model is a hash: it writes each token into the page and
// offset that the step names, and the next token is a hash of everything that the query may see,
// read back through the pages. A wrong, stale or missing page therefore shows up as a wrong token.
//
// What a plan would change is in the hash too: each token's cell says how its K and V were computed
// (in which part of a grain, under which choice), and choices lie in places that steps name. Wrong
// cuts, phases, places and shared pages show up as wrong tokens as well.
//
// Steps run when they are waited for, on a copy of what Launch was given: as late as any device may
// run them, and with nothing of the host's that changed in the meantime.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "engine/execute/step_batch.h"
#include "kernels/cpu/sample.h"
#include "kvcache/pages/kv_group.h"

namespace lacuna::engine {

class FakeRunner final : public StepRunner {
 public:
  struct Shape {
    std::vector<kvcache::KvGroup> groups;
    std::vector<int64_t> group_pages;
    int64_t page_tokens = 4;
    int64_t vocab_size = 32;
    int64_t logit_rows_max = 0;
    bool asynchronous = false;  // lets the loop launch a step ahead
    std::vector<std::shared_ptr<const kvcache::SparsePlan>> plans{};  // that requests may use
    // The rows of a grain depend on all of its tokens. Small ones for small pages.
    static int64_t GrainTokens(const kvcache::SparsePlan& plan) {
      return plan.prefill.block_tokens;
    }
  };
  explicit FakeRunner(Shape shape);

  bool asynchronous() const override { return shape_.asynchronous; }
  Result<StepKind> Launch(const StepBatch& batch) override;
  Result<std::span<const kernels::SampleResult>> Wait() override;
  std::span<const SparseReport> reports() const override { return reports_; }

  // The mass that an audited step at `position` captures.
  static double CapturedMass(int64_t position, float budget_scale);

  // What the model says after `tokens`, without any engine.
  static TokenId Next(const Shape& shape, std::span<const TokenId> tokens);

  // Faults and observations.
  Status fail_launch;      // returned by the next Launch when it is not ok
  Status fail_next;        // returned by the next Wait when it is not ok
  TokenId nan_after = -1;  // the row of a sequence that ends in this token is NaN
  int32_t rereads = 0;     // of each result
  int64_t runs = 0, tokens_run = 0, batch_max = 0, mixed_steps = 0, rows_max = 0;
  int64_t launched_ahead = 0,
          pending_tokens_run = 0;  // with a step under way; tokens from its rows
  int64_t sparse_rows = 0, kept_rows = 0, audited_rows = 0, sparse_chunks = 0;
  std::vector<std::string> faults;  // pages missing or out of order

 private:
  struct Cell {
    TokenId token = -1;
    int32_t position = -1;
    uint64_t stamp = 0;  // of how it was computed; 0: densely
  };
  struct Choice {
    uint64_t hash = 0;
    int64_t made_at = -1;  // position
  };
  // A StepSequence that owns what it points to.
  struct Work {
    std::vector<TokenId> tokens;
    int32_t sampled_row = -1;
    int32_t first_position = 0;
    int32_t logits_from = -1;
    bool decode = false;
    std::shared_ptr<const kvcache::SparsePlan> plan{};
    int32_t prompt_tokens = 0, choice = 0, steps_since_choice = -1;
    float budget_scale = 1;
    bool audit = false;
    uint64_t stamp = 0;                                // of a decode row
    std::vector<std::vector<int32_t>> pages, logical;  // per group
  };
  struct Step {
    std::vector<Work> work;
    std::vector<kernels::SampleRow> rows;
    std::vector<kernels::LogitEdit> edits;
  };
  Cell* At(size_t group, int32_t page, int64_t offset) {
    return &cells_[group][static_cast<size_t>(page * shape_.page_tokens + offset)];
  }
  void Write(const Work& work);
  uint64_t ChunkStamp(const Work& work, int64_t position) const;
  // Of a decode row, whose choice it makes or reads.
  uint64_t RowStamp(const Work& work);
  void Report(size_t index, const Work& work);
  // Of the keys before `end` that the query at `position` sees.
  uint64_t Read(const Work& work, int64_t position, int64_t end);
  void Sample(const Step& step);

  Shape shape_;
  std::vector<std::vector<Cell>> cells_;  // per group [pages * page_tokens]
  std::deque<Step> steps_;                // launched
  std::vector<Choice> choices_;
  std::vector<SparseReport> reports_;
  std::vector<float> logits_;
  kernels::cpu::SampleScratch scratch_;
  std::vector<kernels::SampleResult> results_;  // of the step that ran last
};

}  // namespace lacuna::engine
