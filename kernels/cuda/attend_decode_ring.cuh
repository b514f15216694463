// The ring of stages through which the producer warp of a decode block feeds its consumer warps:
// shared memory layout, barriers, and the copies.
//
// A stage holds the slabs of kStageTokens tokens as they lie in the pool, then the query heads of
// its unit (used in the first stage of a segment), one head per padded row. Its header says what it
// is. On sm_90 bulk copies fill it, before that 16-byte asynchronous copies.
#pragma once

#include <climits>
#include <cstdint>

#include "kernels/cuda/attend_decode_schedule.cuh"
#include "kernels/cuda/ptx.cuh"

namespace lacuna::kernels::cuda {

inline constexpr int kHiddenKey = INT_MAX - kStageTokens;  // of a quarter that holds nothing

struct StageHeader final {
  int quarter_keys[4];  // position of the first of each 16 tokens
  int pages[4];         // for the producer
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
// At a full barrier: who announces, and before sm_90 the copies of each lane.
inline constexpr int kFullArrivals = LACUNA_DECODE_BULK_COPIES ? 1 : 33;

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
__device__ inline void CopiesIssued(const uint64_t& barrier) {
#if !LACUNA_DECODE_BULK_COPIES
  AsyncCopyArrive(SharedAddress(&barrier));
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

__device__ inline bool SomeVisible(const DecodeParams& p, int position, int key, int keys) {
  if (key > position) return false;
  return p.window_tokens == 0 || key + keys - 1 > position - p.window_tokens || key < p.sink_tokens;
}
__device__ inline bool AllVisible(const DecodeParams& p, int position, int key, int keys) {
  if (key + keys - 1 > position) return false;
  return p.window_tokens == 0 || key > position - p.window_tokens || key + keys - 1 < p.sink_tokens;
}

// Fills stages; used by the producer warp, all lanes together.
template <int kHeadDim>
class Producer final {
 public:
  __device__ Producer(const DecodeParams& p, const char* stages, RingBarriers* barriers,
                      StageHeader* headers)
      : p_(p),
        stages_(SharedAddress(stages)),
        barriers_(barriers),
        headers_(headers),
        lane_(static_cast<int>(threadIdx.x) % 32) {}

  // The visible pages of a segment; at least one stage, so that its result gets written.
  __device__ void Send(const Segment& segment) {
    const int per_stage = kStageTokens / p_.page_tokens;
    const int end = min(segment.end * per_stage, segment.list_pages);
    bool first = true;
    bool last = false;
    for (int base = segment.begin * per_stage; base < end; base += 32) {
      const int mine = base + lane_;
      int page = 0;
      int key = 0;
      bool visible = false;
      if (mine < end) {
        page = p_.pages[segment.list_begin + mine];
        key = p_.logical[segment.list_begin + mine] * p_.page_tokens;
        visible = SomeVisible(p_, segment.position, key, p_.page_tokens);
      }
      unsigned left = __ballot_sync(~0u, visible);
      while (left != 0) {
        unsigned picks = 0;
        for (int i = 0; i < per_stage; ++i) {
          picks |= left & (~left + 1);
          left &= left - 1;
        }
        last = left == 0 && base + 32 >= end;
        Push(segment, first, last, page, key, picks);
        first = false;
      }
    }
    if (!last) Push(segment, first, true, 0, 0, 0);
  }

  __device__ void Stop() {
    const RingBarriers& barriers = barriers_[cursor_.stage];
    WaitFor(barriers.empty, cursor_.parity ^ 1);
    if (lane_ == 0) {
      headers_[cursor_.stage].stop = true;
      Announce(barriers.k_full, 0);
    }
    CopiesIssued(barriers.k_full);
  }

 private:
  // One stage: the pages, with their first keys, that the lanes in `picks` hold.
  __device__ void Push(const Segment& segment, bool first, bool last, int lane_page, int lane_key,
                       unsigned picks) {
    const RingBarriers& barriers = barriers_[cursor_.stage];
    const int quarters = p_.page_tokens / 16;  // of a stage, in a page
    const int count = __popc(picks);
    int quarter_key = kHiddenKey;
    int page = 0;  // lane i has the i-th
    for (int i = 0; i < count; ++i) {
      const int from = __ffs(static_cast<int>(picks)) - 1;
      picks &= picks - 1;
      const int page_i = __shfl_sync(~0u, lane_page, from);
      const int key_i = __shfl_sync(~0u, lane_key, from);
      if (lane_ == i) page = page_i;
      if (lane_ / quarters == i) quarter_key = key_i + lane_ % quarters * 16;
    }
    WaitFor(barriers.empty, cursor_.parity ^ 1);
    StageHeader& header = headers_[cursor_.stage];
    if (lane_ < 4) {
      header.quarter_keys[lane_] = quarter_key;
      header.pages[lane_] = page;
    }
    if (lane_ == 0) {
      header.first = first;
      header.last = last;
      header.stop = false;
      if (first || last) header.segment = segment;
    }
    __syncwarp();
    Copy(barriers, segment, first, count, page);
    cursor_.Advance(p_.ring_stages);
  }

  __device__ void Copy(const RingBarriers& barriers, const Segment& segment, bool with_queries,
                       int count, int page) {
    const uint32_t stage =
        stages_ + static_cast<uint32_t>(cursor_.stage * DecodeStageBytes(kHeadDim, p_.tile_heads));
    const int half = p_.page_tokens * kHeadDim * 2;  // the K or the V of a page
    const int query_bytes = kHeadDim * 2;
    const int heads = with_queries ? TileHeads(p_, segment.tile) : 0;
    if (lane_ == 0) {
      Announce(barriers.k_full, count * half + heads * query_bytes);
      Announce(barriers.v_full, count * half);
    }
    __syncwarp();
    const StageHeader& header = headers_[cursor_.stage];
    const auto slab = [&](int i) {
      return p_.pool +
             (static_cast<int64_t>(header.pages[i]) * p_.kv_heads + segment.kv_head) * 2 * half;
    };
    CopyAll(count, half, barriers.k_full, [&](int i) {
      return CopyAddresses{stage + static_cast<uint32_t>(2 * i * half), slab(i)};
    });
    CopyAll(heads, query_bytes, barriers.k_full, [&](int i) {
      const int head = segment.kv_head * p_.group + segment.tile * p_.tile_heads + i;
      return CopyAddresses{
          stage +
              static_cast<uint32_t>(DecodeSlabsBytes(kHeadDim) + i * DecodeQueryRowBytes(kHeadDim)),
          static_cast<const std::byte*>(p_.q) + (segment.row * p_.q_row + head * kHeadDim) * 2};
    });
    CopiesIssued(barriers.k_full);
    CopyAll(count, half, barriers.v_full, [&](int i) {
      return CopyAddresses{stage + static_cast<uint32_t>((2 * i + 1) * half), slab(i) + half};
    });
    CopiesIssued(barriers.v_full);
  }

  const DecodeParams& p_;
  const uint32_t stages_;
  RingBarriers* const barriers_;
  StageHeader* const headers_;
  const int lane_;
  RingCursor cursor_;
};

}  // namespace lacuna::kernels::cuda
