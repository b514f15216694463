// A StepRunner whose KV is real and whose model is a hash: it writes each token into the page and
// offset that the step names, and the next token is a hash of everything that the query may see,
// read back through the pages. A wrong, stale or missing page therefore shows up as a wrong token.
//
// Steps run when they are waited for, on a copy of what Launch was given: as late as any device may
// run them, and with nothing of the host's that changed in the meantime.
#pragma once

#include <cstdint>
#include <deque>
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
  };
  explicit FakeRunner(Shape shape);

  bool asynchronous() const override { return shape_.asynchronous; }
  Result<StepKind> Launch(const StepBatch& batch) override;
  Result<std::span<const kernels::SampleResult>> Wait() override;

  // What the model says after `tokens`, without any engine.
  static TokenId Next(const Shape& shape, std::span<const TokenId> tokens);

  // Faults and observations.
  Status fail_launch;      // returned by the next Launch when it is not ok
  Status fail_next;        // returned by the next Wait when it is not ok
  TokenId nan_after = -1;  // the row of a sequence that ends in this token is NaN
  int64_t runs = 0, tokens_run = 0, batch_max = 0, mixed_steps = 0, rows_max = 0;
  int64_t launched_ahead = 0,
          pending_tokens_run = 0;   // with a step under way; tokens from its rows
  std::vector<std::string> faults;  // pages missing or out of order

 private:
  struct Cell {
    TokenId token = -1;
    int32_t position = -1;
  };
  // A StepSequence that owns what it points to.
  struct Work {
    std::vector<TokenId> tokens;
    int32_t sampled_row = -1;
    int32_t first_position = 0;
    int32_t logits_from = -1;
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
  uint64_t Read(const Work& work, int64_t position);
  void Sample(const Step& step);

  Shape shape_;
  std::vector<std::vector<Cell>> cells_;  // per group [pages * page_tokens]
  std::deque<Step> steps_;                // launched
  std::vector<float> logits_;
  kernels::cpu::SampleScratch scratch_;
  std::vector<kernels::SampleResult> results_;  // of the step that ran last
};

}  // namespace lacuna::engine
