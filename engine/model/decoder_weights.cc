#include "engine/model/decoder_weights.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <span>

#include "kernels/ops/ops.h"

namespace lacuna::engine {
namespace {

using kernels::Backend;

float ElementAt(const TensorView& tensor, int64_t index) {
  switch (tensor.dtype()) {
    case DType::kBF16:
      return ToFloat(tensor.as<const BF16>()[index]);
    case DType::kF16:
      return ToFloat(tensor.as<const F16>()[index]);
    default:
      return tensor.as<const float>()[index];
  }
}

// Rows of a matrix that is stored under one name.
struct Part final {
  std::string name;  // without ".weight"
  int64_t rows = 0;
};

class WeightLoader final {
 public:
  WeightLoader(const ModelConfig& config, WeightSource& source, Backend* backend,
               const HeadOrder* heads)
      : config_(config), source_(source), backend_(backend), heads_(heads) {}

  Result<DecoderWeights> Load();

 private:
  Status LoadLayer(int64_t index, DecoderLayer& layer);
  // Channels of the layer's query and key/value heads, in the order in which they are loaded.
  void OrderChannels(int64_t layer);
  Status LoadAttention(const std::string& prefix, DecoderLayer& layer);
  Status LoadMlp(const std::string& prefix, DecoderLayer& layer);
  // `rows`, `column_order`: which stored ones are loaded, in order; empty: as stored.
  Status LoadLinear(std::span<const Part> parts, int64_t columns, bool bias, Linear& out,
                    std::span<const int64_t> row_order = {},
                    std::span<const int64_t> column_order = {});
  Status LoadNorm(const std::string& name, int64_t dim, Parameter& out,
                  std::span<const int64_t> order = {});
  Status LoadEmbedding();
  Status MakeRandomEmbedding(const RandomMatrix& random);
  Status LoadHead();
  // Stacks the parts; a single one needs no copy.
  Result<TensorView> Stack(std::span<const Part> parts, int64_t columns);
  TensorView Ordered(const TensorView& weight, std::span<const int64_t> row_order,
                     std::span<const int64_t> column_order);
  // f32 on the device.
  Status Upload(std::span<const float> values, Parameter& out);
  Status UploadBytes(const void* data, int64_t bytes, Parameter& out);

