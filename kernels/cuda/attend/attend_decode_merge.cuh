// From the sums of a decode block's warps to a result: the warps of a block are added up, then the
// parts of a unit, by log-sum-exp and always in the same order.
//
// Sums are f32: o = sum of 2^(x - max) v and l = sum of 2^(x - max), x the scores in units of
// log2(e).
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cuda/attend/attend_decode_ring.cuh"

namespace lacuna::kernels::cuda {

inline constexpr float kDecodeLog2E = 1.4426950408889634f;
inline constexpr int kConsumerBarrier = 1;

// Of one head: four channels of o, the maximum and l.
struct Sums final {
  float4 o = {0.0f, 0.0f, 0.0f, 0.0f};
  float max = -INFINITY;
  float l = 0.0f;

  __device__ void AddScaled(const float4& o2, float factor) {
    o.x = fmaf(o2.x, factor, o.x);
    o.y = fmaf(o2.y, factor, o.y);
    o.z = fmaf(o2.z, factor, o.z);
    o.w = fmaf(o2.w, factor, o.w);
  }
  __device__ void Add(const Sums& other) {
    const float top = fmaxf(max, other.max);
    const float mine = Weight(max, top);
    o = {o.x * mine, o.y * mine, o.z * mine, o.w * mine};
    l *= mine;
    const float theirs = Weight(other.max, top);
    AddScaled(other.o, theirs);
    l = fmaf(other.l, theirs, l);
    max = top;
  }
  // Of sums with maximum `max` in sums with maximum `top`.
  __device__ static float Weight(float max, float top) {
    return max == -INFINITY ? 0.0f : Exp2(max - top);
  }
};

template <typename T>
__device__ void WriteResult(const DecodeParams& p, int head_dim, int row, int head, int channel,
                            const Sums& sums) {
  float factor = 0.0f;
  float lse = -INFINITY;
  if (sums.l > 0.0f) {
    factor = 1.0f / sums.l;
    lse = (sums.max + log2f(sums.l)) / kDecodeLog2E;
    if (p.sink_logits != nullptr || p.dropped_lse != nullptr) {  // these join the denominator only
      float sink = -INFINITY;
      float dropped = -INFINITY;
      if (p.sink_logits != nullptr) sink = p.sink_logits[head] * kDecodeLog2E;
      if (p.dropped_lse != nullptr) {
        dropped = p.dropped_lse[row * p.dropped_row + head] * kDecodeLog2E;
      }
      const float top = fmaxf(sums.max, fmaxf(sink, dropped));
      const float mine = Exp2(sums.max - top);
      factor = mine / (fmaf(sums.l, mine, Exp2(sink - top)) + Exp2(dropped - top));
    }
  }
  const uint2 packed = {PackPair<T>(sums.o.x * factor, sums.o.y * factor),
                        PackPair<T>(sums.o.z * factor, sums.o.w * factor)};
  T* out = static_cast<T*>(p.out) + row * p.out_row + head * head_dim + channel;
  *reinterpret_cast<uint2*>(out) = packed;
  if (p.lse != nullptr && channel == 0) p.lse[row * p.lse_row + head] = lse;
}

// What the consumer warps share besides the stages.
struct MergeScratch final {
  float2 warp_sums[4 * kTileHeads / 8][8];  // [warp][head] (max, l)
  int arrived;
};

// The consumer threads of a block. `thread` counts from 0.
template <typename T, int kHeadDim>
class Merger final {
 public:
  static constexpr int kColumns = kHeadDim / 4;
  static constexpr int kSumStride = kHeadDim + 4;  // of a head in shared memory; no bank conflicts

  __device__ Merger(const DecodeParams& p, MergeScratch& scratch, int thread, int threads)
      : p_(p), scratch_(scratch), thread_(thread), threads_(threads) {}

  // Where in `buffer` warp `warp` puts the o of its head 0; heads follow at kSumStride.
  __device__ static float* WarpSums(float* buffer, int warp) {
    return buffer + warp * 8 * kSumStride;
  }

