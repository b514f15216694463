#include "server/commands/serve_command.h"

#include <pthread.h>
#include <signal.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <utility>

#include "engine/assemble.h"
#include "engine/model/load_model.h"
#include "server/api/api_context.h"
#include "server/commands/device_options.h"
#include "server/commands/served_model.h"
#include "server/commands/sparse_setup.h"
#include "server/commands/version.h"
#include "server/config/server_config.h"
#include "server/grpc/grpc_server.h"
#include "server/http/http_server.h"

namespace lacuna::server {
namespace {

constexpr int kExitConfig = 2;
constexpr int kExitModel = 4;
constexpr int kExitDevice = 5;
constexpr uint64_t kDummySeed = 1;

sigset_t HandledSignals() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&set, signal);
  return set;
}

std::vector<std::string> Overrides(const ServeOptions& options) {
  std::vector<std::string> all = options.overrides;
  const std::pair<const char*, const std::string*> values[] = {
      {"model.path=", &options.model},
      {"model.load_format=", &options.load_format},
      {"device.kind=", &options.device},
      {"device.precision=", &options.precision},
      {"sparse.profile=", &options.sparse_profile},
  };
  for (const auto& [key, value] : values) {
    if (!value->empty()) all.push_back(key + *value);
  }
  if (!options.host.empty()) {
    all.push_back("http.host=" + options.host);
    all.push_back("grpc.host=" + options.host);
  }
  if (options.port) all.push_back("http.port=" + std::to_string(*options.port));
  if (options.grpc_port) all.push_back("grpc.port=" + std::to_string(*options.grpc_port));
  return all;
}

// Logs go to stderr: stdout carries the ready line alone.
void SetUpLog(const LogOptions& options) {
  auto logger =
      std::make_shared<spdlog::logger>("lacuna", std::make_shared<spdlog::sinks::stderr_sink_mt>());
  logger->set_level(spdlog::level::from_str(options.level));
  logger->set_pattern(options.json
                          ? R"({"time":"%Y-%m-%dT%H:%M:%S.%e%z","level":"%l","message":"%v"})"
                          : "%Y-%m-%d %H:%M:%S.%e %l %v");
  logger->flush_on(spdlog::level::info);
  spdlog::set_default_logger(std::move(logger));
}

Result<std::unique_ptr<kernels::Backend>> BackendFrom(const ServerConfig& config) {
  kernels::BackendOptions options;
  options.deterministic = config.engine.deterministic;
  options.device_ordinal = static_cast<int>(config.device.ordinal);
  options.threads = static_cast<int>(config.cpu.threads);
  options.pin_threads = config.cpu.pin_threads;
  options.isa_max = config.cpu.isa_max;
  return MakeBackendFor({.device = config.device.kind, .precision = config.device.precision},
                        std::move(options));
}

// Everything that stands behind the listeners, in the order in which it may be torn down (last
// first).
struct Stack final {
  SteadyClock clock;
  ServedModel served;
  std::unique_ptr<SparseService> sparse;
  engine::Assembly assembly;
  std::unique_ptr<Admit> admit;
  std::unique_ptr<Metrics> metrics;
  std::unique_ptr<TextWorkers> text_workers;
  std::unique_ptr<ApiContext> api;
};

int64_t UnixSeconds() {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  return std::chrono::duration_cast<std::chrono::seconds>(now).count();
}

std::unique_ptr<ApiContext> MakeApiContext(const ServerConfig& config, Stack& stack) {
  engine::Engine& engine = *stack.assembly.engine;
  const std::string name =
      config.model.served_name.empty() ? stack.served.name : config.model.served_name;
  stack.metrics = std::make_unique<Metrics>(name, [&engine, page_tokens = config.kv.page_tokens] {
    return EngineReading{&engine.stats(), engine.page_counts(), page_tokens};
  });
  stack.text_workers =
      std::make_unique<TextWorkers>(config.limits.text_workers, config.limits.text_queue_len_max);
  const engine::ModelInfo& info = stack.assembly.model->info();
  return std::unique_ptr<ApiContext>(new ApiContext{
      .engine = engine,
      .tokenizer = *stack.served.tokenizer,
      .chat_template = stack.served.chat_template.get(),
      .admit = *stack.admit,
      .metrics = *stack.metrics,
      .text_workers = *stack.text_workers,
      .limits = config.limits,
      .sparse = stack.sparse.get(),
      .model_name = name,
      .aliases = config.model.aliases,
      .bos_token = stack.served.bos_token,
      .eos_token = stack.served.eos_token,
      .vocab_size = info.vocab_size,
      .created_s = UnixSeconds(),
      .system_fingerprint =
          SystemFingerprint(info.architecture, info.weight_bytes, stack.assembly.backend->name()),
      .version = std::string(kVersion),
  });
}

