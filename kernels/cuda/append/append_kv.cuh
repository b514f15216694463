// What the kernels of append_kv.cu share: their parameters, where a token's K and V go, the heads
// of a token, the rotation of a pair. Device code.
//
// Stale bytes: of the tokens of a page that are in this call, the last one clears the rows behind
// it, if the page's first token is in this call too. No other token writes those rows in this call.
#pragma once

#include <cmath>
#include <cstdint>

namespace lacuna::kernels::cuda::append {

inline constexpr int kThreads = 128;

// Rows of heads; null when there are none.
struct Heads final {
  void* data = nullptr;
  int64_t stride = 0;  // elements between tokens
};

struct Params final {
  Heads q, k, v;
  const float* q_norm = nullptr;
  const float* k_norm = nullptr;
  float eps = 0.0f;
  const int32_t* positions = nullptr;
  const float* cos_sin = nullptr;
  int64_t cos_sin_stride = 0;
  int64_t positions_max = 0;
  int rotary_dim = 0;  // 0: no rotation
  bool interleaved = false;
  const int32_t* slots = nullptr;
  void* pool = nullptr;
  int page_tokens = 0;  // 16 or 64
  int page_shift = 0;   // its logarithm
  int tokens = 0;
  int q_heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  float dim_inverse = 0.0f;
};

// Where a token's K and V go.
struct Place final {
  int64_t page = -1;  // < 0: nowhere
  int row = 0;
  int clear_end = 0;  // rows (row, clear_end) of the page become zero
};

// `slot` of the token and `next` of the one behind it (-1: none).
struct Slots final {
  int slot = -1;
  int next = -1;
};
__device__ inline Slots SlotsOf(const Params& params, int token) {
  return {params.slots[token], token + 1 < params.tokens ? params.slots[token + 1] : -1};
}
__device__ inline Place PlaceOf(const Params& params, int token, const Slots& slots) {
  const auto [slot, next] = slots;
  if (slot < 0) return {};
  Place place{slot >> params.page_shift, slot & (params.page_tokens - 1), 0};
  const bool last = next != slot + 1 && place.row + 1 < params.page_tokens;
  const int first = token - place.row;  // the token of the page's row 0, if it is in this call
  if (last && first >= 0 && params.slots[first] == slot - place.row) {
    place.clear_end = params.page_tokens;
  }
  return place;
}

enum class Kind { kQ, kK, kV };

// One head of one token.
struct Head final {
  Kind kind;
  int index;  // among the heads of its kind
};
__device__ inline Head HeadOf(const Params& params, int head) {
  if (head < params.q_heads) return {Kind::kQ, head};
  head -= params.q_heads;
  return head < params.kv_heads ? Head{Kind::kK, head} : Head{Kind::kV, head - params.kv_heads};
}
template <typename T>
__device__ T* Source(const Params& params, int token, Head head) {
  const Heads& heads = head.kind == Kind::kQ   ? params.q
                       : head.kind == Kind::kK ? params.k
                                               : params.v;
  return static_cast<T*>(heads.data) + token * heads.stride +
         static_cast<int64_t>(head.index) * params.head_dim;
}
// The K or the V of the slab that a k or v head is written to.
template <typename T>
__device__ T* Slab(const Params& params, int64_t page, Head head) {
  const int64_t part = static_cast<int64_t>(params.page_tokens) * params.head_dim;
  return static_cast<T*>(params.pool) +
         ((page * params.kv_heads + head.index) * 2 + (head.kind == Kind::kV ? 1 : 0)) * part;
}
__device__ inline const float* NormOf(const Params& params, Head head) {
  return head.kind == Kind::kQ ? params.q_norm : head.kind == Kind::kK ? params.k_norm : nullptr;
}

// The same two roundings wherever a pair is turned.
__device__ inline void Turn(float& x, float& y, float cosine, float sine) {
  const float turned = fmaf(x, cosine, -(y * sine));
  y = fmaf(y, cosine, x * sine);
  x = turned;
}

}  // namespace lacuna::kernels::cuda::append
