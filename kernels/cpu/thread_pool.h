// ThreadPool: the CPU backend's workers, pinned to cores; the calling thread is worker 0. SEAM.
//
// Workers spin shortly for the next loop, then block: a pool that shares its cores with another
// process must not collapse (OpenMP's spinning barriers do). One thread calls ParallelFor at a
// time.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace lacuna::kernels::cpu {

class ThreadPool final {
 public:
  // threads >= 1, the caller included. pin: worker i to the i-th core that this process may use.
  // The caller of ParallelFor is pinned too unless it is the thread that made the pool: threads
  // that it starts later would inherit the mask.
  ThreadPool(int threads, bool pin);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return threads_; }

  // Calls fn(task, worker) for each task in [0, tasks), each once, handed out dynamically in
  // ascending order; returns when all are done. worker < threads() names the scratch that a task
  // may use.
  template <typename Fn>
  void ParallelFor(int64_t tasks, Fn&& fn) {
    using Plain = std::remove_reference_t<Fn>;
    Run(
        tasks,
        [](void* context, int64_t task, int worker) {
          (*static_cast<Plain*>(context))(task, worker);
        },
        const_cast<void*>(static_cast<const void*>(&fn)));
  }

 private:
  using Task = void (*)(void* context, int64_t task, int worker);
  void Run(int64_t tasks, Task task, void* context);
  void PinCaller();
  void Work(int worker);
  void Drain(int worker);
  uint64_t AwaitLoop(uint64_t seen);

  int threads_;
  bool pin_;
  std::thread::id caller_;  // the last one, so that each is pinned once
  std::vector<std::thread> workers_;
  std::mutex mutex_;
  std::condition_variable wake_;
  // The current loop: written by Run while epoch_ is even and busy_ is 0.
  Task task_ = nullptr;
  void* context_ = nullptr;
  int64_t tasks_ = 0;
  // Odd while a loop is open. A worker counts itself into busy_ first and looks at epoch_ then;
  // Run closes the loop first and looks at busy_ then: so no worker enters a loop that Run has
  // left, and Run never waits for one that did not wake in time.
  alignas(64) std::atomic<uint64_t> epoch_{0};
  std::atomic<bool> stop_{false};
  std::atomic<int> sleeping_{0};
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<int> busy_{0};
};

}  // namespace lacuna::kernels::cpu
