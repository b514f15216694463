// A StepRunner whose KV is real and whose model is a hash: it writes each token into the page and
// offset that the step names, and the next token is a hash of everything that the query may see,
// read back through the pages. A wrong, stale or missing page therefore shows up as a wrong token.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/execute/step_batch.h"
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
  };
  explicit FakeRunner(Shape shape);

  Result<TensorView> Run(const StepBatch& batch) override;

  // What the model says after `tokens`, without any engine.
  static TokenId Next(const Shape& shape, std::span<const TokenId> tokens);

  // Faults and observations.
  Status fail_next;        // returned by the next Run when it is not ok
  TokenId nan_after = -1;  // the row of a sequence that ends in this token is NaN
  int64_t runs = 0, tokens_run = 0, batch_max = 0, mixed_steps = 0, rows_max = 0;
  std::vector<std::string> faults;  // pages missing or out of order

 private:
  struct Cell {
    TokenId token = -1;
    int32_t position = -1;
  };
  Cell* At(size_t group, int32_t page, int64_t offset) {
    return &cells_[group][static_cast<size_t>(page * shape_.page_tokens + offset)];
  }
  void Write(const StepSequence& sequence);
  uint64_t Read(const StepSequence& sequence, int64_t position);

  Shape shape_;
  std::vector<std::vector<Cell>> cells_;  // per group [pages * page_tokens]
  std::vector<float> logits_;
};

}  // namespace lacuna::engine
