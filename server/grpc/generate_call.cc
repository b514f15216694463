#include "server/grpc/generate_call.h"

#include <unistd.h>

#include <algorithm>
#include <boost/asio/post.hpp>
#include <chrono>
#include <utility>

#include "server/api/sparse_fields.h"
#include "server/grpc/call_status.h"
#include "server/grpc/caller.h"
#include "server/grpc/transcode.h"

namespace lacuna::server {
namespace {

constexpr size_t kChunkTextBytesMax = 64 << 10;  // deltas of a slow reader are joined up to this

// The caller's deadline on our clock, if it is near enough to matter.
std::optional<TimePoint> DeadlineOf(const grpc::CallbackServerContext& context) {
  const auto left = context.deadline() - std::chrono::system_clock::now();
  if (left > std::chrono::hours(24)) return std::nullopt;
  return std::chrono::steady_clock::now() + std::chrono::duration_cast<Duration>(left);
}

}  // namespace

bool CallSlots::Take() {
  if (calls_.fetch_add(1) < calls_max_) return true;
  calls_.fetch_sub(1);
  return false;
}

GenerateCall::GenerateCall(ApiContext& api, const GrpcOptions& options, EventThread& events,
                           CallSlots& slots, grpc::CallbackServerContext& context)
    : api_(api),
      options_(options),
      events_(events),
      slots_(slots),
      context_(context),
      stall_(events.io()) {}

grpc::ServerWriteReactor<v1::GenerateResponse>* GenerateCall::Start(
    ApiContext& api, const GrpcOptions& options, EventThread& events, CallSlots& slots,
    grpc::CallbackServerContext& context, const v1::GenerateRequest& request) {
  const auto call = std::make_shared<GenerateCall>(api, options, events, slots, context);
  call->self_ = call;
  const auto begin = [&events, call](ApiResult<std::vector<Choice>> choices) {
    auto held = std::make_shared<ApiResult<std::vector<Choice>>>(std::move(choices));
    boost::asio::post(events.io(), [call, held] { call->Begin(std::move(*held)); });
  };
  const auto fail = [&](ApiError error) {
    begin(std::move(error));
    return call.get();
  };
  call->has_slot_ = slots.Take();
  if (!call->has_slot_) {
    return fail({ErrorKind::kOverloaded, "Too many calls are in flight.", {}});
  }
  ApiResult<Caller> caller = AdmitCall(api, context);
  if (!caller.ok()) return fail(caller.error());
  const bool taken = api.text_workers.Post(
      [call, begin, &request, scope = caller->scope] { begin(call->Prepare(request, scope)); });
  if (!taken) return fail({ErrorKind::kOverloaded, "Too many requests are waiting.", {}});
  return call.get();
}

ApiResult<std::vector<Choice>> GenerateCall::Prepare(const v1::GenerateRequest& request,
                                                     CacheScope scope) {
  if (context_.IsCancelled()) {
    return ApiError{ErrorKind::kDraining, "The call was cancelled.", {}};
  }
  ApiResult<GenerationInput> input = ReadGenerate(api_, request, scope);
  if (!input.ok()) return input.error();
  if (const std::optional<TimePoint> deadline = DeadlineOf(context_)) {
    input->deadline = input->deadline ? std::min(*input->deadline, *deadline) : *deadline;
  }
  auto choices = StartGeneration(api_.engine, api_.tokenizer, *input, &api_.metrics);
  if (!choices.ok()) return FromSubmit(choices.status());
  return std::move(*choices);
}

void GenerateCall::Begin(ApiResult<std::vector<Choice>> result) {
  preparing_ = false;
  if (cut_) return End(*cut_);  // dropping the choices tells the engine
  if (!result.ok()) return Fail(result.error());
  std::vector<Choice> choices = std::move(*result);
  for (Choice& choice : choices) {
    const int fd = ::dup(choice.fd());
    if (fd < 0) {
      return Fail({ErrorKind::kOverloaded, "No descriptor is free; try again later.", {}});
    }
    streams_.push_back(std::make_unique<Stream>(
        Stream{std::move(choice), boost::asio::posix::stream_descriptor(events_.io(), fd)}));
  }
  unfinished_ = streams_.size();
  Pump();
}

void GenerateCall::Pump() {
  if (ended_ || writing_) return;
  if (FillMessage()) {
    Write();
  } else if (pending_error_) {
    Fail(*pending_error_);
  } else if (unfinished_ == 0) {
    End(grpc::Status::OK);
  } else {
    Wait();
  }
}

bool GenerateCall::FillMessage() {
  message_.Clear();
  if (pending_finish_) {
    *message_.mutable_finished() = std::move(*pending_finish_);
    pending_finish_.reset();
    return true;
  }
  // Round robin, so that one fast choice does not starve the others.
  for (size_t i = 0; i < streams_.size() && !pending_error_; ++i) {
    const size_t index = next_stream_;
    next_stream_ = (next_stream_ + 1) % streams_.size();
    TakeDeltas(index);
    if (message_.has_chunk()) return true;
    if (pending_finish_) return FillMessage();
  }
  return false;
}

// Joins what is ready of one choice into message_; its end goes to pending_finish_ or
// pending_error_.
void GenerateCall::TakeDeltas(size_t index) {
  Choice& choice = streams_[index]->choice;
  while (message_.chunk().text().size() < kChunkTextBytesMax) {
    const std::optional<Choice::Delta> delta = choice.Poll();
    if (!delta) return;
    if (!delta->text.empty() || !delta->tokens.empty()) {
      message_.mutable_chunk()->set_index(static_cast<int32_t>(index));
      AppendDelta(api_.tokenizer, *delta, *message_.mutable_chunk());
    }
    if (!delta->outcome) continue;
    --unfinished_;
    if (!delta->outcome->error.ok()) {
      pending_error_ = FromStatus(delta->outcome->error);  // after the text that came before it
      return;
    }
    pending_finish_ = MakeFinished(static_cast<int32_t>(index), *delta->outcome);
    return;
  }
}

void GenerateCall::Wait() {
  for (const std::unique_ptr<Stream>& stream : streams_) {
    if (stream->armed || stream->choice.done()) continue;
    stream->armed = true;
    // The handler holds the call; the stream dies with the call or by End, which cancels the wait.
    stream->readable.async_wait(
        boost::asio::posix::stream_descriptor::wait_read,
        [call = shared_from_this(), raw = stream.get()](const boost::system::error_code& error) {
          if (error || call->ended_) return;
          raw->armed = false;
          call->Pump();
        });
  }
}

void GenerateCall::Write() {
  writing_ = true;
  stall_.expires_after(std::chrono::milliseconds(options_.write_stall_ms));
  stall_.async_wait([call = shared_from_this()](const boost::system::error_code& error) {
    if (!error && call->writing_ && !call->ended_) call->context_.TryCancel();
  });
  StartWrite(&message_);
}

void GenerateCall::OnWriteDone(bool ok) {
  boost::asio::post(events_.io(), [call = shared_from_this(), ok] {
    call->writing_ = false;
    call->stall_.cancel();
    if (call->ended_) return call->Finish(std::move(call->end_status_));
    if (!ok) return call->End({grpc::StatusCode::CANCELLED, "The client went away."});
    call->Pump();
  });
}

void GenerateCall::OnCancel() {
  boost::asio::post(events_.io(), [call = shared_from_this()] {
    if (call->ended_) return;  // the context may be gone
    const bool late = call->context_.deadline() <= std::chrono::system_clock::now();
    call->End(late ? grpc::Status(grpc::StatusCode::DEADLINE_EXCEEDED, "The deadline has passed.")
                   : grpc::Status(grpc::StatusCode::CANCELLED, "The call was cancelled."));
  });
}

void GenerateCall::Fail(const ApiError& error) {
  if (!ended_) End(ToGrpcStatus(error, context_));
}

void GenerateCall::End(grpc::Status status) {
  if (ended_) return;
  if (preparing_) {
    cut_ = std::move(status);
    return;
  }
  ended_ = true;
  streams_.clear();  // choices that still run are cancelled
  if (writing_) {    // gRPC answers OnWriteDone first, soon when the call was cancelled
    end_status_ = std::move(status);
    return;
  }
  stall_.cancel();
  Finish(std::move(status));
}

void GenerateCall::OnDone() {
  // gRPC's last word; handlers in flight on the event thread hold the call a little longer.
  boost::asio::post(events_.io(), [call = std::move(self_)] {
    if (call->has_slot_) call->slots_.Return();
  });
}

}  // namespace lacuna::server