  // After all warps have put their sums into `buffer` and the scratch. Writes the unit's result, or
  // its part of it; the last part to arrive writes the result. Uses `buffer` up.
  __device__ void Finish(const Segment& segment, float* buffer) {
    const int heads = TileHeads(p_, segment.tile);
    const int head_0 = segment.kv_head * p_.group + segment.tile * p_.tile_heads;
    NamedBarrierSync(kConsumerBarrier, threads_);
#pragma unroll 1
    for (int i = thread_; i < heads * kColumns; i += threads_) {
      const int head = i / kColumns;
      const int channel = i % kColumns * 4;
      const Sums sums = MergeWarps(buffer, head, channel);
      if (segment.parts == 1) {
        WriteResult<T>(p_, kHeadDim, segment.row, head_0 + head, channel, sums);
      } else {
        WritePart(SlotOf(p_, segment.slot_base, segment.part), head, channel, sums);
      }
    }
    if (segment.parts == 1 || !LastToArrive(segment)) return;
    Sums sums[kColumnsPerThread];
#pragma unroll 1
    for (int part = 0; part < segment.parts; part += kChunk) {
      MergeParts(segment, part, heads, buffer, sums);
    }
    ForColumns(heads, [&](int column, int head, int channel) {
      WriteResult<T>(p_, kHeadDim, segment.row, head_0 + head, channel, sums[column]);
    });
  }

 private:
  static constexpr int kChunk = 64;  // parts that are added up at a time
  static constexpr int kLoads = 8;   // of parts in flight, per thread
  // Eight heads for every 128 threads.
  static constexpr int kColumnsPerThread = (8 * kColumns + 127) / 128;

  template <typename Visit>
  __device__ void ForColumns(int heads, Visit&& visit) const {
#pragma unroll
    for (int column = 0; column < kColumnsPerThread; ++column) {
      const int i = thread_ + column * threads_;
      if (i < heads * kColumns) visit(column, i / kColumns, i % kColumns * 4);
    }
  }

  __device__ Sums MergeWarps(const float* buffer, int head, int channel) const {
    const int warp_0 = head / 8 * 4;
    Sums sums;
    float2 max_l[4];
#pragma unroll
    for (int quarter = 0; quarter < 4; ++quarter) {
      max_l[quarter] = scratch_.warp_sums[warp_0 + quarter][head % 8];
      sums.max = fmaxf(sums.max, max_l[quarter].x);
    }
#pragma unroll
    for (int quarter = 0; quarter < 4; ++quarter) {
      const float weight = Sums::Weight(max_l[quarter].x, sums.max);
      const float* o = buffer + ((warp_0 + quarter) * 8 + head % 8) * kSumStride + channel;
      sums.AddScaled(*reinterpret_cast<const float4*>(o), weight);
      sums.l = fmaf(max_l[quarter].y, weight, sums.l);
    }
    return sums;
  }

  __device__ float* Slot(int slot) const {
    return p_.partials + static_cast<int64_t>(slot) * DecodeSlotFloats(p_.tile_heads, kHeadDim);
  }

  __device__ void WritePart(int slot, int head, int channel, const Sums& sums) const {
    float* to = Slot(slot);
    __stcg(reinterpret_cast<float4*>(to + head * kHeadDim + channel), sums.o);
    if (channel == 0) {
      __stcg(reinterpret_cast<float2*>(to + p_.tile_heads * kHeadDim) + head,
             float2{sums.max, sums.l});
    }
  }

  // Whether all other parts of the unit are written and visible to this block.
  __device__ bool LastToArrive(const Segment& segment) {
    NamedBarrierSync(kConsumerBarrier, threads_);
    if (thread_ == 0) {
      int32_t* arrivals =
          p_.arrivals + (segment.row * p_.kv_heads + segment.kv_head) * p_.tiles + segment.tile;
      scratch_.arrived = AtomicAddAcqRel(arrivals, 1);
      if (scratch_.arrived == segment.parts - 1) *arrivals = 0;  // for the next launch
    }
    NamedBarrierSync(kConsumerBarrier, threads_);
    return scratch_.arrived == segment.parts - 1;
  }

