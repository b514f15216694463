#include "engine/model/load_model.h"

#include <algorithm>
#include <cmath>
#include <cstring>

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

// bf16 numbers, uniform in +-sqrt(3 / columns) so that activations keep their size; norms are 1.
class RandomWeights final : public WeightSource {
 public:
  explicit RandomWeights(uint64_t seed) : state_(seed * 2 + 1) {}

  Result<TensorView> Get(const std::string& name, std::initializer_list<int64_t> shape) override {
    const std::vector<int64_t> dims(shape);
    const int64_t columns = dims.back();
    const int64_t count = dims.size() == 1 ? columns : dims[0] * columns;
    values_.resize(static_cast<size_t>(count));
    if (dims.size() == 1) {
      const bool is_norm = name.find("norm") != std::string::npos;
      std::ranges::fill(values_, ToBF16(is_norm ? 1.0f : 0.0f));
      return TensorView(values_.data(), DType::kBF16, {columns});
    }
    const float scale = static_cast<float>(std::sqrt(3.0 / static_cast<double>(columns)) / 32768.0);
    for (BF16& value : values_) {
      state_ = state_ * 6364136223846793005u + 1442695040888963407u;  // Knuth's MMIX generator
      value = ToBF16(static_cast<float>(static_cast<int16_t>(state_ >> 48)) * scale);
    }
    return TensorView(values_.data(), DType::kBF16, {dims[0], columns});
  }

 private:
  uint64_t state_;
  std::vector<BF16> values_;
};

}  // namespace

std::vector<kvcache::KvGroup> MakeKvGroups(const ModelConfig& config) {
  std::vector<kvcache::KvGroup> groups;
  for (size_t layer = 0; layer < config.layer_window.size(); ++layer) {
    const int32_t window = config.layer_window[layer];
    auto group = std::ranges::find(groups, window, &kvcache::KvGroup::window_tokens);
    if (group == groups.end()) {
      groups.push_back({.layers = {},
                        .head_dim = static_cast<int32_t>(config.head_dim),
                        .window_tokens = window});
      group = groups.end() - 1;
    }
    group->layers.push_back({static_cast<int32_t>(layer), static_cast<int32_t>(config.kv_heads)});
  }
  return groups;
}

Result<std::unique_ptr<Model>> LoadModel(const Folder& folder, kernels::Backend& backend,
                                         int64_t context_tokens, bool bf16_rope) {
  LACUNA_ASSIGN_OR_RETURN(ModelConfig config, ReadConfig(folder));
  if (context_tokens > 0) {
    config.context_tokens_max = std::min(config.context_tokens_max, context_tokens);
  }
  config.bf16_rope = bf16_rope;
  const std::string_view architecture = config.family->architecture;
  LACUNA_ASSIGN_OR_RETURN(const std::unique_ptr<Checkpoint> checkpoint, Checkpoint::Open(folder));
  LACUNA_ASSIGN_OR_RETURN(std::unique_ptr<Model> model,
                          Decoder::Create(std::move(config), *checkpoint, backend));
  LACUNA_RETURN_IF_ERROR(checkpoint->CheckAllUsed(architecture));
  return model;
}

Result<std::unique_ptr<Model>> MakeRandomModel(const ModelConfig& config, uint64_t seed,
                                               kernels::Backend& backend) {
  RandomWeights weights(seed);
  return Decoder::Create(config, weights, backend);
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
