#include "engine/model/decoder.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "engine/model/load_model.h"
#include "kernels/ops/ops.h"

namespace lacuna::engine {
namespace {

// Without a norm before it, a matrix needs the f32 stream in the activation type. An RmsNorm with
// eps 2^40 and weight 2^20 is that cast, exactly: sqrt(mean(x^2) + 2^40) rounds to 2^20 as long as
// mean(x^2) < 2^16.
constexpr float kCastEps = 0x1.0p40f;
constexpr float kCastWeight = 0x1.0p20f;

TensorView Matrix(const kernels::Buffer& buffer, DType dtype, int64_t rows, int64_t columns) {
  return TensorView(buffer.data(), dtype, {rows, columns});
}

// Columns [first, first + heads * head_dim) of a matrix as [rows, heads, head_dim].
TensorView Heads(const TensorView& matrix, int64_t first, int64_t heads, int64_t head_dim) {
  std::byte* data =
      matrix.as<std::byte>() + first * static_cast<int64_t>(DTypeBytes(matrix.dtype()));
  return TensorView::Rows(data, matrix.dtype(), {matrix.dim(0), heads, head_dim}, matrix.stride(0));
}

// The same columns as one vector per row.
TensorView Columns(const TensorView& matrix, int64_t first, int64_t count) {
  std::byte* data =
      matrix.as<std::byte>() + first * static_cast<int64_t>(DTypeBytes(matrix.dtype()));
  return TensorView::Rows(data, matrix.dtype(), {matrix.dim(0), count}, matrix.stride(0));
}

}  // namespace

struct Decoder::Workspace final : ModelWorkspace {
  int64_t rows_max = 0;
  int64_t logit_rows_max = 0;
  kernels::Buffer x, branch, wanted;                // [rows, hidden] f32
  kernels::Buffer normed;                           // [rows, hidden] act
  kernels::Buffer qkv, attended, gate_up, product;  // act
  kernels::Buffer row_index;                        // [rows] i32: 0, 1, 2, ...
  std::vector<kernels::Buffer> cos_sin;             // CPU, per rope: [rows, rotary_dim] f32
  int64_t wanted_rows = 0;                          // of the last Forward