  const ModelConfig& config_;
  WeightSource& source_;
  Backend* backend_;
  const HeadOrder* heads_;
  std::vector<int64_t> q_channels_, kv_channels_, qkv_channels_;  // of the layer; empty: as stored
  DecoderWeights weights_;
  std::vector<std::byte> stacked_, ordered_;  // of the matrix that is being prepared
  kernels::Stream stream_;
};

Status WeightLoader::UploadBytes(const void* data, int64_t bytes, Parameter& out) {
  LACUNA_ASSIGN_OR_RETURN(out.memory, backend_->device().Allocate(bytes));
  weights_.bytes += bytes;
  LACUNA_RETURN_IF_ERROR(backend_->device().Copy(out.memory.data(), data, bytes, stream_));
  return backend_->device().Synchronize(stream_);  // `data` may go away
}

Status WeightLoader::Upload(std::span<const float> values, Parameter& out) {
  LACUNA_RETURN_IF_ERROR(
      UploadBytes(values.data(), static_cast<int64_t>(values.size_bytes()), out));
  out.view = TensorView(out.memory.data(), DType::kF32, {static_cast<int64_t>(values.size())});
  return OkStatus();
}

Status WeightLoader::LoadNorm(const std::string& name, int64_t dim, Parameter& out,
                              std::span<const int64_t> order) {
  LACUNA_ASSIGN_OR_RETURN(const TensorView stored, source_.Get(name + ".weight", {dim}));
  weights_.parameters += dim;
  if (backend_ == nullptr) return OkStatus();
  std::vector<float> values(static_cast<size_t>(dim));
  for (int64_t i = 0; i < dim; ++i) {
    values[static_cast<size_t>(i)] =
        ElementAt(stored, order.empty() ? i : order[static_cast<size_t>(i)]) +
        (config_.family->norm_adds_one ? 1.0f : 0.0f);
  }
  return Upload(values, out);
}

Result<TensorView> WeightLoader::Stack(std::span<const Part> parts, int64_t columns) {
  if (parts.size() == 1) return source_.Get(parts[0].name + ".weight", {parts[0].rows, columns});
  int64_t rows = 0;
  for (const Part& part : parts) rows += part.rows;
  DType dtype = DType::kF32;
  int64_t filled = 0;
  for (const Part& part : parts) {
    LACUNA_ASSIGN_OR_RETURN(const TensorView stored,
                            source_.Get(part.name + ".weight", {part.rows, columns}));
    if (filled > 0 && stored.dtype() != dtype) {
      return InvalidArgument("tensor " + part.name + ".weight: expected " +
                             std::string(DTypeName(dtype)) + " as the tensors it is fused with, " +
                             "found " + std::string(DTypeName(stored.dtype())));
    }
    dtype = stored.dtype();
    if (backend_ != nullptr) {
      stacked_.resize(static_cast<size_t>(rows * columns) * DTypeBytes(dtype));
      std::memcpy(stacked_.data() + static_cast<size_t>(filled * columns) * DTypeBytes(dtype),
                  stored.data(), static_cast<size_t>(stored.elements()) * DTypeBytes(dtype));
    }
    filled += part.rows;
  }
  return TensorView(stacked_.data(), dtype, {rows, columns});
}

TensorView WeightLoader::Ordered(const TensorView& weight, std::span<const int64_t> row_order,
                                 std::span<const int64_t> column_order) {
  if (row_order.empty() && column_order.empty()) return weight;
  const int64_t rows = weight.dim(0), columns = weight.dim(1);
  const auto bytes = static_cast<int64_t>(DTypeBytes(weight.dtype()));
  ordered_.resize(static_cast<size_t>(rows * columns * bytes));
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t from = row_order.empty() ? row : row_order[static_cast<size_t>(row)];
    const std::byte* stored = weight.as<const std::byte>() + from * columns * bytes;
    std::byte* to = ordered_.data() + row * columns * bytes;
    if (column_order.empty()) {
      std::memcpy(to, stored, static_cast<size_t>(columns * bytes));
      continue;
    }
    for (const int64_t column : column_order) {
      std::memcpy(to, stored + column * bytes, static_cast<size_t>(bytes));
      to += bytes;
    }
  }
  return TensorView(ordered_.data(), weight.dtype(), {rows, columns});
}

Status WeightLoader::LoadLinear(std::span<const Part> parts, int64_t columns, bool bias,
                                Linear& out, std::span<const int64_t> row_order,
                                std::span<const int64_t> column_order) {
  int64_t rows = 0;
  for (const Part& part : parts) rows += part.rows;
  weights_.parameters += rows * columns;
  const std::optional<RandomMatrix> random = source_.Random(parts[0].name, columns);
  if (random && backend_ != nullptr) {
    LACUNA_ASSIGN_OR_RETURN(
        out.weight, backend_->PrepareRandomMatrix(rows, columns, random->seed, random->scale));
  } else if (!random) {
    LACUNA_ASSIGN_OR_RETURN(const TensorView weight, Stack(parts, columns));
    if (backend_ != nullptr) {
      LACUNA_ASSIGN_OR_RETURN(
          out.weight, kernels::PrepareMatrix(*backend_, Ordered(weight, row_order, column_order)));
    }
  }
  if (backend_ != nullptr) weights_.bytes += out.weight->bytes();
  if (!bias) return OkStatus();
  std::vector<float> values;
  for (const Part& part : parts) {
    LACUNA_ASSIGN_OR_RETURN(const TensorView stored, source_.Get(part.name + ".bias", {part.rows}));
    for (int64_t i = 0; i < part.rows; ++i) values.push_back(ElementAt(stored, i));
  }
  weights_.parameters += static_cast<int64_t>(values.size());
  if (!row_order.empty()) {
    const std::vector<float> stored = values;
    for (size_t i = 0; i < values.size(); ++i)
      values[i] = stored[static_cast<size_t>(row_order[i])];
  }
  return backend_ != nullptr ? Upload(values, out.bias) : OkStatus();
}

void WeightLoader::OrderChannels(int64_t layer) {
  q_channels_.clear();
  kv_channels_.clear();
  qkv_channels_.clear();
  if (heads_ == nullptr) return;
  const int64_t dim = config_.head_dim, group = config_.q_heads / config_.kv_heads;
  const auto add = [&](std::vector<int64_t>& channels, int64_t first, int64_t count) {
    for (int64_t i = first; i < first + count; ++i) channels.push_back(i);
  };
  for (const int32_t head : heads_->heads(layer)) {
    add(q_channels_, head * group * dim, group * dim);
    add(kv_channels_, head * dim, dim);
  }
  const int64_t q_rows = config_.q_heads * dim, kv_rows = config_.kv_heads * dim;
  qkv_channels_ = q_channels_;
  for (const int64_t first : {q_rows, q_rows + kv_rows}) {
    for (const int64_t channel : kv_channels_) qkv_channels_.push_back(first + channel);
  }
}

Status WeightLoader::LoadAttention(const std::string& prefix, DecoderLayer& layer) {
  const int64_t q_rows = config_.q_heads * config_.head_dim;
  const int64_t kv_rows = config_.kv_heads * config_.head_dim;
  std::vector<Part> qkv = {
      {prefix + "q_proj", q_rows}, {prefix + "k_proj", kv_rows}, {prefix + "v_proj", kv_rows}};
  if (config_.family->fused_qkv) qkv = {{prefix + "qkv_proj", q_rows + 2 * kv_rows}};
  LACUNA_RETURN_IF_ERROR(
      LoadLinear(qkv, config_.hidden, config_.qkv_bias, layer.qkv, qkv_channels_));
  if (config_.family->qk_norm != QkNorm::kNone) {
    const bool whole = config_.family->qk_norm == QkNorm::kWhole;
    const std::span<const int64_t> stored;
    LACUNA_RETURN_IF_ERROR(LoadNorm(prefix + "q_norm", whole ? q_rows : config_.head_dim,
                                    layer.q_norm, whole ? q_channels_ : stored));
    LACUNA_RETURN_IF_ERROR(LoadNorm(prefix + "k_norm", whole ? kv_rows : config_.head_dim,
                                    layer.k_norm, whole ? kv_channels_ : stored));
  }
  const Part output = {prefix + "o_proj", config_.hidden};
  return LoadLinear({&output, 1}, q_rows, config_.output_bias, layer.output, {}, q_channels_);
}

Status WeightLoader::LoadMlp(const std::string& prefix, DecoderLayer& layer) {
  std::vector<Part> gate_up = {{prefix + "gate_proj", config_.ffn},
                               {prefix + "up_proj", config_.ffn}};
  if (config_.family->fused_gate_up) gate_up = {{prefix + "gate_up_proj", 2 * config_.ffn}};
  LACUNA_RETURN_IF_ERROR(LoadLinear(gate_up, config_.hidden, config_.mlp_bias, layer.gate_up));
  const Part down = {prefix + "down_proj", config_.hidden};
  return LoadLinear({&down, 1}, config_.ffn, config_.mlp_bias, layer.down);
}

Status WeightLoader::LoadLayer(int64_t index, DecoderLayer& layer) {
  const std::string prefix = "model.layers." + std::to_string(index) + ".";
  const FamilyTraits& family = *config_.family;
  const auto norm = [&](std::string_view name, Parameter& out) {
    return name.empty() ? OkStatus() : LoadNorm(prefix + std::string(name), config_.hidden, out);
  };
  LACUNA_RETURN_IF_ERROR(norm(family.norm_before_attention, layer.norm_before_attention));
  LACUNA_RETURN_IF_ERROR(norm(family.norm_after_attention, layer.norm_after_attention));
  LACUNA_RETURN_IF_ERROR(norm(family.norm_before_mlp, layer.norm_before_mlp));
  LACUNA_RETURN_IF_ERROR(norm(family.norm_after_mlp, layer.norm_after_mlp));
  OrderChannels(index);
  LACUNA_RETURN_IF_ERROR(LoadAttention(prefix + "self_attn.", layer));
  return LoadMlp(prefix + "mlp.", layer);
}

// In pieces: the whole may be gigabytes that the host need not have.
Status WeightLoader::MakeRandomEmbedding(const RandomMatrix& random) {
  constexpr int64_t kNoise = 1 << 22;
  const int64_t count = config_.vocab_size * config_.hidden;
  std::vector<BF16> noise(static_cast<size_t>(std::min(count, kNoise)));
  uint64_t state = random.seed * 2 + 1;
  for (BF16& value : noise) {
    state = state * 6364136223846793005u + 1442695040888963407u;  // Knuth's MMIX generator
    value = ToBF16(random.scale * static_cast<float>(static_cast<int32_t>(state >> 32)) * 0x1p-31f);
  }
  const int64_t bytes = count * static_cast<int64_t>(sizeof(BF16));
  kernels::Device& device = backend_->device();
  LACUNA_ASSIGN_OR_RETURN(weights_.embedding.memory, device.Allocate(bytes));
  // A length that no row divides, so that rows differ although the noise repeats.
  const int64_t piece = std::min(count, kNoise - 1);
  for (int64_t first = 0; first < count; first += piece) {
    LACUNA_RETURN_IF_ERROR(device.Copy(
        weights_.embedding.memory.data() + first * static_cast<int64_t>(sizeof(BF16)), noise.data(),
        std::min(piece, count - first) * static_cast<int64_t>(sizeof(BF16)), stream_));
  }
  LACUNA_RETURN_IF_ERROR(device.Synchronize(stream_));
  weights_.bytes += bytes;
  weights_.embedding.view = TensorView(weights_.embedding.memory.data(), DType::kBF16,
                                       {config_.vocab_size, config_.hidden});
  return OkStatus();
}

Status WeightLoader::LoadEmbedding() {
  if (const auto random = source_.Random("model.embed_tokens", config_.hidden)) {
    weights_.parameters += config_.vocab_size * config_.hidden;
    return backend_ == nullptr ? OkStatus() : MakeRandomEmbedding(*random);
  }
  LACUNA_ASSIGN_OR_RETURN(
      const TensorView stored,
      source_.Get("model.embed_tokens.weight", {config_.vocab_size, config_.hidden}));
  weights_.parameters += stored.elements();
  if (backend_ == nullptr) return OkStatus();
  const int64_t bytes = stored.elements() * static_cast<int64_t>(DTypeBytes(stored.dtype()));
  LACUNA_RETURN_IF_ERROR(UploadBytes(stored.data(), bytes, weights_.embedding));
  weights_.embedding.view = TensorView(weights_.embedding.memory.data(), stored.dtype(),
                                       {config_.vocab_size, config_.hidden});
  return OkStatus();
}

Status WeightLoader::LoadHead() {
  const Part part = {config_.tied_head ? "model.embed_tokens" : "lm_head", config_.vocab_size};
  const int64_t before = weights_.parameters;
  LACUNA_RETURN_IF_ERROR(LoadLinear({&part, 1}, config_.hidden, false, weights_.head));
  if (config_.tied_head) weights_.parameters = before;
  return OkStatus();
}

Result<DecoderWeights> WeightLoader::Load() {
  LACUNA_RETURN_IF_ERROR(LoadEmbedding());
  weights_.layers.resize(static_cast<size_t>(config_.layers));
  for (int64_t i = 0; i < config_.layers; ++i) {
    LACUNA_RETURN_IF_ERROR(LoadLayer(i, weights_.layers[static_cast<size_t>(i)]));
  }
  LACUNA_RETURN_IF_ERROR(LoadNorm("model.norm", config_.hidden, weights_.final_norm));
  LACUNA_RETURN_IF_ERROR(LoadHead());
  return std::move(weights_);
}

}  // namespace

Result<DecoderWeights> LoadDecoderWeights(const ModelConfig& config, WeightSource& source,
                                          Backend* backend, const HeadOrder* heads) {
  return WeightLoader(config, source, backend, heads).Load();
}

}  // namespace lacuna::engine
