// Rotary embedding, norm of q and k heads, and the write of K and V into their pages, in one pass
// over qkv. The slab layout is kv_layout.cuh's.
//
// Stale bytes: of the tokens of a page that are in this call, the last one clears the rows behind
// it, if the page's first token is in this call too. No other token writes those rows in this call.
#include <cuda_runtime.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <type_traits>

#include "kernels/core/checked_math.h"
#include "kernels/cuda/kv_layout.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/prefetch.cuh"
#include "kernels/cuda/resident_blocks.h"
#include "kernels/cuda/vectors.cuh"

namespace lacuna::kernels::cuda {
namespace {

constexpr int kThreads = 128;

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
  int page_tokens = 0;
  int tokens = 0;
  int q_heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
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
__device__ Slots SlotsOf(const Params& params, int token) {
  return {params.slots[token], token + 1 < params.tokens ? params.slots[token + 1] : -1};
}
__device__ Place PlaceOf(const Params& params, int token, const Slots& slots) {
  const auto [slot, next] = slots;
  if (slot < 0) return {};
  Place place{slot / params.page_tokens, slot % params.page_tokens, 0};
  const bool last = next != slot + 1 || place.row + 1 == params.page_tokens;
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
__device__ Head HeadOf(const Params& params, int head) {
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
__device__ const float* NormOf(const Params& params, Head head) {
  return head.kind == Kind::kQ ? params.q_norm : head.kind == Kind::kK ? params.k_norm : nullptr;
}

// The same two roundings wherever a pair is turned.
__device__ void Turn(float& x, float& y, float cosine, float sine) {
  const float turned = fmaf(x, cosine, -(y * sine));
  y = fmaf(y, cosine, x * sine);
  x = turned;
}

// ---- Vectors: a head is spread over kLanes threads, each with two chunks of eight channels. ----

// The two chunks of a lane. Halves: a pair's two channels lie in the two chunks; interleaved: side
// by side. Lanes behind rotary_dim pass their channels on.
struct Chunks final {
  int a, b;
  bool turns;
};
template <bool kInterleaved>
__device__ Chunks ChunksOf(const Params& params, int lane) {
  const int turning = params.rotary_dim / (2 * kVector);
  if (kInterleaved || lane >= turning) {
    return {2 * kVector * lane, 2 * kVector * lane + kVector, lane < turning};
  }
  return {kVector * lane, params.rotary_dim / 2 + kVector * lane, true};
}

template <int kLanes>
__device__ float SumOverLanes(float value) {
  const unsigned group = (kLanes == 32 ? 0u : 1u << kLanes) - 1u;
  const unsigned mask = group << (threadIdx.x % 32 / kLanes * kLanes);
#pragma unroll
  for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) {
    value += __shfl_xor_sync(mask, value, lanes);
  }
  return value;
}

// 1 / rms of each of a thread's heads; 1 for those without a norm.
template <int kLanes, int kHeads, typename T>
__device__ void InverseNorms(const Params& params, const bool (&normed)[kHeads],
                             const Pack<T> (&a)[kHeads], const Pack<T> (&b)[kHeads],
                             float (&inverse)[kHeads]) {
  float sums[kHeads];
#pragma unroll
  for (int i = 0; i < kHeads; ++i) {
    float values_a[kVector];
    float values_b[kVector];
    Unpack(a[i], values_a);
    Unpack(b[i], values_b);
    sums[i] = 0.0f;
#pragma unroll
    for (int j = 0; j < kVector; ++j) {
      sums[i] = fmaf(values_a[j], values_a[j], fmaf(values_b[j], values_b[j], sums[i]));
    }
  }
#pragma unroll
  for (int i = 0; i < kHeads; ++i) {
    const float sum = SumOverLanes<kLanes>(sums[i]);
    const float mean = sum / static_cast<float>(params.head_dim);
    inverse[i] = normed[i] ? 1.0f / sqrtf(mean + params.eps) : 1.0f;
  }
}

__device__ void Scale(const float* weight, const Chunks& chunks, float inverse, float (&a)[kVector],
                      float (&b)[kVector]) {
  float weight_a[kVector];
  float weight_b[kVector];
  LoadVector<true>(weight + chunks.a, kVector, weight_a);
  LoadVector<true>(weight + chunks.b, kVector, weight_b);
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    a[i] *= inverse * weight_a[i];
    b[i] *= inverse * weight_b[i];
  }
}

template <bool kInterleaved>
__device__ void TurnLanes(const float (&cosines)[kVector], const float (&sines)[kVector],
                          float (&a)[kVector], float (&b)[kVector]) {
  if constexpr (kInterleaved) {
#pragma unroll
    for (int i = 0; i < kVector / 2; ++i) {
      Turn(a[2 * i], a[2 * i + 1], cosines[i], sines[i]);
      Turn(b[2 * i], b[2 * i + 1], cosines[kVector / 2 + i], sines[kVector / 2 + i]);
    }
  } else {
#pragma unroll
    for (int i = 0; i < kVector; ++i) Turn(a[i], b[i], cosines[i], sines[i]);
  }
}

template <typename T>
__device__ void WriteLanes(const Params& params, const Place& place, Head head,
                           const Chunks& chunks, const float (&a)[kVector],
                           const float (&b)[kVector]) {
  if (place.page < 0) return;
  T* const slab = Slab<T>(params, place.page, head);
  const auto at = [&](int row, int column) {
    return slab + KvElement(row, column, params.page_tokens, params.head_dim);
  };
  StoreVector<true>(at(place.row, chunks.a), kVector, a);
  StoreVector<true>(at(place.row, chunks.b), kVector, b);
}

// The rows of a page behind a token, by all blocks of the token together.
template <typename T>
__device__ void ClearBehind(const Params& params, const Place& place) {
  const int rows = place.clear_end - place.row - 1;
  if (place.page < 0 || rows <= 0) return;
  const int vectors = params.head_dim / kVector;  // of a row
  const int of_half = rows * vectors;             // of the K or the V of a slab
  T* const page = Slab<T>(params, place.page, {Kind::kK, 0});
  const float zeros[kVector] = {};
  for (int i = static_cast<int>(blockIdx.y * kThreads + threadIdx.x);
       i < params.kv_heads * 2 * of_half; i += static_cast<int>(gridDim.y) * kThreads) {
    const int row = place.row + 1 + i % of_half / vectors;
    const int column = i % vectors * kVector;
    StoreVector<true>(page + i / of_half * params.page_tokens * params.head_dim +
                          KvElement(row, column, params.page_tokens, params.head_dim),
                      kVector, zeros);
  }
}

// What a lane's pairs are turned by at a position.
struct Turns final {
  int position;
  float cosines[kVector];
  float sines[kVector];

