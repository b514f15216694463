// The ring of stages through which the producer warp of a decode block feeds its consumer warps:
// shared memory layout, barriers, and the copies.
//
// A stage holds the slabs of kStageTokens tokens as they lie in the pool (or one slab put together
// from groups of 16 tokens, or single tokens, of several pages of 64), then the query heads of its
// unit (used in the first stage of a segment), one head per padded row. Its header says what it is.
// On sm_90 bulk copies fill it, before that and for single tokens 16-byte asynchronous copies.
#pragma once

#include <cstdint>

#include "kernels/cuda/attend/attend_decode_schedule.cuh"
#include "kernels/cuda/ptx.cuh"

namespace lacuna::kernels::cuda {

struct StageHeader final {
  uint32_t visible[4];  // of each 16 tokens: bit i is set where the query reads token i
  int sources[4];       // for the producer, see StagePieces
  bool first;           // of its segment
  bool last;            // of its segment: `segment` is valid here and in the first
  bool stop;            // nothing follows
  Segment segment;
};

struct RingBarriers final {
  uint64_t k_full;
  uint64_t v_full;
  uint64_t empty;
};

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
#define LACUNA_DECODE_BULK_COPIES 0
#else
#define LACUNA_DECODE_BULK_COPIES 1
#endif
// Whether stages may be put together from parts of pages.
__host__ __device__ inline bool DecodeGathers(const DecodeParams& p) {
  return p.masks != nullptr && p.page_tokens == kStageTokens;
}
// Whether a stage may have 16-byte copies.
__device__ inline bool CopiesByLanes(const DecodeParams& p) {
  return !LACUNA_DECODE_BULK_COPIES || DecodeGathers(p);
}
// At a full barrier: who announces, and the 16-byte copies of each lane.
__device__ inline uint32_t FullArrivals(const DecodeParams& p) { return CopiesByLanes(p) ? 33 : 1; }

// One warp's position in the ring.
struct RingCursor final {
  int stage = 0;
  uint32_t parity = 0;

  __device__ void Advance(int stages) {
    if (++stage == stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

__device__ inline void WaitFor(const uint64_t& barrier, uint32_t parity) {
#if LACUNA_DECODE_BULK_COPIES
  BarrierWait(SharedAddress(&barrier), parity);
#else
  while (!BarrierTestWait(SharedAddress(&barrier), parity)) {
  }
#endif
}

__device__ inline void ArriveAt(const uint64_t& barrier) {
  BarrierArriveSm80(SharedAddress(&barrier));
}

// By one lane, before any of `bytes` are copied.
__device__ inline void Announce(const uint64_t& barrier, int bytes) {
#if LACUNA_DECODE_BULK_COPIES
  BarrierArriveExpect(SharedAddress(&barrier), static_cast<uint32_t>(bytes));
#else
  ArriveAt(barrier);
#endif
}

// By all lanes, after their last copy for this barrier.
__device__ inline void CopiesIssued(const DecodeParams& p, const uint64_t& barrier) {
  if (CopiesByLanes(p)) AsyncCopyArrive(SharedAddress(&barrier));
}

// Between ordinary writes to a stage and the next copies there.
__device__ inline void FenceBeforeCopies() {
#if LACUNA_DECODE_BULK_COPIES
  FenceProxyAsyncShared();
#endif
}

struct CopyAddresses final {
  uint32_t to;  // shared memory
  const std::byte* from;
};

// By all lanes: `count` copies of `bytes` each, the i-th at where(i). They are the first to leave
// L2, where the partial results shall stay.
template <typename Where>
__device__ void CopyAll(int count, int bytes, const uint64_t& barrier, Where&& where) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#if LACUNA_DECODE_BULK_COPIES
  if (lane < count) {
    const auto [to, from] = where(lane);
    BulkCopyToShared(to, from, static_cast<uint32_t>(bytes), SharedAddress(&barrier),
                     CreateEvictFirstPolicy());
  }
#else
  for (int i = 0; i < count; ++i) {
    const auto [to, from] = where(i);
    for (int at = lane * 16; at < bytes; at += 32 * 16) AsyncCopy16(to + at, from + at);
  }
#endif
}

// Bits [0, n) of 16.
__device__ inline uint32_t FirstTokens(int n) { return (1u << min(max(n, 0), 16)) - 1; }

// Bit i: the shape lets a query at `position` see key + i.
__device__ inline uint32_t VisibleTokens(const StaticShape& shape, int position, int key) {
  if (key > position) return 0;
  const uint32_t causal = FirstTokens(position - key + 1);
  if (shape.window_tokens == 0) return causal;
  return causal & (~FirstTokens(position - key + 1 - shape.window_tokens) |
                   FirstTokens(shape.sink_tokens - key));
}
__device__ inline bool SomeVisible(const StaticShape& shape, int position, int key, int keys) {
  if (key > position) return false;
  return shape.window_tokens == 0 || key + keys - 1 > position - shape.window_tokens ||
         key < shape.sink_tokens;
}

}  // namespace lacuna::kernels::cuda
