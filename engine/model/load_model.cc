#include "engine/model/load_model.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <system_error>
#include <utility>

#include "engine/loader/checkpoint.h"
#include "engine/loader/mapped_file.h"
#include "engine/model/decoder.h"
#include "engine/model/decoder_weights.h"

namespace lacuna::engine {
namespace {

Result<ModelConfig> ReadConfig(const Folder& folder) {
  LACUNA_ASSIGN_OR_RETURN(const std::unique_ptr<MappedFile> config,
                          folder.Map("config.json", kJsonFileBytesMax));
  const Result<std::unique_ptr<MappedFile>> generation =
      folder.Map("generation_config.json", kJsonFileBytesMax);
  if (!generation.ok() && generation.status().code() != StatusCode::kNotFound) {
    return generation.status();
  }
  return ParseModelConfig(config->text(), generation.ok() ? (*generation)->text() : "");
}

// Matrices uniform in +-sqrt(3 / columns), so that activations keep their size; norms are 1, biases
// 0.
class RandomWeights final : public WeightSource {
 public:
  explicit RandomWeights(uint64_t seed) : seed_(seed) {}

  std::optional<RandomMatrix> Random(const std::string&, int64_t columns) override {
    const double scale = std::sqrt(3.0 / static_cast<double>(columns));
    return RandomMatrix{seed_++, static_cast<float>(scale)};
  }
  Result<TensorView> Get(const std::string& name, std::initializer_list<int64_t> shape) override {
    if (shape.size() != 1) return InternalError(name + ": a matrix without Random");
    const bool is_norm = name.find("norm") != std::string::npos;
    values_.assign(static_cast<size_t>(*shape.begin()), ToBF16(is_norm ? 1.0f : 0.0f));
    return TensorView(values_.data(), DType::kBF16, {*shape.begin()});
  }

 private:
  uint64_t seed_;
  std::vector<BF16> values_;
};

}  // namespace

std::vector<kvcache::KvGroup> MakeKvGroups(const ModelConfig& config, const HeadOrder* heads) {
  std::vector<kvcache::KvGroup> groups;
  const auto add = [&](const kvcache::KvLayer& layer, const kernels::StaticShape& keeps) {
    if (layer.kv_heads == 0) return;
    auto group = std::ranges::find_if(groups, [&](const kvcache::KvGroup& one) {
      return one.window_tokens == keeps.window_tokens && one.sink_tokens == keeps.sink_tokens;
    });
    if (group == groups.end()) {
      groups.push_back({.layers = {},
                        .head_dim = static_cast<int32_t>(config.head_dim),
                        .window_tokens = keeps.window_tokens,
                        .sink_tokens = keeps.sink_tokens});
      group = groups.end() - 1;
    }
    group->layers.push_back(layer);
  };
  const auto kv_heads = static_cast<int32_t>(config.kv_heads);
  for (int32_t layer = 0; layer < static_cast<int32_t>(config.layer_window.size()); ++layer) {
    const int32_t window = config.layer_window[static_cast<size_t>(layer)];
    const int32_t full = heads == nullptr ? kv_heads : heads->full_heads(layer);
    add({layer, full}, {.window_tokens = window});
    if (full == kv_heads) continue;
    kernels::StaticShape keeps = heads->decode_shape();
    keeps.window_tokens = std::max(keeps.window_tokens, heads->prefill_shape().window_tokens);
    add({layer, kv_heads - full, full}, keeps);
  }
  return groups;
}

namespace {

Result<std::unique_ptr<HeadOrder>> OrderOf(const ModelConfig& config,
                                           const kvcache::SparsePlan* residency) {
  if (residency == nullptr) return std::unique_ptr<HeadOrder>();
  const kvcache::AttentionShape& shape = residency->shape;
  if (shape.layers != config.layers || shape.kv_heads != config.kv_heads ||
      shape.q_heads != config.q_heads) {
    return InvalidArgument("residency " + residency->name + ": got a plan of another model");
  }
  for (const kvcache::HeadPlan& head : residency->heads) {
    if (head.role == kvcache::HeadRole::kSpan) {
      return InvalidArgument("residency " + residency->name +
                             ": got heads with spans, need streaming ones: spans grow");
    }
  }
  return std::make_unique<HeadOrder>(*residency);
}

}  // namespace

Result<std::unique_ptr<Model>> LoadModel(const Folder& folder, kernels::Backend& backend,
                                         int64_t context_tokens, bool bf16_rope,
                                         const kvcache::SparsePlan* residency) {
  LACUNA_ASSIGN_OR_RETURN(ModelConfig config, ReadConfig(folder));
  LACUNA_ASSIGN_OR_RETURN(std::unique_ptr<HeadOrder> heads, OrderOf(config, residency));
  if (context_tokens > 0) {
    config.context_tokens_max = std::min(config.context_tokens_max, context_tokens);
  }
  config.bf16_rope = bf16_rope;
  const std::string_view architecture = config.family->architecture;
  LACUNA_ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint, Checkpoint::Open(folder));
  LACUNA_ASSIGN_OR_RETURN(
      std::unique_ptr<Model> model,
      Decoder::Create(std::move(config), *checkpoint, backend, std::move(heads)));
  LACUNA_RETURN_IF_ERROR(checkpoint->CheckAllUsed(architecture));
  return model;
}

Result<ModelConfig> ReadShape(const std::string& path) {
  std::error_code error;
  const bool is_folder = std::filesystem::is_directory(path, error);
  const std::filesystem::path file =
      is_folder ? std::filesystem::path(path) / "config.json" : std::filesystem::path(path);
  const std::string parent = file.has_parent_path() ? file.parent_path().string() : ".";
  LACUNA_ASSIGN_OR_RETURN(const std::unique_ptr<Folder> folder, Folder::Open(parent));
  LACUNA_ASSIGN_OR_RETURN(const std::unique_ptr<MappedFile> text,
                          folder->Map(file.filename().string(), kJsonFileBytesMax));
  return ParseModelConfig(text->text(), "");
}

Result<std::unique_ptr<Model>> MakeRandomModel(ModelConfig config, uint64_t seed,
                                               kernels::Backend& backend, int64_t context_tokens,
                                               const kvcache::SparsePlan* residency) {
  LACUNA_ASSIGN_OR_RETURN(std::unique_ptr<HeadOrder> heads, OrderOf(config, residency));
  if (context_tokens > 0) {
    config.context_tokens_max = std::min(config.context_tokens_max, context_tokens);
  }
  RandomWeights weights(seed);
  return Decoder::Create(std::move(config), weights, backend, std::move(heads));
}

Result<ModelSummary> SummarizeModel(const Folder& folder) {
  ModelSummary summary;
  LACUNA_ASSIGN_OR_RETURN(summary.config, ReadConfig(folder));
  LACUNA_ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint, Checkpoint::Open(folder));
  LACUNA_ASSIGN_OR_RETURN(const DecoderWeights weights,
                          LoadDecoderWeights(summary.config, *checkpoint, nullptr));
  LACUNA_RETURN_IF_ERROR(checkpoint->CheckAllUsed(summary.config.family->architecture));
  summary.info = MakeModelInfo(summary.config);
  summary.info.parameters = weights.parameters;
  summary.info.weight_bytes = checkpoint->bytes();
  summary.groups = MakeKvGroups(summary.config);
  return summary;
}

}  // namespace lacuna::engine
