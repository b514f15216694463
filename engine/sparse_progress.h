// SparseProgress: what the engine knows of one request's sparse attention between steps: the age of
// its choice, how far its budget was widened, what its steps have read.
//
// Everything is counted by the request's own output: decode step k computes its k-th generated
// token. A preempted sequence that computes its output again therefore does all as it did, whoever
// else is in the batch. Engine thread only.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/event.h"
#include "engine/execute/step_batch.h"
#include "engine/request.h"
#include "engine/stats.h"
#include "kernels/core/ids.h"

namespace lacuna::engine {

class SparseProgress final {
 public:
  // An audited step below the floor widens the budget from this many steps later on: the step in
  // between may be launched already.
  static constexpr int64_t kWidenAfterSteps = 2;
  static constexpr float kWidenFactor = 1.5f;
  static constexpr int kWidenMax = 16;  // by then the budget is 656 times what it was

  // `options.plan` is set.
  SparseProgress(const SparseOptions& options, uint64_t seed, std::span<const TokenId> prompt);

  // Where the device keeps its choices; its own while it runs.
  int32_t choice() const { return choice_; }
  void set_choice(int32_t choice) { choice_ = choice; }
  // It lost its pages: it computes everything again, from the first decode step on.
  void Restart();

  // Of the next step, whose tokens and place stand in `step`; called once for each step launched.
  void Fill(StepSequence& step);
  // `output`: the decode step's number, -1 for a chunk of the prompt.
  void Land(int64_t output, const SparseReport& report, EngineStats& stats);
  // What its steps have read so far. Steps that were computed again count once.
  SparseUsage usage() const;

 private:
  bool Audits(int64_t output) const;
  float ScaleAt(int64_t output) const;
  void LandAudit(int64_t output, const SparseReport& report, EngineStats& stats);

  const SparseOptions options_;
  const uint64_t audit_key_;
  int32_t choice_ = 0;
  int32_t age_ = -1;                   // decode steps since the last choice; -1: none was made
  std::vector<int64_t> widened_from_;  // decode steps, ascending
  int64_t landed_steps_ = 0;           // the first decode step whose report did not come yet
  // The means of usage() are sums here.
  SparseUsage sums_;
  int64_t choices_ = 0;                                   // that estimated_mass is the sum of
  int64_t group_audits_[SparseUsage::kLayerGroups] = {};  // audits of groups that have layers
};

}  // namespace lacuna::engine
