// How the chunks of all rows come to the warps that measure them.
#pragma once

#include <cstdint>

#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/sample/sample_call.cuh"
#include "kernels/cuda/sample/sample_candidates.cuh"

namespace lacuna::kernels::cuda {

// What a block of the first launch has in shared memory.
struct MeasureScratch final {
  float values[kMeasureWarps][kChunk];
  CandidateScratch candidates;
  uint64_t barriers[kMeasureWarps];
};
static_assert(sizeof(MeasureScratch) <= 48 * 1024);  // more would have to be asked for
__device__ inline MeasureScratch& SharedMeasure() {
  return *reinterpret_cast<MeasureScratch*>(SharedMemory());
}

// A chunk, and its place among those of all rows.
struct ChunkCursor final {
  int at;
  int row;
  int chunk;

  __device__ ChunkCursor(int place, int all) : at(place), row(place / all), chunk(at - row * all) {}
  __device__ void Move(int step, int all) {
    at += step;
    chunk += step;
#pragma unroll 1
    while (chunk >= all) {
      chunk -= all;
      ++row;
    }
  }
};

__device__ inline bool IsCut(const SampleParams& params, const ChunkCursor& of) {
  return (of.chunk + 1) * kChunk > params.vocab;
}
__device__ inline const float* LogitsOf(const SampleParams& params, const ChunkCursor& of) {
  return params.logits + of.row * params.logits_stride + of.chunk * kChunk;
}
// -inf behind the row.
__device__ __forceinline__ void LoadLogits(const SampleParams& params, const ChunkCursor& of,
                                           LaneChunk& x) {
  if (params.aligned && !IsCut(params, of)) {
    LoadAligned(LogitsOf(params, of), x);
  } else {
    LoadUnaligned(LogitsOf(params, of), params.vocab - of.chunk * kChunk, x);
  }
}

// A warp's next chunk, on its way to shared memory while the one before is measured: by one bulk
// copy, or where there are none by copies of 16 bytes, of which a lane reads its own. No more than
// one: then all arrive late and together (64 rows on an H200, 32 warps on a multiprocessor: 12.3
// us, with two chunks for each 13.2). Chunks that are not whole, or not aligned, are loaded when
// they are taken.
class NextChunk final {
 public:
  __device__ explicit NextChunk(const SampleParams& params) : p_(params) {
    MeasureScratch& s = SharedMeasure();
    values_ = SharedAddress(s.values[WarpIndex()]);
    barrier_ = SharedAddress(&s.barriers[WarpIndex()]);
    if constexpr (kBulk) {
      if (LaneIndex() == 0) {
        BarrierInit(barrier_, 1);
        FenceBarrierInit();
      }
      __syncwarp();
    }
  }
  // What was fetched before has been taken or dropped.
  __device__ __forceinline__ void Fetch(const ChunkCursor& of) {
    if (!Copies(of)) return;
    const float* const from = LogitsOf(p_, of);
    if constexpr (kBulk) {
      if (LaneIndex() == 0) {
        BarrierArriveExpect(barrier_, kBytes);
        BulkCopyToShared(values_, from, kBytes, barrier_);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kLaneValues; i += 4) {
        AsyncCopy16(values_ + LaneChunk::Token(i) * 4, from + LaneChunk::Token(i));
      }
      AsyncCopyCommit();
    }
  }
  // What was fetched last.
  __device__ __forceinline__ void Take(const ChunkCursor& of, LaneChunk& x) {
    if (!Copies(of)) return LoadLogits(p_, of, x);
    Wait();
#pragma unroll
    for (int i = 0; i < kLaneValues; i += 4) {
      const uint4 four = LoadShared128(values_ + LaneChunk::Token(i) * 4);
      x.values[i] = __uint_as_float(four.x);
      x.values[i + 1] = __uint_as_float(four.y);
      x.values[i + 2] = __uint_as_float(four.z);
      x.values[i + 3] = __uint_as_float(four.w);
    }
    __syncwarp();  // before the next copy
  }
  __device__ __forceinline__ void Drop(const ChunkCursor& of) {
    if (Copies(of)) Wait();
    __syncwarp();
  }

 private:
  static constexpr bool kBulk = kHasClusters;
  static constexpr uint32_t kBytes = kChunk * 4;

  __device__ bool Copies(const ChunkCursor& of) const { return p_.aligned && !IsCut(p_, of); }
  __device__ __forceinline__ void Wait() {
    if constexpr (kBulk) {
      BarrierWait(barrier_, parity_);
      parity_ ^= 1u;
    } else {
      AsyncCopyWait<0>();
    }
  }

  const SampleParams& p_;
  uint32_t values_;
  uint32_t barrier_;
  uint32_t parity_ = 0;
};

}  // namespace lacuna::kernels::cuda
