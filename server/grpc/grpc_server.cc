#include "server/grpc/grpc_server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/impl/server_builder_option.h>
#include <grpcpp/impl/server_builder_plugin.h>

#include <algorithm>
#include <atomic>
#include <utility>
#include <vector>

#include "proto/lacuna/v1/lacuna.grpc.pb.h"
#include "server/grpc/call_status.h"
#include "server/grpc/caller.h"
#include "server/grpc/event_thread.h"
#include "server/grpc/generate_call.h"
#include "server/grpc/transcode.h"

namespace lacuna::server {
namespace {

// Once loaded, libgrpc++_reflection adds itself to every server of the process.
class WithoutReflection final : public grpc::ServerBuilderOption {
 public:
  void UpdateArguments(grpc::ChannelArguments*) override {}
  void UpdatePlugins(std::vector<std::unique_ptr<grpc::ServerBuilderPlugin>>* plugins) override {
    std::erase_if(*plugins,
                  [](const auto& plugin) { return plugin->name() == "proto_server_reflection"; });
  }
};

class InferenceService final : public v1::Inference::CallbackService {
 public:
  InferenceService(const GrpcOptions& options, ApiContext& api)
      : options_(options), api_(api), slots_(options.calls_max) {}

 private:
  grpc::ServerWriteReactor<v1::GenerateResponse>* Generate(
      grpc::CallbackServerContext* context, const v1::GenerateRequest* request) override {
    return GenerateCall::Start(api_, options_, events_, slots_, *context, *request);
  }

  grpc::ServerUnaryReactor* Tokenize(grpc::CallbackServerContext* context,
                                     const v1::TokenizeRequest* request,
                                     v1::TokenizeResponse* response) override {
    return OnTextWorker(context, [this, request, response]() -> std::optional<ApiError> {
      const auto tokens = ReadTokenize(api_, *request);
      if (!tokens.ok()) return tokens.error();
      response->mutable_ids()->Add(tokens.value().begin(), tokens.value().end());
      return std::nullopt;
    });
  }

  grpc::ServerUnaryReactor* Detokenize(grpc::CallbackServerContext* context,
                                       const v1::DetokenizeRequest* request,
                                       v1::DetokenizeResponse* response) override {
    return OnTextWorker(context, [this, request, response]() -> std::optional<ApiError> {
      const auto ids = ReadDetokenize(api_, *request);
      if (!ids.ok()) return ids.error();
      response->set_text(api_.tokenizer.Decode(ids.value(), request->skip_special_tokens()));
      return std::nullopt;
    });
  }

  grpc::ServerUnaryReactor* GetModel(grpc::CallbackServerContext* context,
                                     const v1::GetModelRequest* request,
                                     v1::GetModelResponse* response) override {
    return OnTextWorker(context, [this, request, response]() -> std::optional<ApiError> {
      auto model = ReadGetModel(api_, *request);
      if (!model.ok()) return model.error();
      *response = std::move(*model);
      return std::nullopt;
    });
  }

  // Admits the call and runs `work` on a text worker; gRPC keeps request and response until Finish.
  template <typename Work>
  grpc::ServerUnaryReactor* OnTextWorker(grpc::CallbackServerContext* context, Work work) {
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    const auto fail = [&](const ApiError& error) {
      reactor->Finish(ToGrpcStatus(error, *context));
      return reactor;
    };
    const ApiResult<Caller> caller = AdmitCall(api_, *context);
    if (!caller.ok()) return fail(caller.error());
    if (!slots_.Take()) {
      return fail({ErrorKind::kOverloaded, "Too many calls are in flight.", {}});
    }
    const bool taken = api_.text_workers.Post([this, context, reactor, work] {
      const std::optional<ApiError> error = work();
      slots_.Return();
      reactor->Finish(error ? ToGrpcStatus(*error, *context) : grpc::Status::OK);
    });
    if (taken) return reactor;
    slots_.Return();
    return fail({ErrorKind::kOverloaded, "Too many requests are waiting.", {}});
  }

  const GrpcOptions options_;
  ApiContext& api_;
  CallSlots slots_;
  EventThread events_;
};

int ToInt(int64_t value) {
  return static_cast<int>(std::min<int64_t>(value, std::numeric_limits<int>::max()));
}

void SetLimits(const GrpcOptions& options, grpc::ServerBuilder& builder) {
  builder.SetMaxReceiveMessageSize(ToInt(options.message_bytes_max));
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS,
                             ToInt(options.streams_per_connection_max));
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             ToInt(options.ping_min_ms));
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, 16 << 10);
  // Two servers on one port would share its clients at random.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  // Only reflection is a synchronous service.
  builder.SetSyncServerOption(grpc::ServerBuilder::NUM_CQS, 1);
  builder.SetSyncServerOption(grpc::ServerBuilder::MIN_POLLERS, 1);
  builder.SetSyncServerOption(grpc::ServerBuilder::MAX_POLLERS, 1);
}

// "::1" needs brackets before a port.
std::string Address(const GrpcOptions& options) {
  const bool bare_ipv6 = options.host.find(':') != std::string::npos && options.host[0] != '[';
  return (bare_ipv6 ? "[" + options.host + "]" : options.host) + ":" + std::to_string(options.port);
}

}  // namespace

struct GrpcServer::Parts final {
  Parts(const GrpcOptions& options, ApiContext& context)
      : api(context), service(options, context) {}

  ApiContext& api;
  InferenceService service;
  int port = 0;
  std::unique_ptr<grpc::Server> server;  // first to go: its calls stand on the service
};

GrpcServer::GrpcServer(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}

Result<std::unique_ptr<GrpcServer>> GrpcServer::Start(const GrpcOptions& options, ApiContext& api) {
  auto parts = std::make_unique<Parts>(options, api);
  grpc::EnableDefaultHealthCheckService(true);
  // Plugins are taken over when a builder is made.
  if (options.reflection) grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  grpc::ServerBuilder builder;
  if (!options.reflection) builder.SetOption(std::make_unique<WithoutReflection>());
  SetLimits(options, builder);
  builder.AddListeningPort(Address(options), grpc::InsecureServerCredentials(), &parts->port);
  builder.RegisterService(&parts->service);
  parts->server = builder.BuildAndStart();
  if (parts->server == nullptr || parts->port == 0) {
    return Status(StatusCode::kUnavailable, "grpc: cannot listen on " + Address(options) +
                                                " (port in use, or no such address)");
  }
  auto server = std::unique_ptr<GrpcServer>(new GrpcServer(std::move(parts)));
  server->SetServing(true);
  return server;
}

GrpcServer::~GrpcServer() { Shutdown(TimePoint::min()); }

int GrpcServer::port() const { return parts_->port; }

void GrpcServer::SetServing(bool serving) {
  grpc::HealthCheckServiceInterface* health = parts_->server->GetHealthCheckService();
  for (const char* name : {"", "lacuna.v1.Inference", "readiness"}) {
    health->SetServingStatus(name, serving);
  }
  health->SetServingStatus("liveness", true);
}

void GrpcServer::BeginDrain() {
  SetServing(false);
  parts_->api.draining.store(true, std::memory_order_relaxed);
}

void GrpcServer::Shutdown(TimePoint until) {
  const auto left =
      until == TimePoint::min() ? Duration::zero() : until - std::chrono::steady_clock::now();
  parts_->server->Shutdown(std::chrono::system_clock::now() +
                           std::chrono::duration_cast<std::chrono::system_clock::duration>(
                               std::max(left, Duration::zero())));
}

}  // namespace lacuna::server