// What is known of a model before its weights are there.
struct OpenedModel final {
  // Of the folder, or random weights of a shape. The plan is AssemblyOptions.residency.
  std::function<Result<std::unique_ptr<engine::Model>>(kernels::Backend&,
                                                       const kvcache::SparsePlan*)>
      load;
  engine::ModelConfig shape;
  std::optional<ArtefactText> artefacts;
};

Result<OpenedModel> OpenModel(const ModelOptions& model, int64_t context_tokens,
                              ServedModel& served) {
  const bool dummy = model.load_format == "dummy";
  LACUNA_ASSIGN_OR_RETURN(std::shared_ptr<engine::Folder> folder,
                          OpenModelFolder(dummy ? "" : model.path));
  LACUNA_ASSIGN_OR_RETURN(served, LoadServedModel(*folder));
  OpenedModel opened;
  if (!dummy) {
    LACUNA_ASSIGN_OR_RETURN(opened.shape, FolderShape(*folder));
    LACUNA_ASSIGN_OR_RETURN(opened.artefacts, FolderArtefacts(*folder));
    opened.load = [folder = std::move(folder), context_tokens](auto& backend, auto* residency) {
      return engine::LoadModel(*folder, backend, context_tokens, /*bf16_rope=*/false, residency);
    };
    return opened;
  }
  LACUNA_ASSIGN_OR_RETURN(opened.shape, engine::ReadShape(model.path));
  served.name = std::filesystem::path(model.path).stem().string();
  opened.load = [shape = opened.shape, context_tokens](auto& backend, auto* residency) {
    return engine::MakeRandomModel(shape, kDummySeed, backend, context_tokens, residency);
  };
  return opened;
}

Result<std::unique_ptr<SparseService>> MakeSparse(const ServerConfig& config,
                                                  int64_t step_tokens_max, OpenedModel& model,
                                                  const kernels::Backend& backend) {
  return MakeSparseService(config.sparse,
                           {.shape = AttentionShapeOf(model.shape, config.kv.page_tokens),
                            .artefacts = std::move(model.artefacts),
                            .has_sparse_ops = backend.has_sparse_ops(),
                            .backend = std::string(backend.name()),
                            .kv_element_bytes = config.device.precision == "fp32" ? 4 : 2,
                            .step_tokens_max = step_tokens_max});
}

int ExitCodeOf(const Status& status) {
  const bool device =
      status.code() == StatusCode::kExhausted || status.code() == StatusCode::kUnavailable;
  return device ? kExitDevice : kExitModel;
}

// The engine's options as the device has them. More sequences than a CPU's default step holds make
// it longer.
engine::EngineConfig EngineOptions(const ServerConfig& config, kernels::Backend& backend) {
  engine::EngineConfig engine = config.engine;
  if (engine.step_tokens_max > 0) return engine;
  const bool cpu = backend.device().kind() == kernels::DeviceKind::kCpu;
  engine.step_tokens_max =
      std::max(cpu ? engine::kStepTokensOfCpu : engine::kStepTokensOfDevice, engine.running_max);
  return engine;
}

// 0, or the exit code; the line was told.
int Load(const ServerConfig& config, const ServeOptions& options, Stack& stack, std::ostream& err) {
  const auto fail = [&err](int code, const Status& status) {
    err << "lacuna: " << status.message() << std::endl;
    return code;
  };
  auto admit = Admit::Create(config.admit, stack.clock);
  if (!admit.ok()) return fail(kExitConfig, admit.status());
  stack.admit = std::move(*admit);

  auto model = OpenModel(config.model, config.engine.context_tokens_max, stack.served);
  if (!model.ok()) return fail(kExitModel, model.status());
  auto backend = BackendFrom(config);
  if (!backend.ok()) return fail(ExitCodeOf(backend.status()), backend.status());
  const engine::EngineConfig engine = EngineOptions(config, **backend);
  auto sparse = MakeSparse(config, engine.step_tokens_max, *model, **backend);
  if (!sparse.ok()) {
    err << (options.config.empty() ? "defaults" : options.config) << ": "
        << sparse.status().message() << std::endl;
    return kExitConfig;
  }
  stack.sparse = std::move(*sparse);
  const auto load = [&](kernels::Backend& device) {
    return model->load(device, stack.sparse->residency().get());
  };
  auto assembly = engine::Assemble(std::move(*backend), load,
                                   {.engine = engine,
                                    .kv = config.kv,
                                    .plans = stack.sparse->plans(),
                                    .residency = stack.sparse->residency(),
                                    .wrap_runner = options.wrap_runner},
                                   stack.clock);
  if (!assembly.ok()) return fail(ExitCodeOf(assembly.status()), assembly.status());
  stack.assembly = std::move(*assembly);
  const int64_t vocab_size = stack.assembly.model->info().vocab_size;
  if (stack.served.tokenizer->vocab_size() > vocab_size) {
    return fail(
        kExitModel,
        InvalidArgument("tokenizer.json: expected ids under " + std::to_string(vocab_size) +
                        ", found " + std::to_string(stack.served.tokenizer->vocab_size() - 1)));
  }
  stack.api = MakeApiContext(config, stack);
  return 0;
}

