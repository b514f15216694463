// Model: the weights of one network on a device, and its forward pass written in ops.
//
// Immutable after load. Forward runs on the engine thread with a workspace that the Executor owns;
// nothing on that path allocates.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "engine/model/attention_observer.h"
#include "engine/model/head_order.h"
#include "engine/model/sparse_step.h"
#include "kernels/core/ids.h"
#include "kernels/core/status.h"
#include "kernels/core/tensor_view.h"
#include "kernels/ops/attention.h"
#include "kvcache/pages/kv_group.h"
#include "kvcache/pages/kv_storage.h"

namespace lacuna::engine {

struct ModelInfo final {
  std::string architecture;  // "LlamaForCausalLM"
  std::string stored_dtype;  // of the checkpoint, informative
  int64_t vocab_size = 0, hidden = 0, layers = 0, q_heads = 0, kv_heads = 0, head_dim = 0, ffn = 0;
  int64_t context_tokens_max = 0;
  int64_t parameters = 0;    // a tied head counts once
  int64_t weight_bytes = 0;  // on the device
  std::vector<TokenId> eos;
  std::optional<TokenId> bos;
};

// One step of a model, in arrays of its device unless said otherwise. Decode rows come first, one
// generated token each; the rows after them belong to prompt chunks.
struct StepInputs final {
  // What each KvGroup of the model needs.
  struct Group {
    TensorView slots;            // [rows] i32: where each row's key and value go
    kernels::PageLists decode;   // one list per decode row
    kernels::PageLists prefill;  // one list per chunk
    TensorView previous_pages;   // [rows] i32, see AppendMetadataArgs; empty when nobody reads it
  };

  TensorView ids;        // [rows] i32
  TensorView positions;  // [rows] i32
  int64_t decode_rows = 0;
  std::span<const kernels::PrefillChunk> chunks;  // host memory, as last_chunks
  // The same chunks without leading rows whose output nobody reads: what the last layer attends.
  std::span<const kernels::PrefillChunk> last_chunks;
  TensorView wanted;  // [wanted rows] i32, any order; empty: only keys and values are made
  std::span<const Group> groups;
  const kvcache::MetadataStorage* metadata = nullptr;  // null: nothing is stored beside keys
  const SparseInputs* sparse = nullptr;                // null: every row is dense
};

// Scratch of one model for steps of a bounded size; made by the model, opaque to others.
class ModelWorkspace {
 public:
  virtual ~ModelWorkspace() = default;
  virtual int64_t bytes() const = 0;
};

class Model {
 public:
  virtual ~Model() = default;

  virtual const ModelInfo& info() const = 0;
  virtual const std::vector<kvcache::KvGroup>& groups() const = 0;
  // Null: every head keeps what its layer keeps, in the order of the checkpoint.
  virtual const HeadOrder* head_order() const { return nullptr; }
  // For steps of at most rows_max rows, and Logits of at most logit_rows_max.
  virtual Result<std::unique_ptr<ModelWorkspace>> MakeWorkspace(int64_t rows_max,
                                                                int64_t logit_rows_max) = 0;
  // Appends the step's keys and values; leaves the last hidden states of the wanted rows in the
  // workspace.
  virtual Status Forward(const StepInputs& step, const kvcache::KvStorage& storage,
                         ModelWorkspace& workspace, kernels::Stream& stream) = 0;
  // Logits of wanted rows [first, first + out rows) of the last Forward. out: [rows, vocab] f32.
  virtual Status Logits(int64_t first, const TensorView& out, ModelWorkspace& workspace,
                        kernels::Stream& stream) = 0;
  // Forward shows each layer's queries and keys to `observer`, which outlives it; null: to nobody.
  // For a CPU backend: it leaves keys rotated in place, and memory that the host can read.
  virtual void SetObserver(AttentionObserver*) {}
};

}  // namespace lacuna::engine
