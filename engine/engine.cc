#include "engine/engine.h"

#include <string>
#include <utility>

#include "engine/loop.h"
#include "kvcache/sparse/prefill_grain.h"

namespace lacuna::engine {

RequestStream::RequestStream(std::shared_ptr<EventQueue> queue, RequestId id)
    : queue_(std::move(queue)), id_(id) {}
RequestStream::RequestStream(RequestStream&&) noexcept = default;

RequestStream& RequestStream::operator=(RequestStream&& other) noexcept {
  if (this != &other) {
    if (queue_ != nullptr) queue_->Abandon();
    queue_ = std::move(other.queue_);
    id_ = other.id_;
  }
  return *this;
}

RequestStream::~RequestStream() {
  if (queue_ != nullptr) queue_->Abandon();
}

std::optional<Event> RequestStream::Poll() { return queue_->Poll(); }
std::optional<Event> RequestStream::Wait(TimePoint until) { return queue_->Wait(until); }
int RequestStream::fd() const { return queue_->fd(); }
void RequestStream::Cancel() { queue_->Cancel(); }

Result<std::unique_ptr<Engine>> Engine::Create(const EngineConfig& config, EngineParts parts) {
  if (parts.runner == nullptr || parts.clock == nullptr) {
    return InvalidArgument("engine: need a runner and a clock");
  }
  if (parts.vocab_size < 1 || parts.context_tokens_max < 2) {
    return InvalidArgument("engine: need a vocabulary and a context of at least 2 tokens");
  }
  if (config.step_tokens_max < 1 || config.running_max < 1 || config.events_max < 2) {
    return InvalidArgument("engine: step_tokens_max, running_max or events_max is too small");
  }
  if (parts.logit_rows_max != 0 && parts.logit_rows_max < config.running_max) {
    return InvalidArgument("engine: got logit_rows_max " + std::to_string(parts.logit_rows_max) +
                           ", need running_max or more");
  }
  if (parts.prefill_grain_tokens == nullptr)
    parts.prefill_grain_tokens = &kvcache::PrefillGrainTokens;
  kvcache::KvCacheOptions options;
  options.groups = parts.groups;
  options.group_pages = parts.group_pages;
  options.page_tokens = parts.page_tokens;
  options.prefix_cache = parts.prefix_cache;
  LACUNA_ASSIGN_OR_RETURN(auto cache, kvcache::KvCache::Create(std::move(options)));
  auto loop = std::make_unique<Loop>(config, std::move(parts), std::move(cache));
  return std::unique_ptr<Engine>(new Engine(std::move(loop)));
}

Engine::Engine(std::unique_ptr<Loop> loop) : loop_(std::move(loop)) {}
Engine::~Engine() = default;

Result<RequestStream> Engine::Submit(Request request) { return loop_->Submit(std::move(request)); }
void Engine::Start() { loop_->Start(); }
bool Engine::StepOnce() { return loop_->StepOnce(); }
void Engine::Drain() { loop_->Drain(); }
bool Engine::Idle() const { return loop_->Idle(); }
void Engine::Stop() { loop_->Stop(); }
const EngineStats& Engine::stats() const { return loop_->stats(); }
std::vector<PageCounts> Engine::page_counts() const { return loop_->page_counts(); }
bool Engine::healthy() const { return loop_->healthy(); }
int64_t Engine::context_tokens_max() const { return loop_->context_tokens_max(); }
Status Engine::CheckInvariants() const { return loop_->CheckInvariants(); }

}  // namespace lacuna::engine
