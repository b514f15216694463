// From the sums of a decode block's warps to a result: the warps of a block are added up, then the
// parts of a unit, by log-sum-exp and always in the same order.
//
// Sums are f32: o = sum of 2^(x - max) v and l = sum of 2^(x - max), x the scores in units of
// log2(e).
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cuda/attend_decode_ring.cuh"

namespace lacuna::kernels::cuda {

inline constexpr float kDecodeLog2E = 1.4426950408889634f;
inline constexpr int kConsumerBarrier = 1;

// Of one head: four channels of o, the maximum and l.
struct Sums final {
  float4 o = {0.0f, 0.0f, 0.0f, 0.0f};
  float max = -INFINITY;
  float l = 0.0f;

  __device__ void Add(const float4& o2, float max2, float l2) {
    const float top = fmaxf(max, max2);
    if (top == -INFINITY) return;
    const float mine = Exp2(max - top);
    const float theirs = Exp2(max2 - top);
    o.x = o.x * mine + o2.x * theirs;
    o.y = o.y * mine + o2.y * theirs;
    o.z = o.z * mine + o2.z * theirs;
    o.w = o.w * mine + o2.w * theirs;
    l = l * mine + l2 * theirs;
    max = top;
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
    if (p.sink_logits != nullptr) {
      const float sink = p.sink_logits[head] * kDecodeLog2E;
      const float top = fmaxf(sums.max, sink);
      const float mine = Exp2(sums.max - top);
      factor = mine / (sums.l * mine + Exp2(sink - top));
    }
  }
  const uint2 packed = {Pack<T>(sums.o.x * factor, sums.o.y * factor),
                        Pack<T>(sums.o.z * factor, sums.o.w * factor)};
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
  // its part of it; the last part to arrive writes the result.
  __device__ void Finish(const Segment& segment, const float* buffer) {
    const int heads = TileHeads(p_, segment.tile);
    const int head_0 = segment.kv_head * p_.group + segment.tile * p_.tile_heads;
    NamedBarrierSync(kConsumerBarrier, threads_);
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
    for (int i = thread_; i < heads * kColumns; i += threads_) {
      const int head = i / kColumns;
      const int channel = i % kColumns * 4;
      WriteResult<T>(p_, kHeadDim, segment.row, head_0 + head, channel,
                     MergeParts(segment, head, channel));
    }
  }

 private:
  __device__ Sums MergeWarps(const float* buffer, int head, int channel) const {
    Sums sums;
#pragma unroll
    for (int quarter = 0; quarter < 4; ++quarter) {
      const int warp = head / 8 * 4 + quarter;
      const float2 max_l = scratch_.warp_sums[warp][head % 8];
      const float* o = buffer + (warp * 8 + head % 8) * kSumStride + channel;
      sums.Add(*reinterpret_cast<const float4*>(o), max_l.x, max_l.y);
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
      __threadfence();
      scratch_.arrived = atomicAdd(arrivals, 1);
      __threadfence();
      if (scratch_.arrived == segment.parts - 1) *arrivals = 0;  // for the next launch
    }
    NamedBarrierSync(kConsumerBarrier, threads_);
    return scratch_.arrived == segment.parts - 1;
  }

  __device__ Sums MergeParts(const Segment& segment, int head, int channel) const {
    constexpr int kAtOnce = 8;  // loads in flight
    Sums sums;
    for (int base = 0; base < segment.parts; base += kAtOnce) {
      float4 o[kAtOnce];
      float2 max_l[kAtOnce];
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        const int part = min(base + i, segment.parts - 1);
        const float* from = Slot(SlotOf(p_, segment.slot_base, part));
        o[i] = __ldcg(reinterpret_cast<const float4*>(from + head * kHeadDim + channel));
        max_l[i] = __ldcg(reinterpret_cast<const float2*>(from + p_.tile_heads * kHeadDim) + head);
      }
#pragma unroll
      for (int i = 0; i < kAtOnce; ++i) {
        if (base + i < segment.parts) sums.Add(o[i], max_l[i].x, max_l[i].y);
      }
    }
    return sums;
  }

  const DecodeParams& p_;
  MergeScratch& scratch_;
  const int thread_;
  const int threads_;
};

}  // namespace lacuna::kernels::cuda
