// EventQueue: the events of one request on their way from the engine thread to one consumer.
//
// Bounded: a full queue refuses a Push (the engine then fails that request), one more slot is kept
// for the terminal event. The engine never waits here. Shared by the engine and the RequestStream;
// the producer's side is the engine thread's, the consumer's side any one thread's at a time.
#pragma once

#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>

#include "engine/event.h"
#include "kernels/core/clock.h"
#include "kernels/core/ids.h"

namespace lacuna::engine {

class Inbox;

class EventQueue final {
 public:
  EventQueue(RequestId id, int64_t events_max, std::shared_ptr<Inbox> inbox);
  ~EventQueue();
  EventQueue(const EventQueue&) = delete;
  EventQueue& operator=(const EventQueue&) = delete;

  // Engine. False, and the event is lost, when events_max events wait unread. The consumer hears of
  // events when Wake is called, so that the engine chooses the moment when others get its core.
  bool Push(Event event);
  // Engine, exactly once and last.
  void PushTerminal(Event event);
  // Engine, some time after each Push.
  void Wake();

  // Consumer.
  std::optional<Event> Poll();
  std::optional<Event> Wait(TimePoint until);
  int fd();        // made on first use; -1 when the system has none left
  void Cancel();   // posts one message at most
  void Abandon();  // nobody will read: cancels and drops what comes

 private:
  std::optional<Event> PopLocked();

  const RequestId id_;
  const size_t events_max_;
  const std::shared_ptr<Inbox> inbox_;
  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<Event> events_;
  int fd_ = -1;
  bool abandoned_ = false, cancel_sent_ = false, terminated_ = false;
};

}  // namespace lacuna::engine