  __device__ void Load(const Params& params, const Chunks& chunks, int lane, int at) {
    position = at;
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      cosines[i] = nanf("");
      sines[i] = 0.0f;
    }
    if (!chunks.turns || at < 0 || at >= params.positions_max) return;
    const float* const row = params.cos_sin + at * params.cos_sin_stride + kVector * lane;
    LoadVector<true>(row, kVector, cosines);
    LoadVector<true>(row + params.rotary_dim / 2, kVector, sines);
  }
};

// Past L1: a position read too early must not stay there.
__device__ int PositionOf(const Params& params, int token) {
  return params.rotary_dim > 0 ? __ldcg(params.positions + token) : 0;
}
// Brings to L2 what Turns will load, by the first threads of the block.
__device__ void FetchTurns(const Params& params, int64_t position) {
  constexpr int kSector = 8;  // floats
  const int column = static_cast<int>(threadIdx.x) * kSector;
  if (column >= params.rotary_dim || position < 0 || position >= params.positions_max) return;
  PrefetchL2(params.cos_sin + position * params.cos_sin_stride + column);
}

// What a thread needs of one token, all of it in flight together: its chunks of kHeads heads, the
// slots.
template <typename T, int kHeads>
struct TokenPart final {
  Pack<T> a[kHeads];
  Pack<T> b[kHeads];
  int position = 0;
  Slots slots;

