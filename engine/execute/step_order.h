// StepOrder: where the sequences of a batch stand in a step, and the classes of those with plans.
//
// Decode rows come first: the dense ones, then class by class (equal path_fingerprint), the audited
// ones of a class first. Chunks follow likewise. Sequences that a plan leaves dense in this step
// (too short, or a budget that covers them) stand with the dense ones; within a class the order is
// that of the batch, so a step without plans keeps it. Pure functions; engine thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/execute/step_batch.h"

namespace lacuna::engine {

struct StepOrder final {
  // Decode rows or chunks [first, first + count) of one path.
  struct Class {
    const kvcache::SparsePlan* plan = nullptr;
    int64_t first = 0, count = 0;
    int64_t audited = 0;  // of decode rows
    bool sparse = false;  // of chunks: else only their shapes count
  };
  std::vector<size_t> sequences;  // of the batch: decode rows, then chunks
  int64_t decode_rows = 0;
  std::vector<Class> decode, prefill;
  // Streaming heads have pages of their own: in the others' launches no plan has shapes.
  bool split_heads = false;
  // By sequence of the batch, of decode rows in classes; `choice` is not filled.
  std::vector<kernels::SelectRow> rows;

  bool HasShapes(const kvcache::SparsePlan& plan) const {
    return plan.static_heads && !split_heads;
  }
  std::span<const size_t> DecodeRows() const {
    return std::span(sequences).first(static_cast<size_t>(decode_rows));
  }
  std::span<const size_t> Chunks() const {
    return std::span(sequences).subspan(static_cast<size_t>(decode_rows));
  }
};

void OrderStep(const StepBatch& batch, bool split_heads, StepOrder& order);

// A generated token alone, which the decode kernels take.
bool IsDecode(const StepSequence& sequence);

// Counts of a decode row, its budget scaled, and whether it chooses anew.
kernels::SelectRow MakeSelectRow(const StepSequence& sequence);

}  // namespace lacuna::engine
