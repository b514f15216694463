// SoloRunner: a few sequences of equal length on one model, without an engine: for verify and the
// offline benchmark. Dense, or all by one plan. Groups with a window keep what it sees, in a ring
// of pages. One thread.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/execute/executor.h"
#include "engine/model/model.h"
#include "engine/sparse_progress.h"
#include "kernels/core/ids.h"
#include "kernels/core/status.h"
#include "kernels/ops/backend.h"
#include "kvcache/pages/kv_storage.h"
#include "kvcache/sparse/metadata_storage.h"
#include "kvcache/sparse/plan.h"

namespace lacuna::server {

struct SoloLimits final {
  int64_t sequences = 1;
  int64_t tokens_max = 1;       // of one sequence
  int64_t step_tokens_max = 1;  // of one step
  int64_t logit_rows_max = 1;   // computed at once
  bool graphs = true;
  std::shared_ptr<const kvcache::SparsePlan> plan = nullptr;  // that Follow may name; or null
};

// What the plan's steps have read, summed over sequences, layers and heads that select.
struct ReadCounts final {
  int64_t pages_considered = 0, pages_selected = 0;    // by decode rows
  int64_t blocks_considered = 0, blocks_selected = 0;  // by chunks

  bool operator==(const ReadCounts&) const = default;
};

class SoloRunner final {
 public:
  static constexpr int64_t kPageTokens = 64;

  // `model` and `backend` outlive the runner.
  static Result<std::unique_ptr<SoloRunner>> Create(engine::Model& model, kernels::Backend& backend,
                                                    const SoloLimits& limits);

  // Whether steps overlap: Launch returns before the step is done.
  bool asynchronous() const { return executor_->asynchronous(); }
  // Runs tokens of sequence 0 from `first_position` on, in one step. Logits [wanted, vocab] f32 of
  // the tokens from `logits_from` on; valid until the next call.
  Result<TensorView> RunForLogits(std::span<const TokenId> tokens, int64_t first_position,
                                  bool decode, int32_t logits_from);
  // Starts a step with tokens of one sequence; greedy choice after the last of them if `sample`.
  Status LaunchPrefill(int64_t sequence, std::span<const TokenId> tokens, int64_t first_position,
                       bool sample);
  // Starts a decode step of all sequences: at `position` each, with its token of `tokens`; empty:
  // with those that the step before chose, which nobody has to have waited for.
  Status LaunchDecode(std::span<const TokenId> tokens, int64_t position);
  // Of the oldest step not waited for; see StepRunner.
  Result<std::span<const kernels::SampleResult>> Wait();
  int64_t graph_steps() const { return graph_steps_; }

  // The steps from now on are those of new requests with prompts of so many tokens, by the plan of
  // the limits or densely; counts begin at nothing.
  void Follow(bool plan, int64_t prompt_tokens);
  const ReadCounts& reads() const { return reads_; }
  // Of keys and values, and of what is stored beside them.
  int64_t kv_bytes() const { return storage_->bytes(); }
  int64_t metadata_bytes() const { return metadata_ == nullptr ? 0 : metadata_->bytes(); }

  // Fills the first `tokens` positions of every layer and sequence with random keys and values,
  // through AppendKv, and makes their metadata.
  Status FillRandom(int64_t tokens, uint64_t seed);

 private:
  // Of a group: pages of one sequence, of which those behind the sink pages are a ring. Full groups
  // have a page for each of their tokens.
  struct GroupPages {
    int64_t sink = 0, all = 0;
  };

  SoloRunner(engine::Model& model, kernels::Backend& backend, const SoloLimits& limits)
      : model_(model), backend_(backend), limits_(limits) {}
  void PlacePages();
  Status CreateStorage();
  // The page of a sequence that holds its page `logical`.
  int32_t PageOf(size_t group, int64_t sequence, int64_t logical) const;
  // Appends the sequence to batch_.
  void Add(int64_t sequence, engine::StepSequence step, int64_t tokens);
  void Clear();
  Status Launch();
  Status FillGroup(size_t group, int64_t tokens, uint64_t seed);
  // Slots of `rows` tokens, counted through all sequences from `first` on, and the pages before
  // theirs; -1: not kept.
  void PlaceTokens(size_t group, int64_t tokens, int64_t first, std::span<int32_t> slots,
                   std::span<int32_t> previous) const;

  engine::Model& model_;
  kernels::Backend& backend_;
  SoloLimits limits_;
  int64_t sequence_pages_ = 0;
  std::vector<GroupPages> group_pages_;
  std::unique_ptr<kvcache::KvStorage> storage_;
  std::unique_ptr<kvcache::MetadataStorage> metadata_;  // null without a plan that reads any
  std::unique_ptr<engine::Executor> executor_;
  engine::StepBatch batch_;
  struct Pages {
    std::vector<int32_t> pages, logical;
  };
  std::vector<Pages> pages_;              // [sequences, groups] of the batch
  std::vector<kvcache::PageSpan> spans_;  // of pages_
  int64_t graph_steps_ = 0;
  int64_t prompt_tokens_ = 0;
  std::vector<engine::SparseProgress> progress_;  // [sequences], or none: dense
  ReadCounts reads_;
};

// The most likely token of a row; ties: the lowest id.
TokenId ArgMax(std::span<const float> logits);

}  // namespace lacuna::server
