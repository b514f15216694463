// Responder: one generating response in the making, as JSON or as SSE, for one or more choices.
// server/http drives it: wait for a descriptor, Pump, write, until it is complete.
//
// Owned by its connection; one thread at a time. Dropping it cancels what still runs.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "server/api/api_error.h"
#include "server/api/generation.h"
#include "server/api/http_message.h"

namespace lacuna::server {

// Server-sent events, as OpenAI frames them: one "data:" line per event, no id, no retry, no event.
inline constexpr std::string_view kSseDone = "data: [DONE]\n\n";
inline constexpr std::string_view kSsePing = ": ping\n\n";
void AppendSse(const nlohmann::ordered_json& value, std::string& out);

class Responder {
 public:
  // What every response says of itself.
  struct Header final {
    std::string id, object, model, system_fingerprint;
    int64_t created_s = 0;
  };
  struct Shape final {
    bool streaming = false;
    bool include_usage = false;
    bool continuous_usage = false;
    int32_t n = 1;  // choices per prompt; choice index = prompt index * n + i
  };

  Responder(Header header, Shape shape, std::vector<Choice> choices);
  virtual ~Responder() = default;
  Responder(const Responder&) = delete;
  Responder& operator=(const Responder&) = delete;

  bool streaming() const { return shape_.streaming; }
  // One per choice, readable while Pump has something to take; owned by the engine.
  std::vector<int> descriptors() const;

  // The first bytes of a stream; once, and done by Pump when a token is there already.
  void Begin(std::string& out);
  bool begun() const { return begun_; }
  // Takes all that is ready and appends the bytes to send. True when the response is complete: for
  // a stream that had begun, `out` then ends with [DONE]; otherwise Reply holds the answer.
  bool Pump(std::string& out);
  // Ends it now with an error, as an event if the stream has begun.
  void Fail(ApiError error, std::string& out);
  HttpReply Reply();

 protected:
  virtual void OnBegin(std::string& out) = 0;
  virtual void OnDelta(size_t choice, Choice::Delta& delta, std::string& out) = 0;
  virtual nlohmann::ordered_json Choices() = 0;  // of a response that is not a stream

  size_t choice_count() const { return choices_.size(); }
  const Shape& shape() const { return shape_; }
  // Appends one chunk with one choice.
  void AppendChunk(nlohmann::ordered_json choice, std::string& out) const;

 private:
  nlohmann::ordered_json Envelope() const;
  nlohmann::ordered_json UsageJson() const;
  void End(std::string& out);

  const Header header_;
  const Shape shape_;
  std::vector<Choice> choices_;
  std::vector<engine::Usage> usages_;  // one per choice
  std::string sparse_usage_of_;        // of the choices that ended; see GenerationInput
  std::optional<ApiError> error_;
  bool begun_ = false;
  bool complete_ = false;
};

// What a handler gives: an answer, or one that is still being generated.
using HandlerResult = std::variant<HttpReply, std::unique_ptr<Responder>>;

}  // namespace lacuna::server
