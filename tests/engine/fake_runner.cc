#include "tests/engine/fake_runner.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

namespace lacuna::engine {
namespace {

uint64_t Mix(uint64_t hash, uint64_t value) {
  hash = (hash ^ value) * 0x9e3779b97f4a7c15;
  return hash ^ (hash >> 29);
}

bool Sees(const kvcache::KvGroup& group, int64_t query, int64_t key) {
  return group.full() || key < group.sink_tokens || key > query - group.window_tokens;
}

}  // namespace

FakeRunner::FakeRunner(Shape shape) : shape_(std::move(shape)) {
  for (const int64_t pages : shape_.group_pages) {
    cells_.emplace_back(static_cast<size_t>(pages * shape_.page_tokens));
  }
}

TokenId FakeRunner::Next(const Shape& shape, std::span<const TokenId> tokens) {
  const auto query = static_cast<int64_t>(tokens.size()) - 1;
  uint64_t hash = 1;
  for (const kvcache::KvGroup& group : shape.groups) {
    for (int64_t key = 0; key <= query; ++key) {
      if (!Sees(group, query, key)) continue;
      hash = Mix(Mix(hash, static_cast<uint64_t>(key)),
                 static_cast<uint64_t>(tokens[static_cast<size_t>(key)]));
    }
  }
  return static_cast<TokenId>(hash % static_cast<uint64_t>(shape.vocab_size));
}

void FakeRunner::Write(const StepSequence& sequence) {
  for (size_t g = 0; g < shape_.groups.size(); ++g) {
    const kvcache::PageSpan& span = sequence.pages[g];
    if (!std::ranges::is_sorted(span.logical, std::less_equal<>())) faults.push_back("order");
    for (size_t i = 0; i < sequence.tokens.size(); ++i) {
      const int64_t position = sequence.first_position + static_cast<int64_t>(i);
      const auto logical = static_cast<int32_t>(position / shape_.page_tokens);
      const auto found = std::ranges::lower_bound(span.logical, logical);
      if (found == span.logical.end() || *found != logical) {
        faults.push_back("no page for position " + std::to_string(position));
        continue;
      }
      const int32_t page = span.pages[static_cast<size_t>(found - span.logical.begin())];
      *At(g, page, position % shape_.page_tokens) = {sequence.tokens[i],
                                                     static_cast<int32_t>(position)};
    }
  }
}

uint64_t FakeRunner::Read(const StepSequence& sequence, int64_t position) {
  uint64_t hash = 1;
  for (size_t g = 0; g < shape_.groups.size(); ++g) {
    const kvcache::PageSpan& span = sequence.pages[g];
    for (size_t p = 0; p < span.pages.size(); ++p) {
      for (int64_t offset = 0; offset < shape_.page_tokens; ++offset) {
        const int64_t key = span.logical[p] * shape_.page_tokens + offset;
        if (key > position || !Sees(shape_.groups[g], position, key)) continue;
        const Cell& cell = *At(g, span.pages[p], offset);
        if (cell.position != key) faults.push_back("stale cell at " + std::to_string(key));
        hash = Mix(Mix(hash, static_cast<uint64_t>(key)), static_cast<uint64_t>(cell.token));
      }
    }
  }
  return hash;
}

Result<TensorView> FakeRunner::Run(const StepBatch& batch) {
  ++runs;
  batch_max = std::max(batch_max, static_cast<int64_t>(batch.sequences.size()));
  bool decode = false, prefill = false;
  int64_t rows = 0;
  for (const StepSequence& s : batch.sequences) {
    Write(s);
    (s.decode ? decode : prefill) = true;
    tokens_run += static_cast<int64_t>(s.tokens.size());
    if (s.logits_from >= 0) rows += static_cast<int64_t>(s.tokens.size()) - s.logits_from;
  }
  mixed_steps += decode && prefill;
  rows_max = std::max(rows_max, rows);
  if (!fail_next.ok()) return std::exchange(fail_next, OkStatus());
  logits_.assign(static_cast<size_t>(rows * shape_.vocab_size), 0.0f);
  float* row = logits_.data();
  for (const StepSequence& s : batch.sequences) {
    if (s.logits_from < 0) continue;
    for (auto i = static_cast<size_t>(s.logits_from); i < s.tokens.size(); ++i) {
      const int64_t position = s.first_position + static_cast<int64_t>(i);
      row[Read(s, position) % static_cast<uint64_t>(shape_.vocab_size)] = 10.0f;
      if (nan_after >= 0 && s.tokens[i] == nan_after) {
        row[0] = std::numeric_limits<float>::quiet_NaN();
      }
      row += shape_.vocab_size;
    }
  }
  return TensorView(logits_.data(), DType::kF32, {rows, shape_.vocab_size});
}

}  // namespace lacuna::engine
