// Rotary embedding, norm of q and k heads, and the write of K and V into their pages, in one pass
// over qkv. The slab layout is kv_layout.cuh's.
#include <cuda_runtime.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <type_traits>

#include "kernels/core/checked_math.h"
#include "kernels/cuda/append/append_kv.cuh"
#include "kernels/cuda/append/append_kv_ring.cuh"
#include "kernels/cuda/kv_layout.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/resident_blocks.h"
#include "kernels/cuda/vectors.cuh"

namespace lacuna::kernels::cuda {
namespace append {
namespace {

// ---- Vectors: a head is spread over kLanes threads, each with two chunks of eight channels. ----

// The two chunks of a lane: one of each half of the channels that turn, where a pair's two channels
// lie in both or, interleaved, side by side. Lanes behind these share the other channels likewise.
struct Chunks final {
  int a, b;
  bool turns;
};
__device__ Chunks ChunksOf(const Params& params, int lane) {
  const int turning = params.rotary_dim / (2 * kVector);
  if (lane < turning) return {kVector * lane, params.rotary_dim / 2 + kVector * lane, true};
  const int at = kVector * (lane - turning);
  return {params.rotary_dim + at, (params.rotary_dim + params.head_dim) / 2 + at, false};
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

// 1 / rms of a head.
template <int kLanes>
__device__ float InverseNorm(const Params& params, float sum_of_squares) {
  return rsqrtf(fmaf(SumOverLanes<kLanes>(sum_of_squares), params.dim_inverse, params.eps));
}

__device__ void Scale(const float* weight, const Chunks& chunks, float inverse, float (&a)[kVector],
                      float (&b)[kVector]) {
  float weight_a[kVector];
  float weight_b[kVector];
#pragma unroll
  for (int i = 0; i < kVector; i += 4) {
    LoadFour(weight + chunks.a + i, weight_a + i);
    LoadFour(weight + chunks.b + i, weight_b + i);
  }
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

// What a lane's pairs are turned by at a position.
template <bool kInterleaved>
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
    // Interleaved: four pairs in each chunk.
    const int first = kInterleaved ? kVector / 2 * lane : kVector * lane;
    const int second = kInterleaved ? params.rotary_dim / 4 : kVector / 2;  // behind the first
    const float* const row = params.cos_sin + at * params.cos_sin_stride + first;
    LoadFour(row, cosines);
    LoadFour(row + second, cosines + kVector / 2);
    LoadFour(row + params.rotary_dim / 2, sines);
    LoadFour(row + params.rotary_dim / 2 + second, sines + kVector / 2);
  }
};

// Norm and rotation of a lane's channels of a head; by the whole group.
template <int kLanes, bool kInterleaved, bool kNorm>
__device__ void TurnHead(const Params& params, Head head, const Chunks& chunks, bool present,
                         const Turns<kInterleaved>& turns, float (&a)[kVector],
                         float (&b)[kVector]) {
  const float* const weight = kNorm ? NormOf(params, head) : nullptr;
  if (weight != nullptr) {
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < kVector; ++i) sum = fmaf(a[i], a[i], fmaf(b[i], b[i], sum));
    const float inverse = InverseNorm<kLanes>(params, sum);
    if (present) Scale(weight, chunks, inverse, a, b);
  }
  if (chunks.turns && head.kind != Kind::kV) {
    TurnLanes<kInterleaved>(turns.cosines, turns.sines, a, b);
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

// Eight zeros in one store: of a struct the compiler makes single ones.
template <typename T>
__device__ void ClearVector(T* to) {
  static_assert(sizeof(T) * kVector == sizeof(uint4));
  *reinterpret_cast<uint4*>(to) = uint4{0, 0, 0, 0};
}

// The rows of a page behind a token, by all blocks of the token together.
template <typename T>
__device__ void ClearBehind(const Params& params, const Place& place) {
  const int rows = place.clear_end - place.row - 1;
  if (place.page < 0 || rows <= 0) return;
  const int vectors = params.head_dim / kVector;  // of a row
  const int of_half = rows * vectors;             // of the K or the V of a slab
  T* const page = Slab<T>(params, place.page, {Kind::kK, 0});
  for (int i = static_cast<int>(blockIdx.y * kThreads + threadIdx.x);
       i < params.kv_heads * 2 * of_half; i += static_cast<int>(gridDim.y) * kThreads) {
    const int row = place.row + 1 + i % of_half / vectors;
    const int column = i % vectors * kVector;
    ClearVector(page + i / of_half * params.page_tokens * params.head_dim +
                KvElement(row, column, params.page_tokens, params.head_dim));
  }
}

// Past L1: a position read too early must not stay there.
__device__ int PositionOf(const Params& params, int token) {
  return params.rotary_dim > 0 ? __ldcg(params.positions + token) : 0;
}

// Few tokens, heads with a norm, and heads that lanes do not share evenly: blockIdx.x is a token, a
// group of lanes takes one of its heads. A block guesses the position from what lies there before
// the previous kernel has ended, and has the angles, which are constants, by then.
template <typename T, int kLanes, bool kInterleaved, bool kNorm>
__global__ void __launch_bounds__(kThreads) RopeAppendKernel(const Params params) {
  constexpr int kGroups = kThreads / kLanes;
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const Chunks chunks = ChunksOf(params, lane);
  const int index = static_cast<int>(blockIdx.y) * kGroups + static_cast<int>(threadIdx.x) / kLanes;
  // Lanes are a power of two, head_dim is not.
  const bool present = chunks.b < params.head_dim && index < params.q_heads + 2 * params.kv_heads;
  const int token = static_cast<int>(blockIdx.x);
  LetNextStart();
  Turns<kInterleaved> turns;
  turns.Load(params, chunks, lane, PositionOf(params, token));
  WaitForPrevious();
  const Head head = HeadOf(params, index);
  T* const source = Source<T>(params, token, head);
  Pack<T> pack_a{};
  Pack<T> pack_b{};
  if (present) {
    pack_a = *reinterpret_cast<const Pack<T>*>(source + chunks.a);
    pack_b = *reinterpret_cast<const Pack<T>*>(source + chunks.b);
  }
  const int position = PositionOf(params, token);
  const Slots slots = SlotsOf(params, token);
  if (turns.position != position) turns.Load(params, chunks, lane, position);
  const Place place = PlaceOf(params, token, slots);
  float a[kVector];
  float b[kVector];
  Unpack(pack_a, a);
  Unpack(pack_b, b);
  TurnHead<kLanes, kInterleaved, kNorm>(params, head, chunks, present, turns, a, b);
  if (present && head.kind == Kind::kQ) {
    StoreVector<true>(source + chunks.a, kVector, a);
    StoreVector<true>(source + chunks.b, kVector, b);
  } else if (present) {
    WriteLanes<T>(params, place, head, chunks, a, b);
  }
  ClearBehind<T>(params, place);
}

// Many tokens: see Ring. A thread has a lane's chunks of kTogether heads of one token at a time.
template <typename T, int kLanes>
struct Outputs final {
  static constexpr int kStep = kBlockHeads<kLanes> / kTogether;
  static constexpr int kHeadDim = 2 * kVector * kLanes;
  int first;         // the heads are first, first + kStep ...
  T* to[kTogether];  // of q at token 0, of k and v in page 0; null: no such head

  __device__ Outputs(const Params& params, int first_head) : first(first_head) {
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      const int index = first + i * kStep;
      const Head head = HeadOf(params, index);
      to[i] = index >= params.q_heads + 2 * params.kv_heads ? nullptr
              : head.kind == Kind::kQ                       ? Source<T>(params, 0, head)
                                                            : Slab<T>(params, 0, head);
    }
  }
  __device__ Head head(const Params& params, int i) const {
    return HeadOf(params, first + i * kStep);
  }
};

// Where a lane's chunks of a row of any K or V lie, behind the start of that in page 0.
template <int kHeadDim>
struct Spots final {
  int64_t a, b;
  __device__ Spots(const Params& params, int64_t page, int row, const Chunks& chunks) {
    const int64_t start = page * params.kv_heads * 2 * params.page_tokens * kHeadDim;
    a = start + KvElement(row, chunks.a, params.page_tokens, kHeadDim);
    b = start + KvElement(row, chunks.b, params.page_tokens, kHeadDim);
  }
};

// The rows of a page behind a token, of a thread's heads.
template <typename T, int kLanes>
__device__ void ClearBehind(const Params& params, const Place& place,
                            const Outputs<T, kLanes>& outputs, const Chunks& chunks) {
  for (int row = place.row + 1; row < place.clear_end; ++row) {
    const Spots<outputs.kHeadDim> spots(params, place.page, row, chunks);
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      if (outputs.to[i] == nullptr || outputs.head(params, i).kind == Kind::kQ) continue;
      ClearVector(outputs.to[i] + spots.a);
      ClearVector(outputs.to[i] + spots.b);
    }
  }
}

template <typename T, int kLanes, bool kInterleaved>
__device__ void WriteToken(const Params& params, const Outputs<T, kLanes>& outputs,
                           const Chunks& chunks, const TokenPart<T>& part, int64_t q_row,
                           const Place& place, const Spots<2 * kVector * kLanes>& spots,
                           const Turns<kInterleaved>& turns) {
#pragma unroll
  for (int i = 0; i < kTogether; ++i) {
    if (outputs.to[i] == nullptr) break;
    const Head head = outputs.head(params, i);
    float a[kVector];
    float b[kVector];
    Unpack(part.a[i], a);
    Unpack(part.b[i], b);
    TurnHead<kLanes, kInterleaved, false>(params, head, chunks, true, turns, a, b);
    const bool is_q = head.kind == Kind::kQ;
    if (!is_q && place.page < 0) break;  // behind it are no q heads
    StoreVector<true>(outputs.to[i] + (is_q ? q_row + chunks.a : spots.a), kVector, a);
    StoreVector<true>(outputs.to[i] + (is_q ? q_row + chunks.b : spots.b), kVector, b);
  }
}

// blockIdx.x is a part of the heads. A block takes every gridDim.y-th group of tokens, so that all
// blocks together move through memory in order, and has the next ones on the way while it works on
// one. Before the previous kernel has ended it guesses its first positions, as above, and brings
// its first tokens to L2. For heads without a norm (with one, its registers do not suffice) whose
// channels the lanes share evenly.
template <typename T, int kLanes, bool kInterleaved>
__global__ void __launch_bounds__(kThreads, 4) RopeAppendManyKernel(const Params params) {
  LACUNA_DYNAMIC_SHARED(16, char, memory);
  auto& ring = *reinterpret_cast<Ring<T, kLanes>*>(memory);
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int group = static_cast<int>(threadIdx.x) / kLanes;
  const Chunks chunks = ChunksOf(params, lane);
  const int block_head = static_cast<int>(blockIdx.x) * kBlockHeads<kLanes>;
  const Outputs<T, kLanes> outputs(params, block_head + group / kBlockTokens);
  const auto share = CopierShare<T>(params, block_head, kBlockHeads<kLanes>);
  const int step = static_cast<int>(gridDim.y) * kBlockTokens;
  int start = static_cast<int>(blockIdx.y) * kBlockTokens;
  int token = start + group % kBlockTokens;
  const auto fetch = [&](int ahead, int stage) {  // the tokens `ahead` steps on, if there are any
    if (start < params.tokens - ahead * step) {
      ring.Fetch(params, share, block_head, start + ahead * step, stage);
    }
  };
  LetNextStart();
  if (threadIdx.x == 0) ring.Init();
  PrefetchShares(params, share, start);
  Turns<kInterleaved> turns;
  turns.Load(params, chunks, lane, PositionOf(params, min(token, params.tokens - 1)));
  __syncthreads();
  WaitForPrevious();
#pragma unroll
  for (int i = 0; i < kStages; ++i) fetch(i, i);
  const int position = PositionOf(params, min(token, params.tokens - 1));
  if (turns.position != position) turns.Load(params, chunks, lane, position);
  Slots slots = token < params.tokens ? SlotsOf(params, token) : Slots{};
  int next_position = token < params.tokens - step ? PositionOf(params, token + step) : 0;
  for (int turn = 0; start < params.tokens; start += step, token += step, ++turn) {
    Turns<kInterleaved> next_turns = turns;
    Slots next_slots;
    if (token < params.tokens - step) {
      next_turns.Load(params, chunks, lane, next_position);
      next_slots = SlotsOf(params, token + step);
      if (token < params.tokens - 2 * step) next_position = PositionOf(params, token + 2 * step);
    }
    const Place place = PlaceOf(params, token, slots);
    const Spots<outputs.kHeadDim> spots(params, place.page, place.row, chunks);
    const int stage = turn % kStages;
    ring.Wait(stage, static_cast<uint32_t>(turn / kStages % 2));
    const TokenPart<T> part =
        ring.Part(stage, group % kBlockTokens, group / kBlockTokens, chunks.a, chunks.b);
    __syncthreads();
    fetch(kStages, stage);
    if (token < params.tokens) {
      WriteToken<T, kLanes, kInterleaved>(params, outputs, chunks, part, token * params.q.stride,
                                          place, spots, turns);
      ClearBehind<T, kLanes>(params, place, outputs, chunks);
    }
    turns = next_turns;
    slots = next_slots;
  }
}

// ---- Any shape and alignment: a head to a warp, channel by channel. ----

// Slabs of f32 are plain.
template <typename T>
__device__ int SlabElement(const Params& params, int row, int column) {
  if constexpr (std::is_same_v<T, float>) return row * params.head_dim + column;
  return KvElement(row, column, params.page_tokens, params.head_dim);
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
    inverse = InverseNorm<32>(params, sum);
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
Status LaunchMany(const Params& params, int64_t heads, cudaStream_t stream) {
  const auto kernel = RopeAppendManyKernel<T, kLanes, kInterleaved>;
  constexpr size_t kShared = sizeof(Ring<T, kLanes>);
  LACUNA_CUDA_RETURN_IF_ERROR(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared));
  const int64_t parts = CeilDiv(heads, kBlockHeads<kLanes>);
  const int64_t groups = CeilDiv(params.tokens, kBlockTokens);
  LACUNA_ASSIGN_OR_RETURN(const int64_t resident,
                          ResidentBlocks(kernel, groups * parts, kThreads, kShared));
  // As many turns to a block as end first when rounds of resident blocks follow each other; a round
  // costs a turn more. Blocks that run longer drift apart, and memory is no longer read in order.
  constexpr int64_t kTurnsMax = 8;
  int64_t best_turns = 0;
  int64_t best_time = 0;
  for (int64_t turns = kTurnsMax; turns > 0; --turns) {
    const int64_t time = CeilDiv(CeilDiv(groups, turns) * parts, resident) * (turns + 1);
    if (best_turns > 0 && time >= best_time) continue;
    best_turns = turns;
    best_time = time;
  }
  const auto columns = static_cast<unsigned>(CeilDiv(groups, best_turns));
  return Launch(kernel, dim3(static_cast<unsigned>(parts), columns), dim3(kThreads), kShared,
                stream, params);
}

template <typename T, int kLanes, bool kInterleaved, bool kNorm>
Status LaunchVectors(const Params& params, cudaStream_t stream) {
  constexpr int kGroups = kThreads / kLanes;
  constexpr int kFewTokens = 256;
  // Each of so few may clear a page; more blocks than their heads need share that.
  constexpr int kClearTokens = 8;
  constexpr int64_t kClearParts = 16;
  const int heads = params.q_heads + 2 * params.kv_heads;
  if constexpr (!kNorm) {
    if (params.tokens > kFewTokens && params.head_dim == 2 * kVector * kLanes) {
      return LaunchMany<T, kLanes, kInterleaved>(params, heads, stream);
    }
  }
  int64_t parts = CeilDiv(heads, kGroups);
  if (params.tokens <= kClearTokens) parts = std::max(parts, kClearParts);
  return Launch(RopeAppendKernel<T, kLanes, kInterleaved, kNorm>,
                dim3(static_cast<unsigned>(params.tokens), static_cast<unsigned>(parts)),
                dim3(kThreads), 0, stream, params);
}

template <typename T, int kLanes, bool kInterleaved>
Status LaunchVectors(const Params& params, cudaStream_t stream) {
  return WithBool(params.q_norm != nullptr || params.k_norm != nullptr, [&](auto tag) {
    return LaunchVectors<T, kLanes, kInterleaved, decltype(tag)::value>(params, stream);
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
}  // namespace append

Status AppendKv(const AppendKvArgs& args, cudaStream_t stream) {
  const append::Params params{
      .k = append::HeadsOf(args.k),
      .v = append::HeadsOf(args.v),
      .slots = args.slots.as<const int32_t>(),
      .pool = args.pool.data,
      .page_tokens = static_cast<int>(args.pool.page_tokens),
      .page_shift = std::countr_zero(static_cast<unsigned>(args.pool.page_tokens)),
      .tokens = static_cast<int>(args.k.dim(0)),
      .kv_heads = static_cast<int>(args.pool.kv_heads),
      .head_dim = static_cast<int>(args.pool.head_dim),
      .dim_inverse = 1.0f / static_cast<float>(args.pool.head_dim)};
  return append::Run(params, {args.k, args.v}, args.pool.dtype, stream);
}

Status RopeAppend(const RopeAppendArgs& args, cudaStream_t stream) {
  const append::Params params{
      .q = append::HeadsOf(args.q),
      .k = append::HeadsOf(args.k),
      .v = append::HeadsOf(args.v),
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
      .page_shift = std::countr_zero(static_cast<unsigned>(args.pool.page_tokens)),
      .tokens = static_cast<int>(args.q.dim(0)),
      .q_heads = static_cast<int>(args.q.dim(1)),
      .kv_heads = static_cast<int>(args.pool.kv_heads),
      .head_dim = static_cast<int>(args.pool.head_dim),
      .dim_inverse = 1.0f / static_cast<float>(args.pool.head_dim)};
  return append::Run(params, {args.q, args.k, args.v, args.q_norm, args.k_norm, args.cos_sin},
                     args.pool.dtype, stream);
}

}  // namespace lacuna::kernels::cuda
