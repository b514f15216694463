#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>

#include "kernels/cuda/attend/attend_simple.h"
#include "kernels/cuda/attend/chunk_table.h"
#include "kernels/cuda/kv_layout.cuh"
#include "kernels/cuda/launch.cuh"

namespace lacuna::kernels::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kTileKeysMax = 32;  // one key per lane
constexpr int kPairsPerLane = kSimpleHeadDimMax / 2 / 32;

struct Geometry final {
  const void* q = nullptr;
  void* out = nullptr;
  float* lse = nullptr;
  int64_t q_row = 0, q_head = 0, out_row = 0, out_head = 0, lse_row = 0;  // strides, in elements
  const void* pool = nullptr;
  int kv_heads = 0;
  int group = 0;  // query heads per kv head
  int head_dim = 0;
  int page_tokens = 0;
  const int32_t* pages = nullptr;
  const int32_t* logical = nullptr;
  const uint64_t* masks = nullptr;  // of `pages`, or null
  AttentionParams params;
  const StaticShape* shapes = nullptr;  // [rows or chunks, kv_heads], or null
  const float* dropped_lse = nullptr;   // [rows, q_heads], or null
  int64_t dropped_row = 0;              // its stride, in elements

  __device__ StaticShape ShapeOf(int64_t index, int head) const {
    return shapes == nullptr ? params.shape : shapes[index * kv_heads + head / group];
  }
};

// What one thread block computes.
struct RowWork final {
  int64_t row = 0;
  int head = 0;
  int position = 0;
  StaticShape shape;
  int64_t list_begin = 0, list_end = 0;
  const int32_t* range_begins = nullptr;  // null: no ranges
  const int32_t* range_ends = nullptr;
  int64_t range_first = 0, range_end = 0;
};

__device__ float2 LoadPair(const float* p) { return *reinterpret_cast<const float2*>(p); }
__device__ float2 LoadPair(const __nv_bfloat16* p) {
  return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(p));
}
__device__ float2 LoadPair(const __half* p) {
  return __half22float2(*reinterpret_cast<const __half2*>(p));
}
__device__ void Store(float* p, float value) { *p = value; }
__device__ void Store(__nv_bfloat16* p, float value) { *p = __float2bfloat16_rn(value); }
__device__ void Store(__half* p, float value) { *p = __float2half_rn(value); }

template <typename T>
__device__ int ElementOf(const Geometry& g, int row, int column) {
  if constexpr (sizeof(T) == 4) return row * g.head_dim + column;
  return KvElement(row, column, g.page_tokens, g.head_dim);
}

// q (in shared memory, f32) times one row of K.
template <typename T>
__device__ float Dot(const Geometry& g, const float* q, const T* k, int row) {
  float sum = 0.0f;
  if constexpr (sizeof(T) == 4) {
    for (int d = 0; d < g.head_dim; d += 2) {
      const float2 pair = LoadPair(k + row * g.head_dim + d);
      sum = fmaf(q[d], pair.x, sum);
      sum = fmaf(q[d + 1], pair.y, sum);
    }
  } else {
    for (int d = 0; d < g.head_dim; d += 8) {
      const auto chunk = *reinterpret_cast<const uint4*>(k + ElementOf<T>(g, row, d));
      const T* elements = reinterpret_cast<const T*>(&chunk);
#pragma unroll
      for (int i = 0; i < 8; i += 2) {
        const float2 pair = LoadPair(elements + i);
        sum = fmaf(q[d + i], pair.x, sum);
        sum = fmaf(q[d + i + 1], pair.y, sum);
      }
    }
  }
  return sum;
}

// Softmax over the keys that one warp has seen; out spread over the lanes in pairs of columns.
struct Running final {
  float max = -INFINITY;
  float sum = 0.0f;
  float2 out[kPairsPerLane] = {};
};

__device__ float WarpMax(float value) {
  for (int lane = 16; lane > 0; lane >>= 1) {
    value = fmaxf(value, __shfl_xor_sync(~0u, value, lane));
  }
  return value;
}
__device__ float WarpSum(float value) {
  for (int lane = 16; lane > 0; lane >>= 1) value += __shfl_xor_sync(~0u, value, lane);
  return value;
}

