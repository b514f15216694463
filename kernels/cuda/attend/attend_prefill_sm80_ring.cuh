// How key and value tiles of attend_prefill_sm80.cu reach shared memory: by cp.async of all
// threads, or on sm_90 by bulk copies of one.
#pragma once

#include <cstdint>

#include "kernels/cuda/attend/attend_prefill_sm80.cuh"
#include "kernels/cuda/ptx.cuh"

namespace lacuna::kernels::cuda::sm80 {

// Copies the keys or the values of a tile, a page of 64, into a slot: its stripes as they are.
// `data` is the K or V of the pool's first slab of this head.
template <typename Tile>
__device__ __forceinline__ void CopyPage(const std::byte* data, int64_t page_bytes, int page,
                                         uint32_t slot) {
  const auto piece = static_cast<int>(threadIdx.x) * 16;
  const std::byte* from = data + page * page_bytes + piece;
  const uint32_t to = slot + static_cast<uint32_t>(piece);
#pragma unroll
  for (int at = 0; at < Tile::kSlotBytes; at += Tile::kThreads * 16) {
    AsyncCopy16(to + static_cast<uint32_t>(at), from + at);
  }
}

// The same from four pages of 16 keys, each a quarter of every stripe; zeros where there is none.
template <typename Tile>
__device__ __forceinline__ void CopyPages(const std::byte* data, int64_t page_bytes,
                                          const int4& pages, uint32_t slot) {
  const auto thread = static_cast<int>(threadIdx.x);
#pragma unroll
  for (int stripe = 0; stripe < Tile::kStripes; ++stripe) {
    const int pieces = StripeWidth<Tile::kDim>(stripe * kStripeColumns) * 2;  // 16 bytes, of a page
    const int stripe_at = stripe * kStripeColumns * 2;
#pragma unroll
    for (int at = 0; at < kGroups * pieces; at += Tile::kThreads) {
      const int piece = at + thread;
      const int group = pieces == Tile::kThreads ? at / pieces : piece / pieces;
      const int page =
          group < 2 ? (group == 0 ? pages.x : pages.y) : (group == 2 ? pages.z : pages.w);
      AsyncCopy16(
          slot + static_cast<uint32_t>(stripe_at * kKeyTile + piece * 16),
          data + max(page, 0) * page_bytes + stripe_at * kGroupKeys + (piece - group * pieces) * 16,
          page >= 0);
    }
  }
}

// Either of the above by bulk copies of one thread, announced to `barrier`. A page that is missing
// is replaced by one that is there: its keys are masked, and its values must be numbers.
template <typename Tile>
__device__ inline void CopyBulk(const std::byte* data, int64_t page_bytes, const PrefillPlan& plan,
                                int index, uint32_t slot, uint32_t barrier) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  BarrierArriveExpect(barrier, Tile::kSlotBytes);
  if (plan.single()) {
    BulkCopyToShared(slot, data + plan.Page(index) * page_bytes, Tile::kSlotBytes, barrier);
    return;
  }
  const int4 pages = plan.Pages(index);
  const int some = max(max(pages.x, pages.y), max(pages.z, pages.w));
  const int ids[kGroups] = {pages.x, pages.y, pages.z, pages.w};
#pragma unroll
  for (int group = 0; group < kGroups; ++group) {
    const std::byte* page = data + (ids[group] < 0 ? some : ids[group]) * page_bytes;
#pragma unroll
    for (int stripe = 0; stripe < Tile::kStripes; ++stripe) {
      const int bytes = StripeWidth<Tile::kDim>(stripe * kStripeColumns) * kGroupKeys * 2;
      const int stripe_at = stripe * kStripeColumns * 2;
      BulkCopyToShared(slot + static_cast<uint32_t>(stripe_at * kKeyTile + group * bytes),
                       page + stripe_at * kGroupKeys, static_cast<uint32_t>(bytes), barrier);
    }
  }
#endif
}

