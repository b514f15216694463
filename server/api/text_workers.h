// TextWorkers: a few threads with a bounded queue for work that depends on request text (JSON,
// templates, tokenizing), so that neither sockets nor the engine wait for it.
//
// Owned by the server. Post may be called from any thread; the destructor runs what is queued.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace lacuna::server {

class TextWorkers final {
 public:
  TextWorkers(int64_t threads, int64_t queue_len_max);
  ~TextWorkers();

  // False when the queue is full: the job was not taken.
  bool Post(std::function<void()> job);

 private:
  void Run();

  const size_t queue_len_max_;
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> queue_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace lacuna::server
