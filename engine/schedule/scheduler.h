// Scheduler: who waits, who runs, and what the next step computes. Plans on counts, moves no page.
//
// Precedence: promoted ones by arrival, then by (priority, arrival). A step serves running decodes,
// then prefill chunks, then admits from the head of the line, under a budget of tokens and rows.
// Progress: a request that does not fit alone is refused at intake, and a running sequence may
// preempt those behind it; so the first one always advances, and every step runs a token. A prompt
// that is cut at grains alone gets whole ones or nothing; while one gets nothing, nobody is
// admitted, so that those who took the budget come to an end.
// No starvation: nobody behind the head of the line is admitted before it, and after
// kBypassMax admissions of later arrivals the oldest waiting one is promoted.
// Plan costs O(running log running + admitted log waiting). Engine thread only.
#pragma once

#include <cstdint>
#include <set>
#include <vector>

#include "engine/schedule/scheduled_sequence.h"
#include "engine/schedule/step_plan.h"
#include "kvcache/kv_cache.h"
#include "kvcache/pages/ledger.h"

namespace lacuna::engine {

struct SchedulerLimits final {
  int64_t step_tokens_max = 2048;
  int64_t running_max = 64;
  int64_t logit_rows_max = 0;  // of one step; 0: no limit
};

class Scheduler final {
 public:
  static constexpr int kBypassMax = 64;

  Scheduler(const SchedulerLimits& limits, const kvcache::KvCache& cache);

  // A new or preempted sequence; waits.
  void Enqueue(ScheduledSequence& sequence);
  // From waiting to running, as planned.
  void Admit(ScheduledSequence& sequence);
  // From running to waiting, as planned.
  void Preempt(ScheduledSequence& sequence);
  // Retires a waiting or running one.
  void Remove(ScheduledSequence& sequence);

  // Pure but for the memo of prefix hashes in the sequences.
  StepPlan Plan(kvcache::Ledger ledger) const;

  bool running(ScheduledSequence& sequence) const;
  int64_t running_count() const { return static_cast<int64_t>(running_.size()); }
  int64_t waiting_count() const { return static_cast<int64_t>(waiting_.size()); }
  bool empty() const { return running_.empty() && waiting_.empty(); }

 private:
  struct Before {
    bool operator()(const ScheduledSequence* a, const ScheduledSequence* b) const;
  };
  struct Older {
    bool operator()(const ScheduledSequence* a, const ScheduledSequence* b) const {
      return a->arrival < b->arrival;
    }
  };
  class Planner;

  SchedulerLimits limits_;
  const kvcache::KvCache& cache_;
  std::set<ScheduledSequence*, Before> running_;
  std::set<ScheduledSequence*, Before> waiting_;
  std::set<ScheduledSequence*, Older> waiting_by_age_;
  const ScheduledSequence* bypassed_ = nullptr;  // the oldest waiting one, and how often later
  int bypass_count_ = 0;                         // arrivals were admitted before it
};

}  // namespace lacuna::engine