// The ring of key and value tiles: K0 V0 K1 V1 ... All threads call the same functions in the same
// order. A slot is filled again after a barrier that follows its last use.
template <typename Tile>
class TileRing final {
 public:
  __device__ TileRing(const PrefillParams& p, const PrefillPlan& plan, int kv_head, uint32_t shared)
      : plan_(plan),
        data_(p.pool + kv_head * p.slab_bytes),
        half_(p.slab_bytes / 2),
        page_bytes_(p.kv_heads * p.slab_bytes),
        slots_(shared + Tile::kQBytes),
        barriers_(shared + Tile::kBarriersAt) {}

  // By one thread, before a barrier.
  __device__ void InitBarriers() const {
    if constexpr (kBulk) {
#pragma unroll
      for (int slot = 0; slot < kSlots; ++slot) BarrierInit(barriers_ + slot * 8, 1);
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
      FenceBarrierInit();
#endif
    }
  }

  // Starts a batch of the plan, of at least one tile.
  __device__ void Begin(int tiles) {
    fill_ = take_ = 0;
    Fill(0, tiles, false);
    if constexpr (kSlots > 2) Fill(0, tiles, true);
  }
  // The keys of a tile; valid until Keys of the next one.
  __device__ uint32_t Keys(int index, int tiles) {
    AsyncCopyWait<kSlots == 3 ? 1 : 0>();  // of Q, the first time
    __syncthreads();
    if constexpr (kSlots == 2) {
      Fill(index, tiles, true);
    } else {
      Fill(index + 1, tiles, false);
    }
    if constexpr (kSlots == 4) Fill(index + 1, tiles, true);
    return Take();
  }
  __device__ uint32_t Values(int index, int tiles) {
    if constexpr (kSlots != 4) {
      AsyncCopyWait<kSlots == 3 ? 1 : 0>();
      __syncthreads();
      Fill(index + 1, tiles, kSlots == 3);
    }
    return Take();
  }

 private:
  static constexpr bool kBulk = Tile::kBulk;
  static constexpr int kSlots = Tile::kSlots;

  __device__ void Fill(int index, int tiles, bool values) {
    if (index < tiles) {
      const std::byte* from = values ? data_ + half_ : data_;
      const uint32_t slot = slots_ + static_cast<uint32_t>(fill_ * Tile::kSlotBytes);
      if constexpr (kBulk) {
        if (threadIdx.x == 0) {
          CopyBulk<Tile>(from, page_bytes_, plan_, index, slot,
                         barriers_ + static_cast<uint32_t>(fill_) * 8);
        }
      } else if (plan_.single()) {
        CopyPage<Tile>(from, page_bytes_, plan_.Page(index), slot);
      } else {
        CopyPages<Tile>(from, page_bytes_, plan_.Pages(index), slot);
      }
    }
    if constexpr (!kBulk) AsyncCopyCommit();
    fill_ = Next(fill_);
  }
  __device__ uint32_t Take() {
    const int slot = take_;
    take_ = Next(take_);
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if constexpr (kBulk) {
      BarrierWait(barriers_ + static_cast<uint32_t>(slot) * 8, (parities_ >> slot) & 1);
      parities_ ^= 1u << slot;
    }
#endif
    return slots_ + static_cast<uint32_t>(slot * Tile::kSlotBytes);
  }
  __device__ static int Next(int slot) { return slot + 1 == kSlots ? 0 : slot + 1; }

  const PrefillPlan& plan_;
  const std::byte* data_;  // K of the first slab of the head
  int64_t half_;           // bytes from K to V
  int64_t page_bytes_;
  uint32_t slots_;
  uint32_t barriers_;
  int fill_ = 0;
  int take_ = 0;
  uint32_t parities_ = 0;  // of the next wait, a bit for each slot
};

}  // namespace lacuna::kernels::cuda::sm80
