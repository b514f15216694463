#include "bench/load/runner.h"

#include <algorithm>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <chrono>
#include <memory>
#include <utility>

namespace lacuna::bench {
namespace {

namespace asio = boost::asio;
using asio::use_awaitable;

Duration FromSeconds(double seconds) {
  return std::chrono::duration_cast<Duration>(std::chrono::duration<double>(seconds));
}

class Phase final {
 public:
  Phase(asio::io_context& io, const ClientContext& context, const std::vector<PlannedRequest>& plan,
        double duration_s, const std::function<void(const Progress&)>& on_progress)
      : io_(io),
        context_(context),
        plan_(plan),
        open_(context.config.arrival.mode != "closed"),
        start_(std::chrono::steady_clock::now()),
        stop_(start_ + FromSeconds(duration_s)),
        on_progress_(on_progress),
        ticker_(io) {}

  PhaseResult Run() {
    const auto workers =
        std::min<size_t>(static_cast<size_t>(context_.config.arrival.concurrency), plan_.size());
    workers_ = workers;
    for (size_t i = 0; i < workers; ++i) asio::co_spawn(io_, Work(), asio::detached);
    if (on_progress_ && workers > 0) asio::co_spawn(io_, Tick(), asio::detached);
    io_.restart();
    io_.run();
    return {std::move(samples_), Seconds(last_end_ - start_)};
  }

 private:
  // Takes the next request, waits until it is due, and sends it. In an open loop all workers being
  // busy shows as send lag.
  asio::awaitable<void> Work() {
    Client client(context_);
    asio::steady_timer timer(io_);
    while (next_ < plan_.size()) {
      const PlannedRequest& request = plan_[next_];
      TimePoint due = std::chrono::steady_clock::now();
      if (open_) due = start_ + FromSeconds(request.due_s);
      if (due >= stop_) break;
      ++next_;
      if (open_) {
        timer.expires_at(due);
        co_await timer.async_wait(use_awaitable);
      }
      Sample sample = co_await client.Run(request, due);
      failed_ += sample.end == Sample::End::kFailed;
      const bool pause = sample.end == Sample::End::kFailed;
      samples_.push_back(std::move(sample));
      last_end_ = std::chrono::steady_clock::now();
      if (pause && !open_) {  // a server that refuses at once must not be hammered in a busy loop
        timer.expires_after(std::chrono::milliseconds(20));
        co_await timer.async_wait(use_awaitable);
      }
    }
    if (--workers_ == 0) ticker_.cancel();
  }

  asio::awaitable<void> Tick() {
    while (workers_ > 0) {
      ticker_.expires_after(std::chrono::milliseconds(500));
      boost::system::error_code ignored;
      co_await ticker_.async_wait(asio::redirect_error(use_awaitable, ignored));
      on_progress_({next_, samples_.size(), failed_, plan_.size(),
                    Seconds(std::chrono::steady_clock::now() - start_)});
    }
  }

  asio::io_context& io_;
  const ClientContext& context_;
  const std::vector<PlannedRequest>& plan_;
  const bool open_;
  const TimePoint start_, stop_;
  const std::function<void(const Progress&)>& on_progress_;
  asio::steady_timer ticker_;
  size_t next_ = 0, workers_ = 0, failed_ = 0;
  std::vector<Sample> samples_;
  TimePoint last_end_ = start_;
};

}  // namespace

PhaseResult RunPhase(asio::io_context& io, const ClientContext& context,
                     const std::vector<PlannedRequest>& plan, double duration_s,
                     const std::function<void(const Progress&)>& on_progress) {
  return Phase(io, context, plan, duration_s, on_progress).Run();
}

}  // namespace lacuna::bench
