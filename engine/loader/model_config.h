// ModelConfig: what config.json says about a decoder, resolved: every default filled in, every
// layer's window and rope named. A pure function over bytes; plain data afterwards.
//
// FamilyTraits is the declared table of how the families differ. The one decoder in engine/model
// reads it; a family that needs code of its own does not belong in the table.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/loader/rope_config.h"
#include "kernels/core/ids.h"
#include "kernels/core/status.h"

namespace lacuna::engine {

enum class QkNorm { kNone, kPerHead, kWhole };  // whole: over all heads at once
enum class BiasRule { kNever, kAlways, kIfAttentionBias };
enum class WindowRule {
  kNone,
  kAllLayers,    // sliding_window for every layer
  kUpperLayers,  // from max_window_layers on, when use_sliding_window
  kAlternating,  // all but each sliding_window_pattern-th
};

struct FamilyTraits final {
  std::string_view architecture;
  std::string_view model_type;
  // Names of the norms by where they stand; empty: there is none.
  std::string_view norm_before_attention = "", norm_after_attention = "";
  std::string_view norm_before_mlp = "", norm_after_mlp = "";
  QkNorm qk_norm = QkNorm::kNone;
  bool norm_adds_one = false;  // the stored weight is w - 1
  bool fused_qkv = false;      // stored as one qkv_proj
  bool fused_gate_up = false;  // stored as one gate_up_proj
  BiasRule qkv_bias = BiasRule::kNever, output_bias = BiasRule::kNever;
  bool mlp_bias = false;  // if the config's mlp_bias says so
  bool interleaved_rope = false;
  bool gelu = false;              // tanh-approximated GELU, else SiLU
  bool scales_embedding = false;  // by sqrt(hidden)
  bool multipliers = false;       // embedding_, residual_, attention_multiplier, logits_scaling
  bool query_scalar = false;      // attention scale = query_pre_attn_scalar^-1/2
  bool local_rope = false;        // sliding layers have a rope of their own
  WindowRule window = WindowRule::kNone;
  // What the config class of the family assumes when a key is absent.
  bool tied_default = false;
  int64_t head_dim_default = 0;  // 0: hidden / heads
  double partial_rotary_default = 1.0, theta_default = 10000.0, eps_default = 1e-6;
  int64_t window_default = 0, window_pattern_default = 0;
};

std::span<const FamilyTraits> Families();

struct ModelConfig final {
  const FamilyTraits* family = nullptr;  // static
  std::string stored_dtype;              // "bfloat16"; informative
  int64_t vocab_size = 0, hidden = 0, layers = 0, q_heads = 0, kv_heads = 0, head_dim = 0, ffn = 0;
  int64_t context_tokens_max = 0;
  double norm_eps = 1e-6;
  bool tied_head = false;
  bool qkv_bias = false, output_bias = false, mlp_bias = false;
  double embedding_multiplier = 1.0, residual_multiplier = 1.0, logits_divisor = 1.0;
  double attention_scale = 0.0;
  double attention_softcap = 0.0, logits_softcap = 0.0;  // 0: none
  std::vector<int32_t> layer_window;                     // [layers] tokens; 0: full
  std::vector<RopeConfig> ropes;                         // distinct
  bool bf16_rope = false;                                // not of the file: see LoadModel
  std::vector<int32_t> layer_rope;                       // [layers] index into ropes
  std::vector<TokenId> eos;                              // sorted, distinct
  std::optional<TokenId> bos;
};

// `generation_config` may be empty (no such file): it adds eos ids.
// kInvalidArgument: "config.json: KEY: expected ..., found ...".
Result<ModelConfig> ParseModelConfig(std::string_view config_json,
                                     std::string_view generation_config_json);

}  // namespace lacuna::engine