  // Adds kChunk parts from `first` on to `sums`, the thread's columns.
  __device__ void MergeParts(const Segment& segment, int first, int heads, float* buffer,
                             Sums (&sums)[kColumnsPerThread]) {
    const int count = min(kChunk, segment.parts - first);
    float* weights = buffer;  // [head][kChunk], zero from `count` on
    auto* tops = reinterpret_cast<float2*>(buffer + kTileHeads * kChunk);  // [head] (max, l)
    // See SlotOf: parts lie `step` apart, the first part of all is elsewhere.
    const int slot = DecodeSlotFloats(p_.tile_heads, kHeadDim);
    const int step = p_.list_items > 0 ? slot : 2 * slot;
    const int first_further = p_.list_items > 0 || first > 0 ? 0 : slot;
    const float* const parts = Slot(segment.slot_base) + int64_t{first} * step;
    const auto part = [&](int i) {
      return parts + (min(i, count - 1) * step + (i == 0 ? first_further : 0));
    };
    float4 o[kLoads];
    const auto load = [&](int head, int channel, int from) {
#pragma unroll
      for (int i = 0; i < kLoads; ++i) {
        o[i] = __ldcg(reinterpret_cast<const float4*>(part(from + i) + head * kHeadDim + channel));
      }
    };
    load(thread_ / kColumns % heads, thread_ % kColumns * 4, 0);  // while the weights are made
#pragma unroll 1
    for (int head = thread_ / 32; head < heads; head += threads_ / 32) {
      MakeWeights(part, count, head, weights + head * kChunk, tops + head);
    }
    NamedBarrierSync(kConsumerBarrier, threads_);
    ForColumns(heads, [&](int column, int head, int channel) {
      Sums chunk;
      chunk.max = tops[head].x;
      chunk.l = tops[head].y;
#pragma unroll 1
      for (int from = 0; from < count; from += kLoads) {
        if (column > 0 || from > 0) load(head, channel, from);
#pragma unroll
        for (int i = 0; i < kLoads; ++i) chunk.AddScaled(o[i], weights[head * kChunk + from + i]);
      }
      sums[column].Add(chunk);
    });
    if (first + kChunk < segment.parts) NamedBarrierSync(kConsumerBarrier, threads_);
  }

  // By one warp: the weights of the parts of a head, and their common maximum and l.
  template <typename Part>
  __device__ void MakeWeights(const Part& part, int count, int head, float* weights,
                              float2* top) const {
    const int lane = thread_ % 32;
    float2 max_l[kChunk / 32];
    float max = -INFINITY;
#pragma unroll
    for (int i = 0; i < kChunk / 32; ++i) {
      const int index = lane + i * 32;
      max_l[i] = {-INFINITY, 0.0f};
      if (index < count) {
        max_l[i] =
            __ldcg(reinterpret_cast<const float2*>(part(index) + p_.tile_heads * kHeadDim) + head);
      }
      max = fmaxf(max, max_l[i].x);
    }
    for (int step = 16; step > 0; step /= 2) max = fmaxf(max, __shfl_xor_sync(~0u, max, step));
    float l = 0.0f;
#pragma unroll
    for (int i = 0; i < kChunk / 32; ++i) {
      const float weight = Sums::Weight(max_l[i].x, max);
      weights[lane + i * 32] = weight;
      l = fmaf(max_l[i].y, weight, l);
    }
    for (int step = 16; step > 0; step /= 2) l += __shfl_xor_sync(~0u, l, step);
    if (lane == 0) *top = {max, l};
  }

  const DecodeParams& p_;
  MergeScratch& scratch_;
  const int thread_;
  const int threads_;
};

}  // namespace lacuna::kernels::cuda
