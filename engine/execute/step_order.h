// StepOrder: where the sequences of a batch stand in a step, and the classes of those with plans.
//
// Decode rows come first: the dense ones, then class by class (equal path_fingerprint), the audited
// ones of a class first. Chunks follow likewise. Sequences that a plan leaves dense in this step
// (too short, or a budget that covers them) stand with the dense ones; within a class the order is
// that of the batch, so a step without plans keeps it. Decode rows that are to be recorded are
// padded class by class. Pure functions; engine thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/execute/step_batch.h"
#include "engine/model/head_order.h"

namespace lacuna::engine {

struct StepOrder final {
  // Decode rows or chunks of one path: sequences [first, first + count) of DecodeRows or Chunks.
  struct Class {
    const kvcache::SparsePlan* plan = nullptr;
    int64_t first = 0, count = 0;
    int64_t row = 0, rows = 0;  // of decode rows: those of the step, padding included
    int64_t audited = 0;        // of decode rows
    bool sparse = false;        // of chunks: else only their shapes count
  };
  std::vector<size_t> sequences;  // of the batch: decode rows, then chunks
  int64_t decode_sequences = 0;
  int64_t dense_rows = 0;   // rows before the first class, padding included
  int64_t decode_rows = 0;  // all of them
  std::vector<Class> decode, prefill;

  std::span<const size_t> DecodeRows() const {
    return std::span(sequences).first(static_cast<size_t>(decode_sequences));
  }
  std::span<const size_t> Chunks() const {
    return std::span(sequences).subspan(static_cast<size_t>(decode_sequences));
  }
};

// Without padding. A class of chunks ends where its query tiles would be more than `tiles_max`,
// which holds any one chunk.
void OrderStep(const StepBatch& batch, const HeadLaunches& launches, int64_t tiles_max,
               StepOrder& order);

// Rows that stand for `count` in a recorded step with classes: few sizes, none more than half as
// large again; at most rows_max.
int64_t PaddedRows(int64_t count, int64_t rows_max);
// Of all parts of a step together, which hold rows_max sequences.
inline int64_t PaddedRowsMax(int64_t rows_max) { return rows_max + rows_max / 2; }
// Pads the dense rows and those of each class; without classes to a power of two, or rows_max.
void PadOrder(int64_t rows_max, StepOrder& order);

// A generated token alone, which the decode kernels take.
bool IsDecode(const StepSequence& sequence);

}  // namespace lacuna::engine
