// Generation: the one place where validated parameters become engine requests and engine events
// become text. HTTP and gRPC both stand on it.
//
// StartGeneration may be called from any thread. A Choice belongs to its response and is used by
// one thread at a time; dropping it before its outcome cancels the request.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "engine/engine.h"
#include "engine/event.h"
#include "engine/request.h"
#include "engine/sample/params.h"
#include "kernels/core/clock.h"
#include "kernels/core/ids.h"
#include "kernels/core/status.h"
#include "server/text/detokenizer.h"
#include "server/text/stop_matcher.h"
#include "server/text/tokenizer.h"

namespace lacuna::server {

class Metrics;  // server/metrics/metrics.h

struct GenerationInput final {
  std::vector<TokenId> prompt;
  // max_tokens 0 asks for prompt_logprobs only. sampling.seed counts when has_seed.
  engine::SamplingParams sampling;
  bool has_seed = false;  // false: a random seed
  int32_t n = 1;          // choice i samples with seed + i
  std::vector<std::string> stop;
  bool include_stop = false;  // leave the matched stop string in the text
  bool skip_special_tokens = true;
  bool clamp_max_tokens = true;  // false: prompt + max_tokens over the context is kTooLong
  int32_t prompt_logprobs = -1;  // of choice 0 only; see engine::Request
  int32_t priority = 0;
  std::optional<TimePoint> deadline;
  CacheScope scope;
  engine::SparseOptions sparse;
  std::string sparse_usage_of;  // the profile's name, when its usage is to be told; else empty
};

// How a choice ended.
struct Outcome final {
  Status error;               // not ok: it failed, and finish_reason is empty
  std::string finish_reason;  // "stop" | "length"
  std::string matched_stop;   // the stop string that ended it
  TokenId stop_token = -1;    // the eos or stop token that ended it
  engine::Usage usage;
  std::string sparse_usage_of;  // see GenerationInput
  engine::Timing timing;
};

class Choice final {
 public:
  Choice(engine::RequestStream stream, const Tokenizer& tokenizer, const GenerationInput& input,
         Metrics* metrics);
  ~Choice();
  Choice(Choice&&) noexcept;
  Choice& operator=(Choice&&) = delete;

  struct Delta final {
    std::string text;  // final: whole code points, nothing that may become a stop string
    std::vector<TokenId> tokens;
    std::vector<engine::TokenLogprob> logprobs;
    std::optional<engine::PromptLogprobsEvent> prompt_logprobs;
    std::optional<Outcome> outcome;  // in the last delta, and only there
  };
  // The next delta, or nothing when none is ready or the outcome was read.
  std::optional<Delta> Poll();
  // Blocks until a delta is ready or `until` has passed.
  std::optional<Delta> Wait(TimePoint until);
  // Readable while Poll may have something; owned by the engine: dup it, never close it.
  int fd() const { return stream_.fd(); }
  // The outcome still comes, with the error kCancelled.
  void Cancel() { stream_.Cancel(); }
  bool done() const { return done_; }

 private:
  Delta OnEvent(engine::Event event);
  void OnToken(engine::TokenEvent event, Delta& delta);
  void OnTerminal(Outcome outcome, Delta& delta);

  engine::RequestStream stream_;
  Detokenizer detokenizer_;
  StopMatcher stop_matcher_;
  Metrics* metrics_;  // null once moved from or done
  int64_t min_tokens_;
  std::string sparse_usage_of_;
  int64_t tokens_ = 0;
  bool stopped_ = false;  // a stop string was met; the engine has been told to cancel
  std::string matched_stop_;
  TimePoint last_token_{};
  bool done_ = false;
};

// Submits n requests, all of them or none. `tokenizer` and `metrics` (may be null) must outlive
// the choices. kTooLong: the context cannot hold the prompt; kExhausted, kUnavailable: see
// Engine::Submit; kInvalidArgument: a token id outside the vocabulary.
Result<std::vector<Choice>> StartGeneration(engine::Engine& engine, const Tokenizer& tokenizer,
                                            const GenerationInput& input, Metrics* metrics);

}  // namespace lacuna::server
