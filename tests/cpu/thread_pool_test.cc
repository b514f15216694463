#include "kernels/cpu/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <thread>
#include <vector>

namespace lacuna::kernels::cpu {
namespace {

void ExpectEachOnce(ThreadPool& pool, int64_t tasks) {
  std::vector<std::atomic<int>> calls(static_cast<size_t>(tasks));
  std::atomic<bool> worker_in_range{true};
  pool.ParallelFor(tasks, [&](int64_t task, int worker) {
    calls[static_cast<size_t>(task)].fetch_add(1, std::memory_order_relaxed);
    if (worker < 0 || worker >= pool.threads()) worker_in_range = false;
  });
  EXPECT_TRUE(worker_in_range);
  for (const auto& count : calls) ASSERT_EQ(count.load(), 1);
}

TEST(ThreadPool, RunsEachTaskOnce) {
  for (const int threads : {1, 2, 3, 8, 33}) {
    ThreadPool pool(threads, threads % 2 == 0);
    for (const int64_t tasks : {0, 1, 2, 3, 7, 64, 1000}) ExpectEachOnce(pool, tasks);
  }
}

TEST(ThreadPool, ResultsOfALoopAreVisibleToTheNext) {
  ThreadPool pool(4, false);
  constexpr int64_t kTasks = 64;
  std::vector<int64_t> a(kTasks, 0);  // plain: a missing edge shows up under TSan
  std::vector<int64_t> b(kTasks, 0);
  for (int64_t loop = 0; loop < 2000; ++loop) {
    pool.ParallelFor(kTasks, [&](int64_t i, int) {
      a[static_cast<size_t>(i)] = b[static_cast<size_t>((i + 1) % kTasks)] + 1;
    });
    pool.ParallelFor(kTasks, [&](int64_t i, int) {
      b[static_cast<size_t>(i)] = a[static_cast<size_t>((i + 1) % kTasks)];
    });
  }
  for (const int64_t value : b) EXPECT_EQ(value, 2000);
}

TEST(ThreadPool, WakesSleepingWorkers) {
  ThreadPool pool(3, true);
  for (int i = 0; i < 20; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    ExpectEachOnce(pool, 50);
  }
}

TEST(ThreadPool, WorkerScratchIsNeverShared) {
  ThreadPool pool(8, false);
  std::vector<int64_t> sums(8, 0);
  for (int loop = 0; loop < 500; ++loop) {
    pool.ParallelFor(100,
                     [&](int64_t task, int worker) { sums[static_cast<size_t>(worker)] += task; });
  }
  int64_t total = 0;
  for (const int64_t sum : sums) total += sum;
  EXPECT_EQ(total, 500 * 4950);
}

TEST(ThreadPool, ServesAnotherCaller) {
  ThreadPool pool(2, true);
  ExpectEachOnce(pool, 10);
  std::thread other([&] {
    for (int i = 0; i < 100; ++i) ExpectEachOnce(pool, 10);
  });
  other.join();
}

// A loop must not wait for workers that the busy cores leave no time to wake up.
TEST(ThreadPool, TwoPoolsOnTheSameCoresBothFinish) {
  std::vector<std::thread> callers;
  for (int i = 0; i < 2; ++i) {
    callers.emplace_back([] {
      ThreadPool pool(16, true);
      for (int loop = 0; loop < 300; ++loop) ExpectEachOnce(pool, 33);
    });
  }
  for (std::thread& caller : callers) caller.join();
}

}  // namespace
}  // namespace lacuna::kernels::cpu
