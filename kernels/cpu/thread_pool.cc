#include "kernels/cpu/thread_pool.h"

#include <immintrin.h>
#include <sched.h>

#include <chrono>

#include "kernels/core/check.h"

namespace lacuna::kernels::cpu {
namespace {

// Longer than the serial stretch between two ops of a decode step, far shorter than a time slice.
constexpr std::chrono::microseconds kSpin{60};
constexpr int kPausesPerLook = 32;

// Pins the calling thread to the index-th core of its mask; a refusal costs speed only.
void PinTo(int index) {
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return;
  const int cores = CPU_COUNT(&allowed);
  if (cores <= 1) return;
  int skip = index % cores;
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (!CPU_ISSET(core, &allowed) || skip-- > 0) continue;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(core, &one);
    sched_setaffinity(0, sizeof(one), &one);
    return;
  }
}

}  // namespace

ThreadPool::ThreadPool(int threads, bool pin)
    : threads_(threads), pin_(pin), caller_(std::this_thread::get_id()) {
  LACUNA_CHECK(threads >= 1);
  workers_.reserve(static_cast<size_t>(threads - 1));
  for (int worker = 1; worker < threads; ++worker) {
    workers_.emplace_back([this, worker] { Work(worker); });
  }
}

ThreadPool::~ThreadPool() {
  {
    const std::lock_guard lock(mutex_);
    stop_.store(true);
  }
  wake_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::PinCaller() {
  if (!pin_ || std::this_thread::get_id() == caller_) return;
  caller_ = std::this_thread::get_id();
  PinTo(0);
}

void ThreadPool::Run(int64_t tasks, Task task, void* context) {
  if (threads_ == 1 || tasks <= 1) {
    for (int64_t i = 0; i < tasks; ++i) task(context, i, 0);
    return;
  }
  PinCaller();
  task_ = task;
  context_ = context;
  tasks_ = tasks;
  next_.store(0, std::memory_order_relaxed);
  epoch_.fetch_add(1);  // opens the loop
  if (sleeping_.load() > 0) {
    // The empty critical section orders this behind a worker that is about to sleep.
    { const std::lock_guard lock(mutex_); }
    wake_.notify_all();
  }
  Drain(0);
  epoch_.fetch_add(1);  // closes it
  for (int looks = 0; busy_.load() != 0; ++looks) {
    if (looks < 4096) {
      _mm_pause();
    } else {
      sched_yield();  // the worker may be waiting for this very core
    }
  }
}

void ThreadPool::Drain(int worker) {
  const int64_t tasks = tasks_;
  for (int64_t i = next_.fetch_add(1); i < tasks; i = next_.fetch_add(1)) {
    task_(context_, i, worker);
  }
}

// Returns the epoch of an open loop other than `seen`, or `seen` when the pool stops.
uint64_t ThreadPool::AwaitLoop(uint64_t seen) {
  const auto is_new = [&](uint64_t epoch) { return (epoch & 1) != 0 && epoch != seen; };
  const auto spin_end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < kPausesPerLook; ++i) {
      const uint64_t epoch = epoch_.load(std::memory_order_relaxed);
      if (is_new(epoch)) return epoch;
      _mm_pause();
    }
  } while (!stop_.load(std::memory_order_relaxed) && std::chrono::steady_clock::now() < spin_end);

  std::unique_lock lock(mutex_);
  sleeping_.fetch_add(1);
  wake_.wait(lock, [&] { return stop_.load() || is_new(epoch_.load()); });
  sleeping_.fetch_sub(1);
  return stop_.load() ? seen : epoch_.load();
}

void ThreadPool::Work(int worker) {
  if (pin_) PinTo(worker);
  uint64_t seen = 0;
  while (true) {
    const uint64_t epoch = AwaitLoop(seen);
    if (epoch == seen) return;
    busy_.fetch_add(1);
    const uint64_t now = epoch_.load();
    if ((now & 1) != 0) {
      Drain(worker);
      seen = now;
    }
    busy_.fetch_sub(1);
  }
}

}  // namespace lacuna::kernels::cpu