// Rows [first_row, first_row + 32) of a page, of which `visible` says whether this lane's counts.
// Rows that nobody sees are not read: they may hold anything.
template <typename T>
__device__ void AddTile(const Geometry& g, const float* q, const T* k, const T* v, int first_row,
                        bool visible, Running* running) {
  const int lane = static_cast<int>(threadIdx.x) & 31;
  if (!__any_sync(~0u, visible)) return;
  float score = -INFINITY;
  if (visible) {
    score = g.params.scale * Dot(g, q, k, first_row + lane);
    if (g.params.softcap > 0.0f) score = g.params.softcap * tanhf(score / g.params.softcap);
  }
  const float max = fmaxf(running->max, WarpMax(score));
  const float weight = expf(score - max);
  const float keep = expf(running->max - max);
  running->max = max;
  running->sum = fmaf(running->sum, keep, WarpSum(weight));
#pragma unroll
  for (int i = 0; i < kPairsPerLane; ++i) {
    running->out[i].x *= keep;
    running->out[i].y *= keep;
  }
  for (int key = 0; key < 32; ++key) {
    const float p = __shfl_sync(~0u, weight, key);
    if (p == 0.0f) continue;
#pragma unroll
    for (int i = 0; i < kPairsPerLane; ++i) {
      const int column = (i * 32 + lane) * 2;
      if (column >= g.head_dim) break;
      const float2 pair = LoadPair(v + ElementOf<T>(g, first_row + key, column));
      running->out[i].x = fmaf(p, pair.x, running->out[i].x);
      running->out[i].y = fmaf(p, pair.y, running->out[i].y);
    }
  }
}

// The keys of this warp: every kWarps-th tile, counted by position in the sequence.
template <typename T>
__device__ void AddList(const Geometry& g, const RowWork& work, const float* q, Running* running) {
  const int warp = static_cast<int>(threadIdx.x) >> 5;
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int tile_keys = min(g.page_tokens, kTileKeysMax);
  const int tiles_per_page = g.page_tokens / tile_keys;
  const int64_t slab = 2 * static_cast<int64_t>(g.page_tokens) * g.head_dim;
  const StaticShape shape = work.shape;
  int64_t range = work.range_first;
  for (int64_t entry = work.list_begin; entry < work.list_end; ++entry) {
    const int page_first = g.logical[entry] * g.page_tokens;
    if (page_first > work.position) break;
    const uint64_t mask = g.masks == nullptr ? ~uint64_t{0} : g.masks[entry];
    const T* k = static_cast<const T*>(g.pool) +
                 (static_cast<int64_t>(g.pages[entry]) * g.kv_heads + work.head / g.group) * slab;
    for (int tile = 0; tile < tiles_per_page; ++tile) {
      const int first = page_first + tile * tile_keys;
      if (first / tile_keys % kWarps != warp || first > work.position) continue;
      const int key = first + lane;
      bool visible = lane < tile_keys && (mask >> (tile * tile_keys + lane) & 1) != 0 &&
                     key <= work.position &&
                     (shape.window_tokens == 0 || key > work.position - shape.window_tokens ||
                      key < shape.sink_tokens);
      if (work.range_begins != nullptr) {
        while (range < work.range_end && work.range_ends[range] <= first) ++range;
        bool listed = false;
        for (int64_t r = range; r < work.range_end && work.range_begins[r] < first + tile_keys;
             ++r) {
          listed |= key >= work.range_begins[r] && key < work.range_ends[r];
        }
        visible &= listed;
      }
      AddTile(g, q, k, k + slab / 2, tile * tile_keys, visible, running);
    }
  }
}

