// Argument structs of the KV ops: append, and the two attentions over a Selection. SEAM.
#pragma once

#include <cstdint>
#include <span>

#include "kernels/core/tensor_view.h"
#include "kernels/ops/kv_pool.h"
#include "kernels/ops/selection.h"

namespace lacuna::kernels {

// Writes k[t], v[t] into slot slots[t] = page * page_tokens + offset; a negative slot is skipped.
// The first token of a page (offset 0) clears the page's slabs, so that stale bytes (even NaN)
// never reach an output. Slots of one call are distinct; a sequence's tokens are consecutive rows
// in ascending order.
struct AppendKvArgs final {
  TensorView k;      // [tokens, kv_heads, head_dim] act
  TensorView v;      // [tokens, kv_heads, head_dim] act
  TensorView slots;  // [tokens] i32
  KvPool pool;
};

// What happens to the q, k and v of new tokens before attention, in one pass over them: optional
// RMS norm of each q and k head (Qwen 3, Gemma 3), rotary embedding of q and k, and AppendKv of the
// k and v that result. q is changed in place, k may be; v is not.
//
// Rotary position embedding (Su et al. 2021) turns the first rotary_dim channels of each head.
// cos_sin[p] = rotary_dim / 2 cosines, then as many sines. Halves: pairs (i, i + rotary_dim / 2);
// interleaved: pairs (2i, 2i + 1).
struct RopeAppendArgs final {
  TensorView q;       // [tokens, q_heads, head_dim] act, in place
  TensorView k;       // [tokens, kv_heads, head_dim] act, scratch afterwards
  TensorView v;       // [tokens, kv_heads, head_dim] act
  TensorView q_norm;  // [head_dim] f32, or empty
  TensorView k_norm;  // [head_dim] f32, or empty
  float norm_eps = 1e-6f;
  TensorView positions;  // [tokens] i32: rows of cos_sin
  TensorView cos_sin;    // [positions_max, rotary_dim] f32
  bool interleaved = false;
  TensorView slots;  // [tokens] i32, as AppendKvArgs
  KvPool pool;
};

// What both attentions share. softmax(softcap(scale * q k^T)) over the visible keys, then times V;
// softcap(s) = softcap * tanh(s / softcap) when softcap > 0. A sink logit adds
// exp(sink_logits[head]) to the denominator only. Query head h reads kv head h / (q_heads /
// kv_heads).
struct AttentionParams final {
  float scale = 1.0f;
  float softcap = 0.0f;
  const float* sink_logits = nullptr;  // [q_heads] or null
  StaticShape shape;
};

// One query row per generated token. A row with no visible key gives out = 0, lse = -inf.
struct AttendDecodeArgs final {
  TensorView q;  // [rows, q_heads, head_dim] act
  KvPool pool;
  TensorView positions;   // [rows] i32: position of the query; its own key is already appended
  PageLists lists;        // rows lists, or rows * kv_heads: list = row * lists_per_row + kv_head
  int lists_per_row = 1;  // 1: all kv heads share the row's list; else kv_heads
  AttentionParams params;
  const StaticShape* shapes = nullptr;  // [rows, kv_heads], device memory; null: params.shape
  // [rows, q_heads] f32, or empty: exp of it joins the denominator only, like a sink logit of the
  // row: out shrinks by exp(lse) / (exp(lse) + exp(dropped_lse)), lse stays. -inf: nothing dropped.
  TensorView dropped_lse;
  TensorView out;  // [rows, q_heads, head_dim] act
  TensorView lse;  // [rows, q_heads] f32 (natural log, of the scaled and capped scores), or empty
};

// A run of consecutive prompt tokens of one sequence.
struct PrefillChunk final {
  int32_t first_row = 0;       // in q
  int32_t rows = 0;            // queries
  int32_t first_position = 0;  // of the first query in its sequence
};

struct AttendPrefillArgs final {
  TensorView q;  // [tokens, q_heads, head_dim] act
  KvPool pool;
  std::span<const PrefillChunk> chunks;  // host memory
  PageLists lists;                       // one list per chunk
  const KeyRanges* ranges = nullptr;     // null: all keys that the static shape allows
  AttentionParams params;
  const StaticShape* shapes = nullptr;  // [chunks, kv_heads], device memory; null: params.shape
  TensorView out;  // [tokens, q_heads, head_dim] act; only the rows of chunks are written
  TensorView lse;  // [tokens, q_heads] f32, or empty
};

}  // namespace lacuna::kernels
