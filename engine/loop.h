// Engine::Loop: the state behind an Engine and one turn of its loop.
//
// The thread that turns the loop owns sequences, pages and the runner. Other threads reach it
// through the inbox, and read the statistics and a copy of the page counts made at each step
// border.
#pragma once

#include <atomic>
#include <deque>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "engine/event_queue.h"
#include "engine/inbox.h"
#include "engine/schedule/scheduler.h"
#include "engine/sequence.h"
#include "kvcache/kv_cache.h"

namespace lacuna::engine {

// A step that was launched and not yet waited for.
struct Flight final {
  struct Run {
    Sequence* sequence = nullptr;  // null: it ended in the meantime, its results are dropped
    int64_t tokens = 0;
    size_t first_row = 0, rows = 0;  // of the step's results
    int64_t output = -1;  // of a decode row: the number of the generated token that it computes
    std::shared_ptr<const kvcache::SparsePlan> plan{};  // outlives the step, if not the sequence
  };
  std::vector<Run> runs;
  size_t rows = 0;
  TimePoint begin;                     // of its planning
  TimePoint launch_begin, launch_end;  // of the work that the device waits for
};

class Engine::Loop final {
 public:
  Loop(const EngineConfig& config, EngineParts parts, std::unique_ptr<kvcache::KvCache> cache);
  ~Loop();

  // Any thread.
  Result<RequestStream> Submit(Request request);
  void Drain() { inbox_->CloseIntake(); }
  bool Idle() const { return live_.load() == 0; }
  const EngineStats& stats() const { return stats_; }
  std::vector<PageCounts> page_counts() const;
  bool healthy() const { return healthy_.load(); }
  int64_t context_tokens_max() const { return context_tokens_max_; }

  // The owner of the engine.
  void Start();
  void Stop();

  // The engine thread.
  bool StepOnce();
  Status CheckInvariants() const;

 private:
  Status CheckRequest(const Request& request) const;
  Status CountIn(const Sequence& sequence);

  bool TakeMessages();
  void ExpireDeadlines();

  // loop_step.cc
  // Plans and launches a step; false: there is nothing to launch. With a step under way, a plan
  // that needs its results first is dropped.
  bool LaunchStep();
  bool CanRunAhead(const StepPlan& plan) const;
  void CommitPlan(const StepPlan& plan);
  void CommitAdmission(Sequence& sequence, const PlannedRun& run);
  // A place for its choices on the device, held while it runs.
  void TakeChoice(Sequence& sequence);
  void GiveChoice(Sequence& sequence);
  Status CheckChoices() const;
  void FillBatch(const StepPlan& plan);
  // Rows for the logits of positions [first, end); they come after those in the batch.
  void AddRows(const Sequence& sequence, int64_t first, int64_t end);
  void NoteFlight(const StepPlan& plan, TimePoint begin);
  // Waits for the oldest step under way, takes in its results and tells them.
  void LandStep();
  // Retires the sequence when it ends.
  void LandRun(const Flight::Run& run, std::span<const kernels::SampleResult> results);
  void LandReports(const Flight& flight);
  // These two are false when the sequence failed and is gone.
  bool GatherPromptLogprobs(Sequence& sequence, int64_t position,
                            const kernels::SampleResult& result);
  bool Tell(Sequence& sequence, Event event);
  void TakeToken(Sequence& sequence, const kernels::SampleResult& result);
  bool StopsAt(const Sequence& sequence, TokenId token) const;
  void LoseDevice(const Status& status);

  void Finish(Sequence& sequence, FinishReason reason, TokenId stop_token = -1);
  void Fail(Sequence& sequence, Status status);
  void FailAll(const Status& status);
  // Gives back its pages and takes it out; the terminal event is told at the step border.
  void Retire(Sequence& sequence, Event terminal);
  void EndStep();
  // Tells the readers of the events pushed since the last call.
  void WakeReaders();
  void CountWaiting(const Sequence& sequence, int sign);
  Status CheckPages() const;

  static Sequence& AsSequence(ScheduledSequence& s) { return static_cast<Sequence&>(s); }

  const EngineConfig config_;
  EngineParts parts_;
  int64_t context_tokens_max_ = 0;
  std::unique_ptr<kvcache::KvCache> cache_;
  Scheduler scheduler_;
  std::shared_ptr<Inbox> inbox_ = std::make_shared<Inbox>();
  std::unordered_map<RequestId, std::unique_ptr<Sequence>> sequences_;
  std::set<std::pair<TimePoint, RequestId>> deadlines_;
  std::vector<std::pair<std::shared_ptr<EventQueue>, Event>> ended_;  // terminal events to tell

  std::vector<std::shared_ptr<EventQueue>> unread_;  // queues pushed to, not yet woken
  std::deque<Flight> flights_;                       // in the order of their launch; two at most
  TimePoint landed_;                                 // when the last one did
  bool landed_with_work_ = false;                    // and whether there was more to do
  StepBatch batch_;
  std::vector<kvcache::PageSpan> spans_;  // [sequences, groups] of the batch
  std::vector<int32_t> free_choices_;     // the last one is taken first

  EngineStats stats_;
  std::atomic<int64_t> live_{0};  // accepted, terminal event not yet told
  std::atomic<uint64_t> next_id_{1};
  std::atomic<bool> healthy_{true}, stopping_{false};
  mutable std::mutex counts_mutex_;
  std::vector<PageCounts> counts_;
  std::thread thread_;
};

}  // namespace lacuna::engine