void LogStart(const Stack& stack) {
  const engine::ModelInfo& info = stack.assembly.model->info();
  int64_t pages = 0;
  for (const engine::PageCounts& group : stack.assembly.engine->page_counts()) pages += group.total;
  spdlog::info("model {} ({}), {:.1f} M parameters, context {} tokens", stack.api->model_name,
               info.architecture, static_cast<double>(info.parameters) / 1e6,
               stack.assembly.engine->context_tokens_max());
  spdlog::info("backend {}, {} threads; KV {} pages, {:.1f} MiB", stack.assembly.backend->name(),
               stack.assembly.backend->threads(), pages,
               static_cast<double>(stack.assembly.storage->bytes()) / 0x1p20);
  LogSparse(*stack.sparse);
  if (stack.api->chat_template == nullptr) {
    spdlog::warn("the model has no chat template: /v1/chat/completions answers 400");
  }
}

// Waits for a signal that ends the service, or for the engine's end. False: the engine failed.
bool WaitForEnd(Stack& stack) {
  const sigset_t signals = HandledSignals();
  const timespec poll{.tv_sec = 0, .tv_nsec = 200'000'000};
  while (true) {
    const int signal = sigtimedwait(&signals, nullptr, &poll);
    if (signal == SIGTERM || signal == SIGINT) return true;
    if (signal == SIGHUP) {
      const Status reloaded = stack.admit->Reload();
      if (reloaded.ok()) {
        spdlog::info("key file read again");
      } else {
        spdlog::error("key file: {}; the old keys stay", reloaded.message());
      }
    }
    if (!stack.assembly.engine->healthy()) return false;
  }
}

// From here on a second signal ends the process at once.
void EndOnSecondSignal() {
  struct sigaction action {};
  action.sa_handler = [](int) { _exit(1); };
  for (const int signal : {SIGTERM, SIGINT}) sigaction(signal, &action, nullptr);
  const sigset_t signals = HandledSignals();
  pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
}

}  // namespace

int RunServe(const ServeOptions& options, std::ostream& out, std::ostream& err) {
  const LoadedConfig loaded = LoadConfig(options.config, Overrides(options));
  if (!loaded.errors.empty()) {
    for (const std::string& error : loaded.errors) err << error << std::endl;
    return kExitConfig;
  }
  const ServerConfig& config = loaded.config;
  SetUpLog(config.log);
  // Before any thread starts, so that all inherit the mask and only this one takes signals.
  const sigset_t signals = HandledSignals();
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);
  setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);  // its failures come back as a Status

  Stack stack;
  if (const int code = Load(config, options, stack, err); code != 0) return code;
  stack.assembly.engine->Start();
  auto http = HttpServer::Start(config.http, *stack.api);
  if (!http.ok()) {
    err << "lacuna: " << http.status().message() << std::endl;
    return kExitConfig;
  }
  std::unique_ptr<GrpcServer> grpc;
  if (config.grpc.enabled) {
    auto started = GrpcServer::Start(config.grpc, *stack.api);
    if (!started.ok()) {
      err << "lacuna: " << started.status().message() << std::endl;
      return kExitConfig;
    }
    grpc = std::move(*started);
  }
  stack.metrics->SetReady(true);
  LogStart(stack);
  out << "ready http://" << config.http.host << ":" << (*http)->port();
  if (grpc != nullptr) out << " grpc://" << config.grpc.host << ":" << grpc->port();
  out << std::endl;

  const bool healthy = WaitForEnd(stack);
  EndOnSecondSignal();
  const TimePoint until = stack.clock.Now() + std::chrono::milliseconds(config.http.drain_ms);
  spdlog::info("draining, up to {} ms", config.http.drain_ms);
  stack.metrics->SetReady(false);
  if (grpc != nullptr) grpc->BeginDrain();
  (*http)->BeginDrain();
  stack.assembly.engine->Drain();
  if (healthy) (*http)->WaitIdle(until);
  if (grpc != nullptr) grpc->Shutdown(until);
  const int cut = (*http)->Stop();
  stack.assembly.engine->Stop();
  if (cut > 0) spdlog::warn("{} requests were cut at the end of the drain time", cut);
  return healthy ? 0 : kExitDevice;
}

}  // namespace lacuna::server
