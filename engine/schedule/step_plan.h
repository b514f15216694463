// StepPlan: the scheduler's decision about one step. Nothing has happened yet.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/schedule/scheduled_sequence.h"
#include "kvcache/kv_cache.h"

namespace lacuna::engine {

struct PlannedRun final {
  ScheduledSequence* sequence = nullptr;
  int64_t tokens = 0;      // computes this many of the left tokens
  bool admit = false;      // it waited until now
  kvcache::PrefixHit hit;  // of an admitted one; its tokens need no computing
};

struct StepPlan final {
  std::vector<ScheduledSequence*> preempt;  // give back their pages first
  std::vector<PlannedRun> runs;             // decodes, then prefills by precedence, then admitted
  // Nothing runs and the head of the line cannot be admitted: it fails, which proves progress.
  ScheduledSequence* stuck = nullptr;
};

}  // namespace lacuna::engine