  // Heads first, first + step ...; `present`: the lane has channels.
  __device__ void Load(const Params& params, int token, int at, int first, int step,
                       const Chunks& chunks, bool present) {
#pragma unroll
    for (int i = 0; i < kHeads; ++i) {
      a[i] = {};
      b[i] = {};
      const int head = first + i * step;
      if (head >= params.q_heads + 2 * params.kv_heads || !present) continue;
      const T* const from = Source<T>(params, token, HeadOf(params, head));
      a[i] = *reinterpret_cast<const Pack<T>*>(from + chunks.a);
      b[i] = *reinterpret_cast<const Pack<T>*>(from + chunks.b);
    }
    position = at;
    slots = SlotsOf(params, token);
  }
};

template <typename T, int kLanes, int kHeads, bool kInterleaved, bool kNorm>
__device__ void WriteToken(const Params& params, int token, int first, int step,
                           const Chunks& chunks, bool present, const TokenPart<T, kHeads>& part,
                           const Turns& turns) {
  const Place place = PlaceOf(params, token, part.slots);
  [[maybe_unused]] float inverse[kHeads];
  if constexpr (kNorm) {
    bool normed[kHeads];
#pragma unroll
    for (int i = 0; i < kHeads; ++i) {
      normed[i] = NormOf(params, HeadOf(params, first + i * step)) != nullptr;
    }
    InverseNorms<kLanes>(params, normed, part.a, part.b, inverse);
  }
#pragma unroll
  for (int i = 0; i < kHeads; ++i) {
    const int index = first + i * step;
    if (index >= params.q_heads + 2 * params.kv_heads || !present) break;
    const Head head = HeadOf(params, index);
    float a[kVector];
    float b[kVector];
    Unpack(part.a[i], a);
    Unpack(part.b[i], b);
    if constexpr (kNorm) {
      const float* const weight = NormOf(params, head);
      if (weight != nullptr) Scale(weight, chunks, inverse[i], a, b);
    }
    if (chunks.turns && head.kind != Kind::kV) {
      TurnLanes<kInterleaved>(turns.cosines, turns.sines, a, b);
    }
    if (head.kind == Kind::kQ) {
      T* const to = Source<T>(params, token, head);
      StoreVector<true>(to + chunks.a, kVector, a);
      StoreVector<true>(to + chunks.b, kVector, b);
    } else {
      WriteLanes<T>(params, place, head, chunks, a, b);
    }
  }
  ClearBehind<T>(params, place);
}

// A block takes every gridDim.x-th token, and fetches the next while it works on one, with the
// position of the one after that: where the next one's angles lie is known in time. A group of
// lanes takes kHeads of the token's heads. Blocks of few tokens guess the first one's position from
// what lies there before the previous kernel has ended, and have its angles, constants, by then.
template <typename T, int kLanes, int kHeads, bool kInterleaved, bool kNorm>
__global__ void __launch_bounds__(kThreads, 4) RopeAppendKernel(const Params params) {
  constexpr int kGroups = kThreads / kLanes;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const Chunks chunks = ChunksOf<kInterleaved>(params, lane);
  const bool present = chunks.b < params.head_dim;  // lanes are a power of two, head_dim is not
  const int first =
      static_cast<int>(blockIdx.y) * kGroups * kHeads + static_cast<int>(threadIdx.x) / kLanes;
  const int step = static_cast<int>(gridDim.x);
  int token = static_cast<int>(blockIdx.x);
  LetNextStart();
  Turns turns;
  if constexpr (kHeads == 1) turns.Load(params, chunks, lane, PositionOf(params, token));
  WaitForPrevious();
  TokenPart<T, kHeads> next;
  next.Load(params, token, PositionOf(params, token), first, kGroups, chunks, present);
  int ahead = token < params.tokens - step ? PositionOf(params, token + step) : 0;
  for (; token < params.tokens; token += step) {
    const TokenPart<T, kHeads> part = next;
    if (token < params.tokens - step) {
      next.Load(params, token + step, ahead, first, kGroups, chunks, present);
      FetchTurns(params, ahead);
      if (token + step < params.tokens - step) ahead = PositionOf(params, token + 2 * step);
    }
    if (kHeads > 1 || turns.position != part.position) {
      turns.Load(params, chunks, lane, part.position);
    }
    WriteToken<T, kLanes, kHeads, kInterleaved, kNorm>(params, token, first, kGroups, chunks,
                                                       present, part, turns);
  }
}

// ---- Any shape and alignment: a head to a warp, channel by channel. ----

// Slabs of f32 are plain.
template <typename T>
__device__ int SlabElement(const Params& params, int row, int column) {
  if constexpr (std::is_same_v<T, float>) return row * params.head_dim + column;
  return KvElement(row, column, params.page_tokens, params.head_dim);
}

__device__ float InverseNorm(float sum, int dim, float eps) {
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
  return 1.0f / sqrtf(sum / static_cast<float>(dim) + eps);
}

template <typename T>
__global__ void __launch_bounds__(kThreads) RopeAppendAnyKernel(const Params params) {
  LetNextStart();
  WaitForPrevious();
  const int token = static_cast<int>(blockIdx.x);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int index =
      static_cast<int>(blockIdx.y) * (kThreads / 32) + static_cast<int>(threadIdx.x) / 32;
  if (index >= params.q_heads + 2 * params.kv_heads) return;
  const Head head = HeadOf(params, index);
  const Place place = PlaceOf(params, token, SlotsOf(params, token));
  if (head.kind != Kind::kQ && place.page < 0) return;
  T* const from = Source<T>(params, token, head);
  const auto put = [&](int column, float value) {
    if (head.kind == Kind::kQ) {
      from[column] = FromF32<T>(value);
    } else {
      Slab<T>(params, place.page, head)[SlabElement<T>(params, place.row, column)] =
          FromF32<T>(value);
    }
  };
  const float* const norm = NormOf(params, head);
  float inverse = 1.0f;
  if (norm != nullptr) {
    float sum = 0.0f;
    for (int column = lane; column < params.head_dim; column += 32) {
      const float value = ToF32(from[column]);
      sum = fmaf(value, value, sum);
    }
    inverse = InverseNorm(sum, params.head_dim, params.eps);
  }
  const auto get = [&](int column) {
    const float value = ToF32(from[column]);
    return norm == nullptr ? value : value * (inverse * norm[column]);
  };
  const int pairs = head.kind == Kind::kV ? 0 : params.rotary_dim / 2;
  const int64_t position = pairs > 0 ? params.positions[token] : 0;
  const bool valid = position >= 0 && position < params.positions_max;
  for (int pair = lane; pair < pairs; pair += 32) {
    const int first = params.interleaved ? 2 * pair : pair;
    const int second = params.interleaved ? 2 * pair + 1 : pair + pairs;
    const float* const row = params.cos_sin + position * params.cos_sin_stride + pair;
    float x = get(first);
    float y = get(second);
    Turn(x, y, valid ? row[0] : nanf(""), valid ? row[pairs] : 0.0f);
    put(first, x);
    put(second, y);
  }
  for (int column = 2 * pairs + lane; column < params.head_dim; column += 32) {
    put(column, get(column));
  }
  for (int row = place.row + 1; head.kind != Kind::kQ && row < place.clear_end; ++row) {
    for (int column = lane; column < params.head_dim; column += 32) {
      Slab<T>(params, place.page, head)[SlabElement<T>(params, row, column)] = FromF32<T>(0.0f);
    }
  }
}

// ---- Launch ----

template <typename T, int kLanes, bool kInterleaved>
Status LaunchVectors(const Params& params, cudaStream_t stream) {
  constexpr int kGroups = kThreads / kLanes;
  constexpr int kTogether = 3;
  constexpr int kFewTokens = 256;
  // Each of so few may clear a page; more blocks than their heads need share that.
  constexpr int kClearTokens = 8;
  constexpr int64_t kClearParts = 16;
  constexpr int64_t kBlockTokensMax = 4;  // more blocks than run at once even their ends out
  const int heads = params.q_heads + 2 * params.kv_heads;
  const auto launch = [&](auto kernel, int heads_together) -> Status {
    int64_t parts = CeilDiv(heads, kGroups * heads_together);
    if (params.tokens <= kClearTokens) parts = std::max(parts, kClearParts);
    LACUNA_ASSIGN_OR_RETURN(const int64_t blocks,
                            ResidentBlocks(kernel, params.tokens * parts, kThreads, 0));
    const int64_t columns = std::max(CeilDiv(blocks, parts), params.tokens / kBlockTokensMax);
    return Launch(kernel, dim3(static_cast<unsigned>(columns), static_cast<unsigned>(parts)),
                  dim3(kThreads), 0, stream, params);
  };
  // Few tokens: as many blocks as possible; many: as many loads in flight as possible.
  return WithBool(params.q_norm != nullptr || params.k_norm != nullptr, [&](auto tag) {
    constexpr bool kNorm = decltype(tag)::value;
    if (params.tokens <= kFewTokens) {
      return launch(RopeAppendKernel<T, kLanes, 1, kInterleaved, kNorm>, 1);
    }
    return launch(RopeAppendKernel<T, kLanes, kTogether, kInterleaved, kNorm>, kTogether);
  });
}

template <typename T>
Status LaunchLanes(const Params& params, cudaStream_t stream) {
  return WithBool(params.interleaved, [&](auto tag) {
    constexpr bool kInterleaved = decltype(tag)::value;
    switch (std::bit_ceil(static_cast<unsigned>(params.head_dim) / (2 * kVector))) {
      case 1:
        return LaunchVectors<T, 1, kInterleaved>(params, stream);
      case 2:
        return LaunchVectors<T, 2, kInterleaved>(params, stream);
      case 4:
        return LaunchVectors<T, 4, kInterleaved>(params, stream);
      case 8:
        return LaunchVectors<T, 8, kInterleaved>(params, stream);
      default:
        return LaunchVectors<T, 16, kInterleaved>(params, stream);
    }
  });
}

template <typename T>
Status LaunchAny(const Params& params, cudaStream_t stream) {
  const int heads = params.q_heads + 2 * params.kv_heads;
  return Launch(RopeAppendAnyKernel<T>,
                dim3(static_cast<unsigned>(params.tokens),
                     static_cast<unsigned>(CeilDiv(heads, kThreads / 32))),
                dim3(kThreads), 0, stream, params);
}

bool Vectors(const Params& params, std::initializer_list<TensorView> views, DType dtype) {
  if (dtype == DType::kF32 || params.head_dim % 16 != 0 || params.head_dim > 256 ||
      params.rotary_dim % 16 != 0) {
    return false;
  }
  for (const TensorView& view : views) {
    if (view.rank() != 0 && !VectorAligned(view)) return false;
  }
  return true;
}

Status Run(const Params& params, std::initializer_list<TensorView> views, DType dtype,
           cudaStream_t stream) {
  if (dtype != DType::kF32 && params.head_dim % 8 != 0) {
    return InvalidArgument(
        "AppendKv: pool: need a head_dim that is a multiple of 8 on this device");
  }
  const bool vectors = Vectors(params, views, dtype);
  return WithType(dtype, [&](auto type) {
    using T = decltype(type);
    if constexpr (!std::is_same_v<T, float>) {
      if (vectors) return LaunchLanes<T>(params, stream);
    }
    return LaunchAny<T>(params, stream);
  });
}

Heads HeadsOf(const TensorView& view) { return {view.data(), view.stride(0)}; }

}  // namespace

