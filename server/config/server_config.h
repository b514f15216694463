// ServerConfig: everything `lacuna serve` can be told, one struct per section, frozen after load.
//
// Each layer owns its struct and its field table; this folder alone reads files, checks what no
// single key can tell, and prints the reference config. Values only: any thread.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/engine_config.h"
#include "kvcache/kv_config.h"
#include "server/admit/admit_options.h"
#include "server/api/api_limits.h"
#include "server/grpc/grpc_options.h"
#include "server/http/http_options.h"
#include "server/sparse/sparse_config.h"

namespace lacuna::server {

struct ModelOptions final {
  std::string path;                  // empty: the embedded recall-12m
  std::string load_format = "auto";  // auto: the folder's files; dummy: random weights
  std::string served_name;           // empty: the folder's name
  std::vector<std::string> aliases;  // further names that requests may use
};

struct DeviceConfig final {
  std::string kind = "auto";       // auto | cpu | cuda
  std::string precision = "bf16";  // of weights and KV: bf16 | f16 | fp32
  int64_t ordinal = 0;             // of the GPU
};

struct CpuOptions final {
  int64_t threads = 0;  // 0: all processors
  bool pin_threads = true;
  std::string isa_max = "auto";  // kernels::cpu::ParseIsa
};

struct LogOptions final {
  std::string level = "info";
  bool json = false;
};

struct ServerConfig final {
  ModelOptions model;
  engine::EngineConfig engine{.step_tokens_max = 0};
  kvcache::KvConfig kv;
  DeviceConfig device;
  CpuOptions cpu;
  HttpOptions http;
  GrpcOptions grpc;
  ApiLimits limits;
  AdmitOptions admit;
  SparseConfig sparse;
  LogOptions log;
};

struct LoadedConfig final {
  ServerConfig config;              // defaults where nothing (valid) was said
  std::vector<std::string> errors;  // one line each, all of them; empty: the config may be used
};

// File, then overrides ("engine.running_max=8"), then the checks across keys. An empty path stands
// for an empty file. Files that keys name must be readable. Error lines read
// "FILE: key: got X, need Y"; those of overrides begin with "--set".
LoadedConfig LoadConfig(const std::string& path, std::span<const std::string> overrides = {});

// The same of a text in memory, without looking at any file; `name` stands for the file's name.
LoadedConfig ParseConfig(std::string_view text, const std::string& name,
                         std::span<const std::string> overrides = {});

// The effective config as commented JSON that LoadConfig reads back to the same values.
std::string PrintConfig(const ServerConfig& config);

// The text of configs/serve.json: every key with meaning, bounds and default.
std::string ReferenceConfig();

// "127.0.0.1", "::1" and "localhost".
bool IsLoopbackHost(std::string_view host);

}  // namespace lacuna::server
