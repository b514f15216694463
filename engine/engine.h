// Engine: owns the loop and its thread; the only mutator of sequences and pages. SEAM.
//
// One breath: take messages -> plan (pure) -> commit pages -> run -> commit results -> emit ->
// retire. It never blocks on a client, a file or a lock that a client thread holds for long.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <vector>

#include "engine/engine_config.h"
#include "engine/event.h"
#include "engine/execute/step_batch.h"
#include "engine/request.h"
#include "engine/stats.h"
#include "kernels/core/clock.h"
#include "kernels/core/status.h"
#include "kvcache/kv_config.h"
#include "kvcache/pages/kv_group.h"
#include "kvcache/sparse/plan.h"

namespace lacuna::engine {

class EventQueue;  // engine/event_queue.h

// The consumer's end of one request. Destroying it before the terminal event cancels the request.
class RequestStream final {
 public:
  RequestStream(std::shared_ptr<EventQueue> queue, RequestId id);
  ~RequestStream();
  RequestStream(RequestStream&&) noexcept;
  RequestStream& operator=(RequestStream&&) noexcept;

  RequestId id() const { return id_; }
  // The next event, or nothing when none is ready.
  std::optional<Event> Poll();
  // Blocks until an event is ready or `until` has passed.
  std::optional<Event> Wait(TimePoint until);
  // Readable (as an eventfd) while events are ready; for an event loop. Owned by the stream.
  int fd() const;
  // A message to the engine, seen at the next step border; the terminal event still comes.
  void Cancel();

 private:
  std::shared_ptr<EventQueue> queue_;
  RequestId id_;
};

struct EngineParts final {
  std::unique_ptr<StepRunner> runner;
  std::vector<kvcache::KvGroup> groups;
  std::vector<int64_t> group_pages;  // pages in each group's pool, fixed
  int64_t page_tokens = 64;
  bool prefix_cache = true;
  int64_t vocab_size = 0;
  int64_t context_tokens_max = 0;
  std::vector<TokenId> eos;
  int64_t logit_rows_max = 0;  // rows of logits that one Run can give; 0: no limit
  // Deterministic on a device whose decode and prefill give different bits: a token is computed
  // again (after preemption) the way it was computed first, and only pages of prompts are shared.
  // So it is for every request whose plan is not dense.
  bool replays_output = false;
  bool sparse_ops = false;  // the runner takes sequences with plans
  // See AssemblyOptions.
  std::vector<std::shared_ptr<const kvcache::SparsePlan>> plans;
  std::shared_ptr<const kvcache::SparsePlan> residency;
  // Where the prompts of a plan may be cut; null: kvcache::PrefillGrainTokens.
  int64_t (*prefill_grain_tokens)(const kvcache::SparsePlan& plan) = nullptr;
  const Clock* clock = nullptr;
};

class Engine final {
 public:
  static Result<std::unique_ptr<Engine>> Create(const EngineConfig& config, EngineParts parts);
  ~Engine();  // Stop()

  // Any thread. kTooLong: can never fit; kExhausted: the queue is full; kUnavailable: draining;
  // kInvalidArgument: what the request asks for, its plan among it, cannot be.
  Result<RequestStream> Submit(Request request);
  void Start();  // starts the loop's thread
  // One turn of the loop on the caller's thread instead (tests and the simulator); false when idle.
  bool StepOnce();
  void Drain();  // stop intake; running requests go on
  bool Idle() const;
  // Fails what is left (kUnavailable), joins the thread.
  void Stop();

  const EngineStats& stats() const;
  std::vector<PageCounts> page_counts() const;  // one per KvGroup
  bool healthy() const;                         // false after a device error
  // The longest sequence: the least of the config's, the model's and what the pools can hold.
  int64_t context_tokens_max() const;
  // Walks all pages and sequences. The thread that calls StepOnce, or after Stop.
  Status CheckInvariants() const;

 private:
  class Loop;
  explicit Engine(std::unique_ptr<Loop> loop);
  std::unique_ptr<Loop> loop_;
};

}  // namespace lacuna::engine