// Merges the warps in a fixed order and writes the row.
template <typename T>
__device__ void FinishRow(const Geometry& g, const RowWork& work, const Running& running) {
  __shared__ float2 outs[kWarps][kSimpleHeadDimMax / 2];
  __shared__ float maxes[kWarps], sums[kWarps];
  const int warp = static_cast<int>(threadIdx.x) >> 5;
  const int lane = static_cast<int>(threadIdx.x) & 31;
#pragma unroll
  for (int i = 0; i < kPairsPerLane; ++i) outs[warp][i * 32 + lane] = running.out[i];
  if (lane == 0) {
    maxes[warp] = running.max;
    sums[warp] = running.sum;
  }
  __syncthreads();
  float max = -INFINITY;
  for (int w = 0; w < kWarps; ++w) max = fmaxf(max, maxes[w]);
  float weights[kWarps] = {};
  float sum = 0.0f;
  for (int w = 0; w < kWarps; ++w) {
    if (sums[w] > 0.0f) weights[w] = expf(maxes[w] - max);
    sum = fmaf(weights[w], sums[w], sum);
  }
  float factor = sum > 0.0f ? 1.0f / sum : 0.0f;
  if ((g.params.sink_logits != nullptr || g.dropped_lse != nullptr) && sum > 0.0f) {
    float sink = -INFINITY;
    float dropped = -INFINITY;
    if (g.params.sink_logits != nullptr) sink = g.params.sink_logits[work.head];
    if (g.dropped_lse != nullptr) dropped = g.dropped_lse[work.row * g.dropped_row + work.head];
    const float top = fmaxf(max, fmaxf(sink, dropped));
    const float mine = expf(max - top);
    factor = mine / (fmaf(sum, mine, expf(sink - top)) + expf(dropped - top));
  }
  T* out = static_cast<T*>(g.out) + work.row * g.out_row + work.head * g.out_head;
  for (int pair = static_cast<int>(threadIdx.x); pair < g.head_dim / 2; pair += kWarps * 32) {
    float2 total{0.0f, 0.0f};
    for (int w = 0; w < kWarps; ++w) {
      total.x = fmaf(weights[w], outs[w][pair].x, total.x);
      total.y = fmaf(weights[w], outs[w][pair].y, total.y);
    }
    Store(out + 2 * pair, total.x * factor);
    Store(out + 2 * pair + 1, total.y * factor);
  }
  if (g.lse != nullptr && threadIdx.x == 0) {
    g.lse[work.row * g.lse_row + work.head] = sum > 0.0f ? max + logf(sum) : -INFINITY;
  }
}

template <typename T>
__device__ void AttendRow(const Geometry& g, const RowWork& work) {
  __shared__ float q[kSimpleHeadDimMax];
  const T* from = static_cast<const T*>(g.q) + work.row * g.q_row + work.head * g.q_head;
  for (int pair = static_cast<int>(threadIdx.x); pair < g.head_dim / 2; pair += kWarps * 32) {
    q[2 * pair] = static_cast<float>(from[2 * pair]);
    q[2 * pair + 1] = static_cast<float>(from[2 * pair + 1]);
  }
  __syncthreads();
  Running running;
  AddList<T>(g, work, q, &running);
  FinishRow<T>(g, work, running);
}

template <typename T>
__global__ void __launch_bounds__(kWarps * 32)
    PrefillKernel(const __grid_constant__ Geometry g, const __grid_constant__ ChunkTable table,
                  const int64_t* begins, const int64_t* ends,
                  const __grid_constant__ KeyRanges ranges) {
  LetNextStart();
  WaitForPrevious();
  const ChunkTable::Entry& entry = table.Find(static_cast<int>(blockIdx.x));
  const int query = static_cast<int>(blockIdx.x) - entry.first_tile;
  RowWork work;
  work.row = int64_t{entry.chunk.first_row} + query;
  work.head = static_cast<int>(blockIdx.y);
  work.position = entry.chunk.first_position + query;
  work.shape = g.ShapeOf(entry.index, work.head);
  work.list_begin = begins[entry.index];
  work.list_end = ends[entry.index];
  if (ranges.begins != nullptr) {
    constexpr int kTile = KeyRanges::kQueryTileTokens;
    const int tiles = (entry.chunk.rows - 1) / kTile + 1;
    const int64_t list =
        ranges.chunk_offsets[entry.index] + int64_t{work.head} * tiles + query / kTile;
    work.range_begins = ranges.begin;
    work.range_ends = ranges.end;
    work.range_first = ranges.begins[list];
    work.range_end = ranges.ends[list];
  }
  AttendRow<T>(g, work);
}

template <typename T>
__global__ void __launch_bounds__(kWarps * 32)
    DecodeKernel(const __grid_constant__ Geometry g, const int32_t* positions,
                 const int64_t* begins, const int64_t* ends, int lists_per_row) {
  LetNextStart();
  WaitForPrevious();
  RowWork work;
  work.row = blockIdx.x;
  work.head = static_cast<int>(blockIdx.y);
  work.position = positions[work.row];
  work.shape = g.ShapeOf(work.row, work.head);
  const int64_t list = work.row * lists_per_row + (lists_per_row > 1 ? work.head / g.group : 0);
  work.list_begin = begins[list];
  work.list_end = ends[list];
  AttendRow<T>(g, work);
}

