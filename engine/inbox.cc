#include "engine/inbox.h"

#include <utility>

namespace lacuna::engine {

void Inbox::PostCancel(RequestId id) {
  const std::lock_guard lock(mutex_);
  if (closed_) return;  // everything left was failed
  messages_.push_back({.submit = nullptr, .cancel = id});
  posted_.notify_one();
}

std::vector<Message> Inbox::Take() {
  const std::lock_guard lock(mutex_);
  return std::exchange(messages_, {});
}

bool Inbox::WaitForMessage() {
  std::unique_lock lock(mutex_);
  posted_.wait(lock, [&] { return closed_ || !messages_.empty(); });
  return !closed_;
}

void Inbox::CloseIntake() {
  const std::lock_guard lock(mutex_);
  intake_ = false;
}

void Inbox::Close() {
  const std::lock_guard lock(mutex_);
  intake_ = false;
  closed_ = true;
  posted_.notify_all();
}

}  // namespace lacuna::engine
