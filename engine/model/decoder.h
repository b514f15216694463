// Decoder: the forward pass that all families share; FamilyTraits says where they differ.
//
// The residual stream is f32, what the matrices multiply is of the backend's activation type.
// Immutable; one thread at a time runs Forward (the workspace is not shared).
#pragma once

#include <memory>
#include <vector>

#include "engine/loader/model_config.h"
#include "engine/model/decoder_weights.h"
#include "engine/model/model.h"
#include "engine/model/rope_table.h"
#include "engine/model/sparse_attention.h"
#include "kernels/ops/backend.h"

namespace lacuna::engine {

class Decoder final : public Model {
 public:
  // `config.context_tokens_max` bounds the positions; `backend` outlives the model.
  static Result<std::unique_ptr<Model>> Create(ModelConfig config, WeightSource& source,
                                               kernels::Backend& backend,
                                               std::unique_ptr<HeadOrder> heads = nullptr);

  const ModelInfo& info() const override { return info_; }
  const std::vector<kvcache::KvGroup>& groups() const override { return groups_; }
  const HeadOrder* head_order() const override { return heads_.get(); }
  Result<std::unique_ptr<ModelWorkspace>> MakeWorkspace(int64_t rows_max,
                                                        int64_t logit_rows_max) override;
  Status Forward(const StepInputs& step, const kvcache::KvStorage& storage,
                 ModelWorkspace& workspace, kernels::Stream& stream) override;
  Status Logits(int64_t first, const TensorView& out, ModelWorkspace& workspace,
                kernels::Stream& stream) override;
  void SetObserver(AttentionObserver* observer) override { observer_ = observer; }

 private:
  struct Workspace;
  struct LayerPlace {  // of the keys and values of some heads of a layer
    int group = 0;
    int layer_in_group = 0;
    int64_t first_head = 0, kv_heads = 0;
    kernels::StaticShape decode, prefill;
  };
  struct Run;

  Decoder(ModelConfig config, DecoderWeights weights, kernels::Backend& backend,
          std::unique_ptr<HeadOrder> heads);
  void FillPlaces();
  // Makes rope_tables_, on a device with memory of its own.
  Status UploadRopeTables();
  // Normed, rotated and appended to the pools of the layer.
  Status RopeAndAppend(int64_t layer, Run& run);
  Status NormWhole(const DecoderLayer& weights, const TensorView& qkv, Run& run);
  LayerAttention AttentionOf(int64_t layer, const LayerPlace& place, const Run& run,
                             bool last) const;
  Status RunAttention(int64_t layer, Run& run, bool last);
  Status RunMlp(const DecoderLayer& layer, const TensorView& x, Run& run);
  // out = norm(x), or x itself in the activation type when the family has no norm here.
  Status NormOrCast(const Parameter& norm, const TensorView& x, const TensorView& out, Run& run);
  // x += norm(branch * weight^T), or x += multiplier * (...) without a norm.
  Status AddBranch(const Linear& linear, const Parameter& norm, const TensorView& branch,
                   const TensorView& x, Run& run);

  ModelConfig config_;
  DecoderWeights weights_;
  kernels::Backend& backend_;
  ModelInfo info_;
  std::vector<kvcache::KvGroup> groups_;
  std::unique_ptr<HeadOrder> heads_;
  std::vector<std::vector<LayerPlace>> places_;  // [layers], one for each group of its heads
  std::vector<RopeTable> ropes_;
  // Per rope: [context_tokens_max, rotary_dim] f32, which rows find by their position. Empty on the
  // CPU, where the workspace holds a table of the step's rows instead.
  std::vector<kernels::Buffer> rope_tables_;
  Parameter cast_weight_;  // see NormOrCast
  AttentionObserver* observer_ = nullptr;
};

ModelInfo MakeModelInfo(const ModelConfig& config);

}  // namespace lacuna::engine