template <typename Args>
Geometry MakeGeometry(const Args& args) {
  Geometry g;
  g.q = args.q.data();
  g.out = args.out.data();
  g.q_row = args.q.stride(0);
  g.q_head = args.q.stride(1);
  g.out_row = args.out.stride(0);
  g.out_head = args.out.stride(1);
  if (!args.lse.empty()) {
    g.lse = args.lse.template as<float>();
    g.lse_row = args.lse.stride(0);
  }
  g.pool = args.pool.data;
  g.kv_heads = static_cast<int>(args.pool.kv_heads);
  g.group = static_cast<int>(args.q.dim(1) / args.pool.kv_heads);
  g.head_dim = static_cast<int>(args.pool.head_dim);
  g.page_tokens = static_cast<int>(args.pool.page_tokens);
  g.pages = args.lists.pages;
  g.logical = args.lists.logical;
  g.masks = args.lists.masks;
  g.params = args.params;
  g.shapes = args.shapes;
  return g;
}

Status CheckSizes(const KvPool& pool) {
  const int multiple = pool.dtype == DType::kF32 ? 2 : 8;
  if (pool.head_dim > kSimpleHeadDimMax || pool.head_dim % multiple != 0) {
    return InvalidArgument("attention on CUDA: head_dim at most 256 and a multiple of 8");
  }
  if (pool.page_tokens % 16 != 0) return InvalidArgument("attention on CUDA: pages of 16 tokens");
  return OkStatus();
}

template <typename T>
Status Prefill(const AttendPrefillArgs& args, cudaStream_t stream) {
  const Geometry g = MakeGeometry(args);
  const auto heads = static_cast<unsigned>(args.q.dim(1));
  ChunkTable table;
  for (size_t next = 0; next < args.chunks.size();) {
    next = table.Fill(args.chunks, next, 1);
    if (table.count == 0) break;
    LACUNA_RETURN_IF_ERROR(Launch(PrefillKernel<T>, dim3(static_cast<unsigned>(table.tiles), heads),
                                  dim3(kWarps * 32), 0, stream, g, table, args.lists.begins,
                                  args.lists.ends,
                                  args.ranges != nullptr ? *args.ranges : KeyRanges{}));
  }
  return OkStatus();
}

template <typename T>
Status Decode(const AttendDecodeArgs& args, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(args.q.dim(0)), static_cast<unsigned>(args.q.dim(1)));
  if (grid.x == 0) return OkStatus();
  Geometry g = MakeGeometry(args);
  if (!args.dropped_lse.empty()) {
    g.dropped_lse = args.dropped_lse.as<float>();
    g.dropped_row = args.dropped_lse.stride(0);
  }
  return Launch(DecodeKernel<T>, grid, dim3(kWarps * 32), 0, stream, g,
                args.positions.as<int32_t>(), args.lists.begins, args.lists.ends,
                args.lists_per_row);
}

}  // namespace

Status AttendPrefillSimple(const AttendPrefillArgs& args, cudaStream_t stream) {
  LACUNA_RETURN_IF_ERROR(CheckSizes(args.pool));
  switch (args.pool.dtype) {
    case DType::kF32:
      return Prefill<float>(args, stream);
    case DType::kBF16:
      return Prefill<__nv_bfloat16>(args, stream);
    case DType::kF16:
      return Prefill<__half>(args, stream);
    default:
      return InvalidArgument("attention on CUDA: f32, bf16 or f16");
  }
}

Status AttendDecodeSimple(const AttendDecodeArgs& args, cudaStream_t stream) {
  LACUNA_RETURN_IF_ERROR(CheckSizes(args.pool));
  switch (args.pool.dtype) {
    case DType::kF32:
      return Decode<float>(args, stream);
    case DType::kBF16:
      return Decode<__nv_bfloat16>(args, stream);
    case DType::kF16:
      return Decode<__half>(args, stream);
    default:
      return InvalidArgument("attention on CUDA: f32, bf16 or f16");
  }
}

}  // namespace lacuna::kernels::cuda
