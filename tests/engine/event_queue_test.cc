#include "engine/event_queue.h"

#include <gtest/gtest.h>
#include <poll.h>

#include <thread>

#include "engine/inbox.h"

namespace lacuna::engine {
namespace {

bool Readable(int fd) {
  pollfd entry{.fd = fd, .events = POLLIN, .revents = 0};
  return poll(&entry, 1, 0) == 1;
}

TEST(EventQueueTest, IsBoundedButForTheTerminalEvent) {
  EventQueue queue(RequestId{1}, 2, std::make_shared<Inbox>());
  EXPECT_TRUE(queue.Push(TokenEvent{1, {}}));
  EXPECT_TRUE(queue.Push(TokenEvent{2, {}}));
  EXPECT_FALSE(queue.Push(TokenEvent{3, {}}));
  queue.PushTerminal(FinishedEvent{});
  EXPECT_EQ(std::get<TokenEvent>(*queue.Poll()).token, 1);
  EXPECT_EQ(std::get<TokenEvent>(*queue.Poll()).token, 2);
  EXPECT_TRUE(IsTerminal(*queue.Poll()));
  EXPECT_FALSE(queue.Poll());
}

TEST(EventQueueTest, TheFdIsReadableExactlyWhileEventsAreReady) {
  EventQueue queue(RequestId{1}, 8, std::make_shared<Inbox>());
  queue.Push(TokenEvent{1, {}});  // before the fd exists
  const int fd = queue.fd();
  ASSERT_GE(fd, 0);
  EXPECT_EQ(queue.fd(), fd);
  EXPECT_TRUE(Readable(fd));
  queue.Push(TokenEvent{2, {}});
  queue.Poll();
  EXPECT_TRUE(Readable(fd));
  queue.Poll();
  EXPECT_FALSE(Readable(fd));
  queue.Push(TokenEvent{3, {}});
  EXPECT_FALSE(Readable(fd));  // the engine says when
  queue.Wake();
  EXPECT_TRUE(Readable(fd));
}

TEST(EventQueueTest, WaitEndsAtItsTime) {
  EventQueue queue(RequestId{1}, 8, std::make_shared<Inbox>());
  const TimePoint until = SteadyClock().Now() + std::chrono::milliseconds(5);
  EXPECT_FALSE(queue.Wait(until));
  EXPECT_GE(SteadyClock().Now(), until);
}

TEST(EventQueueTest, CancelsOnceAndNeverAfterTheEnd) {
  auto inbox = std::make_shared<Inbox>();
  EventQueue queue(RequestId{5}, 8, inbox);
  queue.Cancel();
  queue.Cancel();
  const std::vector<Message> messages = inbox->Take();
  ASSERT_EQ(messages.size(), 1u);
  EXPECT_EQ(messages[0].cancel, RequestId{5});
  EventQueue ended(RequestId{6}, 8, inbox);
  ended.PushTerminal(FinishedEvent{});
  ended.Cancel();
  EXPECT_TRUE(inbox->Take().empty());
}

TEST(EventQueueTest, AnAbandonedQueueIsNeverFull) {
  EventQueue queue(RequestId{1}, 2, std::make_shared<Inbox>());
  queue.Abandon();
  for (int i = 0; i < 10; ++i) EXPECT_TRUE(queue.Push(TokenEvent{i, {}}));
  queue.PushTerminal(FinishedEvent{});
  EXPECT_FALSE(queue.Poll());
}

TEST(EventQueueDeathTest, NothingFollowsTheTerminalEvent) {
  EventQueue queue(RequestId{1}, 8, std::make_shared<Inbox>());
  queue.PushTerminal(FinishedEvent{});
  EXPECT_DEATH(queue.Push(TokenEvent{1, {}}), "terminated_");
  EXPECT_DEATH(queue.PushTerminal(FinishedEvent{}), "terminated_");
}

// One thread pushes, one waits, half the time by fd; each event arrives once and in order.
TEST(EventQueueTest, EventsArriveInOrderAcrossThreads) {
  constexpr int kEvents = 20'000;
  EventQueue queue(RequestId{1}, 16, std::make_shared<Inbox>());
  const int fd = queue.fd();
  std::thread producer([&] {
    for (int i = 0; i < kEvents; ++i) {
      while (!queue.Push(TokenEvent{i, {}})) std::this_thread::yield();
      queue.Wake();
    }
    queue.PushTerminal(FinishedEvent{});
    queue.Wake();
  });
  int next = 0;
  for (bool ended = false; !ended;) {
    std::optional<Event> event;
    if (next % 2 == 0) {
      pollfd entry{.fd = fd, .events = POLLIN, .revents = 0};
      ASSERT_EQ(poll(&entry, 1, 60'000), 1) << "a wake-up was lost";
      event = queue.Poll();
    } else {
      event = queue.Wait(SteadyClock().Now() + std::chrono::seconds(60));
    }
    ASSERT_TRUE(event);
    ended = IsTerminal(*event);
    if (!ended) {
      ASSERT_EQ(std::get<TokenEvent>(*event).token, next++);
    }
  }
  producer.join();
  EXPECT_EQ(next, kEvents);
  EXPECT_FALSE(queue.Poll());
}

}  // namespace
}  // namespace lacuna::engine
