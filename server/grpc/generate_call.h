// GenerateCall: one Generate stream, from the request to its Status.
//
// gRPC calls it on its threads; all state is touched on the EventThread only. It keeps itself alive
// until gRPC says OnDone. At most one message is in flight: while the client does not read, deltas
// stay in the engine's bounded queue, and the engine is never held up. A cancelled or expired call
// drops its choices, which the engine sees at the next step.
#pragma once

#include <grpcpp/grpcpp.h>

#include <atomic>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <memory>
#include <optional>
#include <vector>

#include "proto/lacuna/v1/lacuna.pb.h"
#include "server/api/api_context.h"
#include "server/api/generation.h"
#include "server/grpc/event_thread.h"
#include "server/grpc/grpc_options.h"

namespace lacuna::server {

// Counts calls in flight; a call holds one slot.
class CallSlots final {
 public:
  explicit CallSlots(int64_t calls_max) : calls_max_(calls_max) {}
  bool Take();
  void Return() { calls_.fetch_sub(1); }

 private:
  const int64_t calls_max_;
  std::atomic<int64_t> calls_{0};
};

class GenerateCall final : public grpc::ServerWriteReactor<v1::GenerateResponse>,
                           public std::enable_shared_from_this<GenerateCall> {
 public:
  // Starts the call and hands it to gRPC. `request` lives as long as the call.
  static grpc::ServerWriteReactor<v1::GenerateResponse>* Start(
      ApiContext& api, const GrpcOptions& options, EventThread& events, CallSlots& slots,
      grpc::CallbackServerContext& context, const v1::GenerateRequest& request);

  GenerateCall(ApiContext& api, const GrpcOptions& options, EventThread& events, CallSlots& slots,
               grpc::CallbackServerContext& context);

 private:
  struct Stream final {
    Choice choice;
    boost::asio::posix::stream_descriptor readable;  // a dup of the choice's
    bool armed = false;
  };

  void OnWriteDone(bool ok) override;  // these three on gRPC's threads
  void OnCancel() override;
  void OnDone() override;

  // On a text worker. gRPC keeps request and context until Finish, so nothing ends the call before
  // Begin has taken the result.
  ApiResult<std::vector<Choice>> Prepare(const v1::GenerateRequest& request, CacheScope scope);
  void Begin(ApiResult<std::vector<Choice>> choices);
  void Pump();
  bool FillMessage();  // false: nothing is ready
  void TakeDeltas(size_t index);
  void Wait();
  void Write();
  void End(grpc::Status status);
  void Fail(const ApiError& error);

  ApiContext& api_;
  const GrpcOptions& options_;
  EventThread& events_;
  CallSlots& slots_;
  grpc::CallbackServerContext& context_;
  std::shared_ptr<GenerateCall> self_;  // until OnDone
  bool has_slot_ = false;

  std::vector<std::unique_ptr<Stream>> streams_;
  size_t next_stream_ = 0;  // whose turn it is
  v1::GenerateResponse message_;
  std::optional<v1::Finished> pending_finish_;  // sent after the chunk before it
  std::optional<ApiError> pending_error_;       // ends the call after that chunk
  size_t unfinished_ = 0;
  bool preparing_ = true;
  bool writing_ = false;
  bool ended_ = false;
  std::optional<grpc::Status> cut_;  // cancelled while preparing
  grpc::Status end_status_;          // ended while writing
  boost::asio::steady_timer stall_;
};

}  // namespace lacuna::server
