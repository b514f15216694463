// The engine with its own thread, under many clients: run with ThreadSanitizer in CI.
#include <gtest/gtest.h>
#include <time.h>

#include <atomic>
#include <random>
#include <thread>

#include "tests/engine/engine_fixture.h"

namespace lacuna::engine {
namespace {

const SteadyClock kClock;

TimePoint InAMinute() { return kClock.Now() + std::chrono::minutes(1); }

FakeRunner::Shape BusyShape() {
  FakeRunner::Shape shape = SmallShape();
  shape.group_pages = {40};
  return shape;
}

// One client's life: submits, then reads all, cancels after some events, or goes away.
void Live(Engine& engine, const FakeRunner::Shape& shape, uint64_t seed, int requests,
          std::atomic<int>& terminals, std::atomic<int>& refused) {
  std::mt19937_64 random(seed);
  for (int i = 0; i < requests; ++i) {
    std::vector<TokenId> prompt(1 + random() % 20);
    for (TokenId& token : prompt) token = static_cast<TokenId>(random() % 3);
    Request request = MakeRequest(prompt, static_cast<int32_t>(1 + random() % 30));
    if (random() % 8 == 0) request.deadline = kClock.Now() + std::chrono::microseconds(300);
    auto stream = engine.Submit(std::move(request));
    if (!stream.ok()) {
      ++refused;
      continue;
    }
    const uint64_t fate = random() % 4;
    Heard heard;
    for (uint64_t read = 0; heard.terminals == 0; ++read) {
      if (fate == 0 && read == random() % 6) stream->Cancel();
      if (fate == 1 && read == 2) break;
      auto event = stream->Wait(InAMinute());
      ASSERT_TRUE(event) << "lost";
      heard.Add(std::move(*event));
    }
    terminals += heard.terminals;
    const auto length = static_cast<int64_t>(heard.tokens.size());
    EXPECT_EQ(heard.tokens, Reference(shape, prompt, length));
    EXPECT_FALSE(heard.terminals > 0 && stream->Poll());
  }
}

void WaitUntilIdle(const Engine& engine) {
  const TimePoint until = InAMinute();
  while (!engine.Idle() && kClock.Now() < until) std::this_thread::yield();
  ASSERT_TRUE(engine.Idle());
}

TEST(EngineThreadsTest, ManyClientsLoseNothing) {
  EngineConfig config;
  config.running_max = 8;
  config.step_tokens_max = 24;
  config.queue_len_max = 6;
  TestEngine test = MakeTestEngine(BusyShape(), config, kClock);
  test.engine->Start();
  std::atomic<int> terminals{0}, refused{0};
  std::atomic<bool> done{false};
  std::thread watcher([&] {  // as the metrics page
    while (!done.load()) {
      for (const PageCounts& counts : test.engine->page_counts()) {
        EXPECT_EQ(counts.free + counts.used + counts.cached, counts.total);
      }
      EXPECT_LE(test.engine->stats().running, 8);
      std::this_thread::yield();
    }
  });
  std::vector<std::thread> clients;
  for (uint64_t i = 0; i < 6; ++i) {
    clients.emplace_back(
        [&, i] { Live(*test.engine, test.shape, i + 1, 120, terminals, refused); });
  }
  for (std::thread& client : clients) client.join();
  WaitUntilIdle(*test.engine);
  done.store(true);
  watcher.join();
  const EngineStats& stats = test.engine->stats();
  EXPECT_EQ(stats.submitted + static_cast<uint64_t>(refused.load()), 6u * 120);
  EXPECT_EQ(stats.finished_stop + stats.finished_length + stats.cancelled + stats.failed,
            stats.submitted.load());
  EXPECT_GT(terminals.load(), 0);
  EXPECT_EQ(test.engine->page_counts()[0].used, 0);
  test.engine->Stop();
  EXPECT_TRUE(test.engine->CheckInvariants().ok());
}

TEST(EngineThreadsTest, StopUnderLoadEndsEveryStream) {
  TestEngine test = MakeTestEngine(BusyShape(), {}, kClock);
  test.engine->Start();
  std::atomic<int> terminals{0}, accepted{0};
  std::vector<std::thread> clients;
  for (int i = 0; i < 4; ++i) {
    clients.emplace_back([&] {
      while (true) {
        auto stream = test.engine->Submit(MakeRequest({1, 2, 3}, 100));
        if (!stream.ok()) return;  // the engine is stopping
        ++accepted;
        Heard heard;
        while (heard.terminals == 0) {
          auto event = stream->Wait(InAMinute());
          ASSERT_TRUE(event) << "lost";
          heard.Add(std::move(*event));
        }
        ++terminals;
      }
    });
  }
  while (accepted.load() < 12) std::this_thread::yield();
  test.engine->Stop();
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(terminals.load(), accepted.load());
  EXPECT_EQ(test.engine->page_counts()[0].used, 0);
}

// Processor time of the whole process, which is the engine's thread when the others wait.
double ProcessSeconds() {
  timespec time{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

TEST(EngineThreadsTest, AnIdleEngineSleepsAndWakesUp) {
  TestEngine test = MakeTestEngine(SmallShape(), {}, kClock);
  test.engine->Start();
  for (int i = 0; i < 3; ++i) {
    auto stream = test.engine->Submit(MakeRequest({1, 2}, 3));
    ASSERT_TRUE(stream.ok());
    Heard heard;
    while (heard.terminals == 0) heard.Add(*stream->Wait(InAMinute()));
    EXPECT_EQ(heard.tokens.size(), 3u);
    const double before = ProcessSeconds();
    EXPECT_FALSE(stream->Wait(kClock.Now() + std::chrono::milliseconds(100)));
    EXPECT_LT(ProcessSeconds() - before, 0.05);
  }
}

}  // namespace
}  // namespace lacuna::engine
