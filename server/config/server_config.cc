#include "server/config/server_config.h"

#include <array>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <system_error>

#include "kernels/core/field_reader.h"
#include "server/config/cross_checks.h"
#include "server/sparse/profile_files.h"

namespace lacuna::server {
namespace {

constexpr int64_t kFileBytesMax = 1 << 20;

const std::vector<Field<ModelOptions>>& ModelFields() {
  using O = ModelOptions;
  static const std::vector<Field<O>> kFields = {
      {"path", "Folder of a Hugging Face model; empty: the embedded recall-12m.", &O::path, 0,
       4096},
      {"load_format",
       "auto: the folder's weights; dummy: random weights of the shape in path (a folder's "
       "config.json, or such a file), with the tokenizer of recall-12m.",
       &O::load_format, 1, 8, "auto|dummy"},
      {"served_name", "Name of the model in requests; empty: the folder's name.", &O::served_name,
       0, 256},
      {"aliases", "Further names that requests may use.", &O::aliases, 0, 64},
  };
  return kFields;
}

const std::vector<Field<DeviceConfig>>& DeviceFields() {
  using O = DeviceConfig;
  static const std::vector<Field<O>> kFields = {
      {"kind",
       "Where the model runs; auto: on the GPU if there is one that works, else on the CPU.",
       &O::kind, 1, 8, "auto|cpu|cuda"},
      {"precision", "Type of weights and KV: bf16 or (GPU) f16 to serve, fp32 to verify.",
       &O::precision, 1, 8, "bf16|f16|fp32"},
      {"ordinal", "Which GPU, as nvidia-smi counts.", &O::ordinal, 0, 63},
  };
  return kFields;
}

const std::vector<Field<CpuOptions>>& CpuFields() {
  using O = CpuOptions;
  static const std::vector<Field<O>> kFields = {
      {"threads", "Threads that compute; 0: one per processor.", &O::threads, 0, 1024},
      {"pin_threads", "Tie each computing thread to one processor.", &O::pin_threads},
      {"isa_max", "Highest instruction set to use; the processor's own is the other limit.",
       &O::isa_max, 1, 16, "auto|scalar|avx2|avx512|avx512_bf16|amx"},
  };
  return kFields;
}

const std::vector<Field<LogOptions>>& LogFields() {
  using O = LogOptions;
  static const std::vector<Field<O>> kFields = {
      {"level", "Least level that is written to stderr.", &O::level, 1, 8,
       "trace|debug|info|warn|error|off"},
      {"json", "One JSON object per line instead of text.", &O::json},
  };
  return kFields;
}

std::vector<BoundSection> Bind(ServerConfig& config) {
  return {
      {"model", "What is served, and under which names.", BindFields(ModelFields(), config.model)},
      {"engine", "Continuous batching: what runs at once, what waits.",
       BindFields(engine::EngineFields(), config.engine)},
      {"kv", "The paged KV cache.", BindFields(kvcache::KvFields(), config.kv)},
      {"device", "What computes, and how exactly.", BindFields(DeviceFields(), config.device)},
      {"cpu", "The CPU backend.", BindFields(CpuFields(), config.cpu)},
      {"http", "The HTTP listener and the limits of its protocol.",
       BindFields(HttpFields(), config.http)},
      {"grpc", "The gRPC listener.", BindFields(GrpcFields(), config.grpc)},
      {"limits", "Bounds of every field of a request, over HTTP and gRPC alike.",
       BindFields(ApiLimitFields(), config.limits)},
      {"admit", "Who may call, and how often.", BindFields(AdmitFields(), config.admit)},
      {"sparse", "Sparse attention: what requests get, and may ask for (docs/profiles.md).",
       BindFields(SparseConfigFields(), config.sparse)},
      {"log", "Logs; they hold no prompt and no key.", BindFields(LogFields(), config.log)},
  };
}

void Read(std::string_view text, const std::string& name, std::span<const std::string> overrides,
          LoadedConfig& loaded) {
  const std::vector<BoundSection> sections = Bind(loaded.config);
  ConfigErrors errors(name);
  if (!text.empty()) {
    const Result<ConfigJson> root = ParseJsonText(text);
    if (root.ok()) {
      ReadSections(*root, sections, errors);
    } else {
      errors.AddLine(root.status().message());
    }
  }
  ConfigErrors override_errors("--set");
  for (const std::string& text_of_one : overrides) {
    ApplyOverride(text_of_one, sections, override_errors);
  }
  // Checks across keys speak of values, so they wait until each value is sound.
  if (errors.lines().empty() && override_errors.lines().empty()) {
    CheckAcrossKeys(loaded.config, errors);
  }
  for (const ConfigErrors* one : {&errors, &override_errors}) {
    loaded.errors.insert(loaded.errors.end(), one->lines().begin(), one->lines().end());
  }
}

// Quoted and escaped, as it would stand in the file.
std::string Quoted(const std::string& text) {
  return ConfigJson(text).dump(-1, ' ', true, ConfigJson::error_handler_t::replace);
}

bool IsReadable(const std::string& path) {
  std::error_code ignored;
  return !std::filesystem::is_directory(path, ignored) && std::ifstream(path).good();
}

// The names of profiles; whether the model can run them shows when it is loaded.
void CheckSparseFiles(const SparseConfig& config, ConfigErrors& errors) {
  if (!config.artefacts.empty() && !IsReadable(config.artefacts)) {
    errors.Add("sparse.artefacts", Quoted(config.artefacts), "a readable file");
  }
  const auto loaded = LoadProfiles(config.profile_dir);
  if (!loaded.ok()) {
    errors.AddLine("sparse.profile_dir: " + loaded.status().message());
    return;
  }
  const auto check = [&](const char* key, const std::string& name) {
    const auto found = loaded->set.Get(name);
    if (found.ok()) return;
    const std::string prefix = name + ": ";  // why a profile of that name is not in the set
    for (const std::string& line : loaded->errors) {
      if (line.starts_with(prefix)) return errors.AddLine(std::string(key) + ": " + line);
    }
    const std::string& text = found.status().message();  // "profile: got X, need Y"
    errors.AddLine(key + text.substr(text.find(':')));
  };
  if (!config.profile.empty() && config.profile != kDenseProfile) {
    check("sparse.profile", config.profile);
  }
  for (const std::string& name : config.profiles) {
    if (name != "all" && name != kDenseProfile) check("sparse.profiles", name);
  }
}

void CheckFiles(const ServerConfig& config, ConfigErrors& errors) {
  CheckSparseFiles(config.sparse, errors);
  std::error_code ignored;
  const std::string& model = config.model.path;
  const bool dummy = config.model.load_format == "dummy";
  const bool is_there = std::filesystem::is_directory(model, ignored) ||
                        (dummy && std::filesystem::is_regular_file(model, ignored));
  if (!model.empty() && !is_there) {
    errors.Add("model.path", Quoted(model), "an existing folder");
  }
  const std::string& keys = config.admit.api_keys_file;
  if (!keys.empty() && !IsReadable(keys)) {
    errors.Add("admit.api_keys_file", Quoted(keys), "a readable file");
  }
}

}  // namespace

LoadedConfig ParseConfig(std::string_view text, const std::string& name,
                         std::span<const std::string> overrides) {
  LoadedConfig loaded;
  Read(text, name, overrides, loaded);
  return loaded;
}

LoadedConfig LoadConfig(const std::string& path, std::span<const std::string> overrides) {
  LoadedConfig loaded;
  ConfigErrors errors(path.empty() ? "defaults" : path);
  std::string text;
  if (!path.empty()) {
    std::error_code error;
    const bool regular = std::filesystem::is_regular_file(path, error);
    std::ifstream file(path, std::ios::binary);
    if (!regular || !file) {
      errors.Add("file", regular ? "no right to read it" : "no such file", "a readable JSON file");
      loaded.errors = errors.lines();
      return loaded;
    }
    // One byte over the limit is enough for ParseJsonText to refuse it.
    text.resize(kFileBytesMax + 1);
    file.read(text.data(), kFileBytesMax + 1);
    text.resize(static_cast<size_t>(file.gcount()));
    if (text.empty()) text = " ";  // an empty file is broken JSON, not "no file"
  }
  Read(text, path.empty() ? "defaults" : path, overrides, loaded);
  if (loaded.errors.empty()) {
    CheckFiles(loaded.config, errors);
    loaded.errors = errors.lines();
  }
  return loaded;
}

std::string PrintConfig(const ServerConfig& config) {
  ServerConfig values = config, defaults;
  return PrintSections(Bind(values), Bind(defaults));
}

std::string ReferenceConfig() {
  return "// Every key of `lacuna serve --config FILE` with its default. Made by `lacuna "
         "print-config`;\n"
         "// a test compares this file with the field tables. Leave out what you do not change.\n" +
         PrintConfig(ServerConfig{});
}

}  // namespace lacuna::server