  int64_t bytes() const override {
    int64_t sum = 0;
    for (const kernels::Buffer* buffer :
         {&x, &branch, &wanted, &normed, &qkv, &attended, &gate_up, &product, &row_index}) {
      sum += buffer->bytes();
    }
    for (const kernels::Buffer& buffer : cos_sin) sum += buffer.bytes();
    return sum;
  }
};

// One Forward under way.
struct Decoder::Run final {
  const StepInputs& step;
  const kvcache::KvStorage& storage;
  Workspace& workspace;
  kernels::Stream& stream;
  int64_t rows = 0;
};

ModelInfo MakeModelInfo(const ModelConfig& config) {
  return {.architecture = std::string(config.family->architecture),
          .stored_dtype = config.stored_dtype,
          .vocab_size = config.vocab_size,
          .hidden = config.hidden,
          .layers = config.layers,
          .q_heads = config.q_heads,
          .kv_heads = config.kv_heads,
          .head_dim = config.head_dim,
          .ffn = config.ffn,
          .context_tokens_max = config.context_tokens_max,
          .eos = config.eos,
          .bos = config.bos};
}

Decoder::Decoder(ModelConfig config, DecoderWeights weights, kernels::Backend& backend,
                 std::unique_ptr<HeadOrder> heads)
    : config_(std::move(config)),
      weights_(std::move(weights)),
      backend_(backend),
      info_(MakeModelInfo(config_)),
      groups_(MakeKvGroups(config_, heads.get())),
      heads_(std::move(heads)),
      places_(static_cast<size_t>(config_.layers)) {
  info_.parameters = weights_.parameters;
  info_.weight_bytes = weights_.bytes;
  FillPlaces();
  for (const RopeConfig& rope : config_.ropes) {
    ropes_.emplace_back(ComputeRopeFrequencies(rope, config_.context_tokens_max, config_.bf16_rope),
                        config_.context_tokens_max);
  }
}

void Decoder::FillPlaces() {
  for (size_t g = 0; g < groups_.size(); ++g) {
    for (size_t i = 0; i < groups_[g].layers.size(); ++i) {
      const kvcache::KvLayer& layer = groups_[g].layers[i];
      LayerPlace place{.group = static_cast<int>(g),
                       .layer_in_group = static_cast<int>(i),
                       .first_head = layer.first_head,
                       .kv_heads = layer.kv_heads,
                       .decode = {},
                       .prefill = {}};
      place.decode.window_tokens = config_.layer_window[static_cast<size_t>(layer.layer)];
      place.prefill = place.decode;
      if (heads_ != nullptr && layer.first_head == heads_->full_heads(layer.layer)) {
        place.decode = heads_->decode_shape();
        place.prefill = heads_->prefill_shape();
      }
      places_[static_cast<size_t>(layer.layer)].push_back(place);
    }
  }
}

Result<std::unique_ptr<Model>> Decoder::Create(ModelConfig config, WeightSource& source,
                                               kernels::Backend& backend,
                                               std::unique_ptr<HeadOrder> heads) {
  LACUNA_ASSIGN_OR_RETURN(DecoderWeights weights,
                          LoadDecoderWeights(config, source, &backend, heads.get()));
  std::unique_ptr<Decoder> decoder(
      new Decoder(std::move(config), std::move(weights), backend, std::move(heads)));
  const std::vector<float> cast(static_cast<size_t>(decoder->config_.hidden), kCastWeight);
  const int64_t bytes = static_cast<int64_t>(cast.size() * sizeof(float));
  kernels::Stream stream;
  LACUNA_ASSIGN_OR_RETURN(decoder->cast_weight_.memory, backend.device().Allocate(bytes));
  LACUNA_RETURN_IF_ERROR(
      backend.device().Copy(decoder->cast_weight_.memory.data(), cast.data(), bytes, stream));
  LACUNA_RETURN_IF_ERROR(backend.device().Synchronize(stream));
  decoder->cast_weight_.view =
      TensorView(decoder->cast_weight_.memory.data(), DType::kF32, {decoder->config_.hidden});
  if (backend.device().kind() != kernels::DeviceKind::kCpu) {
    LACUNA_RETURN_IF_ERROR(decoder->UploadRopeTables());
  }
  return std::unique_ptr<Model>(std::move(decoder));
}

Status Decoder::UploadRopeTables() {
  constexpr int64_t kRowsAtOnce = 4096;
  kernels::Device& device = backend_.device();
  kernels::Stream stream;
  for (const RopeTable& rope : ropes_) {
    const int64_t row_bytes = rope.rotary_dim() * static_cast<int64_t>(sizeof(float));
    LACUNA_ASSIGN_OR_RETURN(kernels::Buffer table,
                            device.Allocate(config_.context_tokens_max * row_bytes));
    LACUNA_ASSIGN_OR_RETURN(kernels::Buffer staging, device.AllocateHost(kRowsAtOnce * row_bytes));
    std::vector<int32_t> positions(static_cast<size_t>(kRowsAtOnce));
    for (int64_t first = 0; first < config_.context_tokens_max; first += kRowsAtOnce) {
      const int64_t rows = std::min(kRowsAtOnce, config_.context_tokens_max - first);
      std::iota(positions.begin(), positions.end(), static_cast<int32_t>(first));
      rope.Fill(std::span(positions).first(static_cast<size_t>(rows)),
                Matrix(staging, DType::kF32, rows, rope.rotary_dim()));
      LACUNA_RETURN_IF_ERROR(
          device.Copy(table.data() + first * row_bytes, staging.data(), rows * row_bytes, stream));
      LACUNA_RETURN_IF_ERROR(device.Synchronize(stream));
    }
    rope_tables_.push_back(std::move(table));
  }
  return OkStatus();
}

Result<std::unique_ptr<ModelWorkspace>> Decoder::MakeWorkspace(int64_t rows_max,
                                                               int64_t logit_rows_max) {
  auto workspace = std::make_unique<Workspace>();
  workspace->rows_max = rows_max;
  workspace->logit_rows_max = logit_rows_max;
  const auto allocate = [&](kernels::Buffer& buffer, int64_t columns, DType dtype) -> Status {
    LACUNA_ASSIGN_OR_RETURN(
        buffer,
        backend_.device().Allocate(rows_max * columns * static_cast<int64_t>(DTypeBytes(dtype))));
    return OkStatus();
  };
  const DType act = backend_.act_dtype();
  const int64_t q_columns = config_.q_heads * config_.head_dim;
  const int64_t kv_columns = config_.kv_heads * config_.head_dim;
  LACUNA_RETURN_IF_ERROR(allocate(workspace->x, config_.hidden, DType::kF32));
  LACUNA_RETURN_IF_ERROR(allocate(workspace->wanted, config_.hidden, DType::kF32));
  LACUNA_RETURN_IF_ERROR(allocate(workspace->branch, config_.hidden, DType::kF32));
  LACUNA_RETURN_IF_ERROR(allocate(workspace->normed, config_.hidden, act));
  LACUNA_RETURN_IF_ERROR(allocate(workspace->qkv, q_columns + 2 * kv_columns, act));
  LACUNA_RETURN_IF_ERROR(allocate(workspace->attended, q_columns, act));
  LACUNA_RETURN_IF_ERROR(allocate(workspace->gate_up, 2 * config_.ffn, act));
  LACUNA_RETURN_IF_ERROR(allocate(workspace->product, config_.ffn, act));
  for (const RopeTable& rope : ropes_) {
    if (!rope_tables_.empty()) break;
    workspace->cos_sin.emplace_back();
    LACUNA_RETURN_IF_ERROR(allocate(workspace->cos_sin.back(), rope.rotary_dim(), DType::kF32));
  }
  LACUNA_RETURN_IF_ERROR(allocate(workspace->row_index, 1, DType::kI32));
  std::vector<int32_t> index(static_cast<size_t>(rows_max));
  std::iota(index.begin(), index.end(), 0);
  kernels::Stream stream;
  LACUNA_RETURN_IF_ERROR(backend_.device().Copy(workspace->row_index.data(), index.data(),
                                                workspace->row_index.bytes(), stream));
  LACUNA_RETURN_IF_ERROR(backend_.device().Synchronize(stream));
  return std::unique_ptr<ModelWorkspace>(std::move(workspace));
}

Status Decoder::NormOrCast(const Parameter& norm, const TensorView& x, const TensorView& out,
                           Run& run) {
  const bool has_norm = !norm.view.empty();
  return kernels::RmsNorm(backend_,
                          {.x = x,
                           .weight = has_norm ? norm.view : cast_weight_.view,
                           .out = out,
                           .eps = has_norm ? static_cast<float>(config_.norm_eps) : kCastEps},
                          run.stream);
}

Status Decoder::AddBranch(const Linear& linear, const Parameter& norm, const TensorView& branch,
                          const TensorView& x, Run& run) {
  kernels::MatmulArgs matmul{.x = branch,
                             .weight = linear.weight.get(),
                             .bias = linear.bias.view,
                             .out = x,
                             .alpha = static_cast<float>(config_.residual_multiplier),
                             .accumulate = true};
  if (norm.view.empty()) return kernels::Matmul(backend_, matmul, run.stream);
  const TensorView sum = Matrix(run.workspace.branch, DType::kF32, x.dim(0), config_.hidden);
  matmul.out = sum;
  matmul.accumulate = false;
  LACUNA_RETURN_IF_ERROR(kernels::Matmul(backend_, matmul, run.stream));
  return kernels::RmsNorm(backend_,
                          {.x = sum,
                           .weight = norm.view,
                           .out = x,
                           .eps = static_cast<float>(config_.norm_eps),
                           .accumulate = true},
                          run.stream);
}

Status Decoder::NormWhole(const DecoderLayer& weights, const TensorView& qkv, Run& run) {
  const float eps = static_cast<float>(config_.norm_eps);
  const int64_t q_columns = config_.q_heads * config_.head_dim;
  const TensorView q = Columns(qkv, 0, q_columns);
  const TensorView k = Columns(qkv, q_columns, config_.kv_heads * config_.head_dim);
  LACUNA_RETURN_IF_ERROR(kernels::RmsNorm(
      backend_, {.x = q, .weight = weights.q_norm.view, .out = q, .eps = eps}, run.stream));
  return kernels::RmsNorm(backend_, {.x = k, .weight = weights.k_norm.view, .out = k, .eps = eps},
                          run.stream);
}

Status Decoder::RopeAndAppend(int64_t layer, Run& run) {
  const DecoderLayer& weights = weights_.layers[static_cast<size_t>(layer)];
  const int64_t dim = config_.head_dim, group = config_.q_heads / config_.kv_heads;
  const int64_t q_columns = config_.q_heads * dim, k_columns = config_.kv_heads * dim;
  const TensorView qkv =
      Matrix(run.workspace.qkv, backend_.act_dtype(), run.rows, q_columns + 2 * k_columns);
  if (config_.family->qk_norm == QkNorm::kWhole) {
    LACUNA_RETURN_IF_ERROR(NormWhole(weights, qkv, run));
  }
  const bool per_head = config_.family->qk_norm == QkNorm::kPerHead;
  const auto rope = static_cast<size_t>(config_.layer_rope[static_cast<size_t>(layer)]);
  const bool by_row = rope_tables_.empty();
  const int64_t table_rows = by_row ? run.rows : config_.context_tokens_max;
  for (const LayerPlace& place : places_[static_cast<size_t>(layer)]) {
    const int64_t first = place.first_head * dim;
    LACUNA_RETURN_IF_ERROR(kernels::RopeAppend(
        backend_,
        {.q = Heads(qkv, first * group, place.kv_heads * group, dim),
         .k = Heads(qkv, q_columns + first, place.kv_heads, dim),
         .v = Heads(qkv, q_columns + k_columns + first, place.kv_heads, dim),
         .q_norm = per_head ? weights.q_norm.view : TensorView(),
         .k_norm = per_head ? weights.k_norm.view : TensorView(),
         .norm_eps = static_cast<float>(config_.norm_eps),
         .positions = by_row ? TensorView(run.workspace.row_index.data(), DType::kI32, {run.rows})
                             : run.step.positions,
         .cos_sin = Matrix(by_row ? run.workspace.cos_sin[rope] : rope_tables_[rope], DType::kF32,
                           table_rows, ropes_[rope].rotary_dim()),
         .interleaved = config_.family->interleaved_rope,
         .slots = run.step.groups[static_cast<size_t>(place.group)].slots,
         .pool = run.storage.pool(place.group, place.layer_in_group)},
        run.stream));
  }
  return OkStatus();
}

LayerAttention Decoder::AttentionOf(int64_t layer, const LayerPlace& place, const Run& run,
                                    bool last) const {
  const int64_t dim = config_.head_dim, group = config_.q_heads / config_.kv_heads;
  const int64_t q_columns = config_.q_heads * dim;
  const int64_t first = place.first_head * group * dim, q_heads = place.kv_heads * group;
  const DType act = backend_.act_dtype();
  const TensorView qkv =
      Matrix(run.workspace.qkv, act, run.rows, q_columns + 2 * config_.kv_heads * dim);
  return {
      .step = run.step,
      .layer = layer,
      .layers = config_.layers,
      .group = place.group,
      .layer_in_group = place.layer_in_group,
      .q = Heads(qkv, first, q_heads, dim),
      .out = Heads(Matrix(run.workspace.attended, act, run.rows, q_columns), first, q_heads, dim),
      .pool = run.storage.pool(place.group, place.layer_in_group),
      .params = {.scale = static_cast<float>(config_.attention_scale),
                 .softcap = static_cast<float>(config_.attention_softcap),
                 .shape = place.decode},
      .prefill_shape = place.prefill,
      .last = last};
}

Status Decoder::RunAttention(int64_t index, Run& run, bool last) {
  const DecoderLayer& layer = weights_.layers[static_cast<size_t>(index)];
  const DType act = backend_.act_dtype();
  const int64_t dim = config_.head_dim;
  const int64_t q_columns = config_.q_heads * dim;
  const int64_t k_columns = config_.kv_heads * dim;
  const TensorView x = Matrix(run.workspace.x, DType::kF32, run.rows, config_.hidden);
  const TensorView normed = Matrix(run.workspace.normed, act, run.rows, config_.hidden);
  const TensorView qkv = Matrix(run.workspace.qkv, act, run.rows, q_columns + 2 * k_columns);
  LACUNA_RETURN_IF_ERROR(NormOrCast(layer.norm_before_attention, x, normed, run));
  LACUNA_RETURN_IF_ERROR(kernels::Matmul(
      backend_,
      {.x = normed, .weight = layer.qkv.weight.get(), .bias = layer.qkv.bias.view, .out = qkv},
      run.stream));
  LACUNA_RETURN_IF_ERROR(RopeAndAppend(index, run));
  if (observer_ != nullptr) {
    observer_->Observe(index, Heads(qkv, 0, config_.q_heads, dim),
                       Heads(qkv, q_columns, config_.kv_heads, dim), run.step.positions);
  }
  for (const LayerPlace& place : places_[static_cast<size_t>(index)]) {
    const LayerAttention attention = AttentionOf(index, place, run, last);
    LACUNA_RETURN_IF_ERROR(AppendLayerMetadata(backend_, attention, run.stream));
    if (last && run.step.wanted.empty()) continue;
    LACUNA_RETURN_IF_ERROR(AttendLayer(backend_, attention, run.stream));
  }
  if (last && run.step.wanted.empty()) return OkStatus();
  return AddBranch(layer.output, layer.norm_after_attention,
                   Matrix(run.workspace.attended, act, run.rows, q_columns), x, run);
}

Status Decoder::RunMlp(const DecoderLayer& layer, const TensorView& x, Run& run) {
  const DType act = backend_.act_dtype();
  const int64_t rows = x.dim(0);
  const TensorView normed = Matrix(run.workspace.normed, act, rows, config_.hidden);
  const TensorView gate_up = Matrix(run.workspace.gate_up, act, rows, 2 * config_.ffn);
  const TensorView product = Matrix(run.workspace.product, act, rows, config_.ffn);
  LACUNA_RETURN_IF_ERROR(NormOrCast(layer.norm_before_mlp, x, normed, run));
  LACUNA_RETURN_IF_ERROR(kernels::Matmul(backend_,
                                         {.x = normed,
                                          .weight = layer.gate_up.weight.get(),
                                          .bias = layer.gate_up.bias.view,
                                          .out = gate_up},
                                         run.stream));
  LACUNA_RETURN_IF_ERROR(
      kernels::GatedActivation(backend_,
                               {.gate_up = gate_up,
                                .out = product,
                                .activation = config_.family->gelu ? kernels::Activation::kGeluTanh
                                                                   : kernels::Activation::kSilu},
                               run.stream));
  return AddBranch(layer.down, layer.norm_after_mlp, product, x, run);
}

Status Decoder::Forward(const StepInputs& step, const kvcache::KvStorage& storage,
                        ModelWorkspace& base, kernels::Stream& stream) {
  Workspace& workspace = static_cast<Workspace&>(base);
  Run run{step, storage, workspace, stream, step.ids.dim(0)};
  if (run.rows > workspace.rows_max)
    return InternalError("a step has more rows than its workspace");
  for (size_t i = 0; rope_tables_.empty() && i < ropes_.size(); ++i) {
    const std::span<const int32_t> positions(step.positions.as<const int32_t>(),
                                             static_cast<size_t>(run.rows));
    ropes_[i].Fill(positions,
                   Matrix(workspace.cos_sin[i], DType::kF32, run.rows, ropes_[i].rotary_dim()));
  }
  const TensorView x = Matrix(workspace.x, DType::kF32, run.rows, config_.hidden);
  LACUNA_RETURN_IF_ERROR(kernels::Embed(backend_,
                                        {.ids = step.ids,
                                         .table = weights_.embedding.view,
                                         .out = x,
                                         .scale = static_cast<float>(config_.embedding_multiplier)},
                                        stream));
  for (int64_t i = 0; i + 1 < config_.layers; ++i) {
    LACUNA_RETURN_IF_ERROR(RunAttention(i, run, /*last=*/false));
    LACUNA_RETURN_IF_ERROR(RunMlp(weights_.layers[static_cast<size_t>(i)], x, run));
  }
  // After the last layer's keys and values, only wanted rows matter.
  LACUNA_RETURN_IF_ERROR(RunAttention(config_.layers - 1, run, /*last=*/true));
  workspace.wanted_rows = step.wanted.empty() ? 0 : step.wanted.dim(0);
  if (workspace.wanted_rows == 0) return OkStatus();
  const TensorView wanted =
      Matrix(workspace.wanted, DType::kF32, workspace.wanted_rows, config_.hidden);
  LACUNA_RETURN_IF_ERROR(
      kernels::GatherRows(backend_, {.x = x, .rows = step.wanted, .out = wanted}, stream));
  return RunMlp(weights_.layers.back(), wanted, run);
}

Status Decoder::Logits(int64_t first, const TensorView& out, ModelWorkspace& base,
                       kernels::Stream& stream) {
  Workspace& workspace = static_cast<Workspace&>(base);
  const int64_t rows = out.dim(0);
  if (first < 0 || rows > workspace.logit_rows_max || first + rows > workspace.wanted_rows) {
    return InternalError("logits of rows that the last step did not keep");
  }
  const TensorView x = Matrix(workspace.wanted, DType::kF32, workspace.wanted_rows, config_.hidden)
                           .Slice(first, rows);
  const TensorView normed = Matrix(workspace.normed, backend_.act_dtype(), rows, config_.hidden);
  LACUNA_RETURN_IF_ERROR(kernels::RmsNorm(backend_,
                                          {.x = x,
                                           .weight = weights_.final_norm.view,
                                           .out = normed,
                                           .eps = static_cast<float>(config_.norm_eps)},
                                          stream));
  LACUNA_RETURN_IF_ERROR(
      kernels::Matmul(backend_,
                      {.x = normed,
                       .weight = weights_.head.weight.get(),
                       .bias = {},
                       .out = out,
                       .alpha = static_cast<float>(1.0 / config_.logits_divisor)},
                      stream));
  if (config_.logits_softcap == 0.0) return OkStatus();
  return kernels::Softcap(backend_, {.x = out, .cap = static_cast<float>(config_.logits_softcap)},
                          stream);
}

}  // namespace lacuna::engine
