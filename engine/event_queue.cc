#include "engine/event_queue.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <utility>

#include "engine/inbox.h"

namespace lacuna::engine {
namespace {

// An eventfd cannot fail here: its counter goes from 0 to 1 and back.
void Raise(int fd) {
  const uint64_t one = 1;
  [[maybe_unused]] const ssize_t bytes = write(fd, &one, sizeof(one));
}

void Lower(int fd) {
  uint64_t count = 0;
  [[maybe_unused]] const ssize_t bytes = read(fd, &count, sizeof(count));
}

}  // namespace

EventQueue::EventQueue(RequestId id, int64_t events_max, std::shared_ptr<Inbox> inbox)
    : id_(id), events_max_(static_cast<size_t>(events_max)), inbox_(std::move(inbox)) {}

EventQueue::~EventQueue() {
  if (fd_ >= 0) close(fd_);
}

bool EventQueue::Push(Event event) {
  const std::lock_guard lock(mutex_);
  LACUNA_CHECK(!terminated_ && !IsTerminal(event));
  if (abandoned_) return true;
  if (events_.size() >= events_max_) return false;
  events_.push_back(std::move(event));
  return true;
}

void EventQueue::PushTerminal(Event event) {
  const std::lock_guard lock(mutex_);
  LACUNA_CHECK(!terminated_ && IsTerminal(event));
  terminated_ = true;
  if (!abandoned_) events_.push_back(std::move(event));
}

void EventQueue::Wake() {
  const std::lock_guard lock(mutex_);
  if (events_.empty()) return;
  if (fd_ >= 0) Raise(fd_);
  ready_.notify_one();
}

std::optional<Event> EventQueue::PopLocked() {
  if (events_.empty()) return std::nullopt;
  Event event = std::move(events_.front());
  events_.pop_front();
  if (events_.empty() && fd_ >= 0) Lower(fd_);
  return event;
}

std::optional<Event> EventQueue::Poll() {
  const std::lock_guard lock(mutex_);
  return PopLocked();
}

std::optional<Event> EventQueue::Wait(TimePoint until) {
  std::unique_lock lock(mutex_);
  ready_.wait_until(lock, until, [&] { return !events_.empty(); });
  return PopLocked();
}

int EventQueue::fd() {
  const std::lock_guard lock(mutex_);
  if (fd_ < 0) {
    fd_ = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (fd_ >= 0 && !events_.empty()) Raise(fd_);
  }
  return fd_;
}

void EventQueue::Cancel() {
  {
    const std::lock_guard lock(mutex_);
    if (terminated_ || std::exchange(cancel_sent_, true)) return;
  }
  inbox_->PostCancel(id_);
}

void EventQueue::Abandon() {
  Cancel();
  const std::lock_guard lock(mutex_);
  abandoned_ = true;
  events_.clear();
}

}  // namespace lacuna::engine