Status AppendKv(const AppendKvArgs& args, cudaStream_t stream) {
  const Params params{.k = HeadsOf(args.k),
                      .v = HeadsOf(args.v),
                      .slots = args.slots.as<const int32_t>(),
                      .pool = args.pool.data,
                      .page_tokens = static_cast<int>(args.pool.page_tokens),
                      .tokens = static_cast<int>(args.k.dim(0)),
                      .kv_heads = static_cast<int>(args.pool.kv_heads),
                      .head_dim = static_cast<int>(args.pool.head_dim)};
  return Run(params, {args.k, args.v}, args.pool.dtype, stream);
}

Status RopeAppend(const RopeAppendArgs& args, cudaStream_t stream) {
  const Params params{.q = HeadsOf(args.q),
                      .k = HeadsOf(args.k),
                      .v = HeadsOf(args.v),
                      .q_norm = args.q_norm.as<const float>(),
                      .k_norm = args.k_norm.as<const float>(),
                      .eps = args.norm_eps,
                      .positions = args.positions.as<const int32_t>(),
                      .cos_sin = args.cos_sin.as<const float>(),
                      .cos_sin_stride = args.cos_sin.stride(0),
                      .positions_max = args.cos_sin.dim(0),
                      .rotary_dim = static_cast<int>(args.cos_sin.dim(1)),
                      .interleaved = args.interleaved,
                      .slots = args.slots.as<const int32_t>(),
                      .pool = args.pool.data,
                      .page_tokens = static_cast<int>(args.pool.page_tokens),
                      .tokens = static_cast<int>(args.q.dim(0)),
                      .q_heads = static_cast<int>(args.q.dim(1)),
                      .kv_heads = static_cast<int>(args.pool.kv_heads),
                      .head_dim = static_cast<int>(args.pool.head_dim)};
  return Run(params, {args.q, args.k, args.v, args.q_norm, args.k_norm, args.cos_sin},
             args.pool.dtype, stream);
}

}  // namespace lacuna::kernels::cuda
