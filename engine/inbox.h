// Inbox: messages to the engine thread, taken at the top of a step.
//
// Bounded by construction: new requests are counted against the queue limits before they are
// posted, and each live request posts one cancel at most. Any thread posts; the engine thread
// takes. Outlives the engine in the hands of the streams.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <vector>

#include "engine/sequence.h"
#include "kernels/core/ids.h"

namespace lacuna::engine {

struct Message final {
  std::unique_ptr<Sequence> submit;  // or, when empty:
  RequestId cancel;
};

class Inbox final {
 public:
  // Intake is decided and the message posted under one lock: `admit` is called with it held.
  // kUnavailable after Close or CloseIntake.
  template <typename Admit>
  Status PostSubmit(std::unique_ptr<Sequence> sequence, Admit admit) {
    const std::lock_guard lock(mutex_);
    if (!intake_) return {StatusCode::kUnavailable, "the engine accepts no more requests"};
    LACUNA_RETURN_IF_ERROR(admit());
    messages_.push_back({.submit = std::move(sequence), .cancel = {}});
    posted_.notify_one();
    return OkStatus();
  }
  void PostCancel(RequestId id);

  std::vector<Message> Take();
  // Blocks until there is a message or Close was called; false when closed.
  bool WaitForMessage();
  void CloseIntake();
  void Close();

 private:
  std::mutex mutex_;
  std::condition_variable posted_;
  std::vector<Message> messages_;
  bool intake_ = true, closed_ = false;
};

}  // namespace lacuna::engine
