// Matrix product for few rows (m <= 16) on sm_90: limited by the stream of the weights from memory.
//
// One block per SM walks an even share of the weight rows in tiles of up to 64; a ring of
// asynchronous 16-byte copies (bulk copies take ~80 cycles each here, too long for 512-byte pieces)
// keeps ~100 KB per SM on the way, and starts before the previous kernel has ended: weights never
// change. Eight warps multiply with mma.m16n8k16, weights as B
// (8 rows a group), tokens as A. The positions within 32 consecutive k are permuted alike in both,
// so that a thread reads 16 bytes of its row at once: TileMatmul uses the same order.
#include <algorithm>

#include "kernels/core/checked_math.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/matmul/matmul_epilogue.cuh"
#include "kernels/cuda/matmul/matmul_kernels.h"
#include "kernels/cuda/ptx.cuh"

namespace lacuna::kernels::cuda {
namespace {

constexpr int kWarps = 8;      // that multiply
constexpr int kCopyWarps = 4;  // that copy weights; one more copies x
constexpr int kThreads = (kWarps + kCopyWarps + 1) * 32;
constexpr int kGroupRows = 8;
constexpr int kStagesMax = 12;
constexpr int kConsumerBarrier = 1;

// Bytes from row to row of a ring slot that holds kChunk of k: 64 over a multiple of 128, so that
// the 16-byte reads of a warp (8 rows x 64 bytes) have no bank conflicts.
template <int kChunk>
constexpr int kPitch = kChunk * 2 + 64;

struct SkinnyParams final {
  const std::byte* x;
  const std::byte* weight;
  MatmulSink sink;
  int64_t x_stride_bytes;
  int m;
  int n;
  int k;
  int tile_groups;  // most groups of a tile; times the splits of k at most kWarps
  int stages;
};

// The share of one block: groups [begin, begin + count) of 8 weight rows, cut into even tiles.
struct Share final {
  int begin;
  int count;
  int tiles;

  __device__ Share(const SkinnyParams& p) {
    const int groups = (p.n + kGroupRows - 1) / kGroupRows;
    const int block = static_cast<int>(blockIdx.x);
    const int blocks = static_cast<int>(gridDim.x);
    begin = static_cast<int>(static_cast<int64_t>(groups) * block / blocks);
    count = static_cast<int>(static_cast<int64_t>(groups) * (block + 1) / blocks) - begin;
    tiles = (count + p.tile_groups - 1) / p.tile_groups;
  }
  __device__ int TileBegin(int tile) const { return begin + count * tile / tiles; }
};

struct Ring final {
  uint32_t data;
  uint32_t full;  // barriers, 8 bytes apart
  uint32_t empty;
  int slot_bytes;
  int x_offset;  // of the rows of x in a slot

  __device__ uint32_t slot(int stage) const {
    return data + static_cast<uint32_t>(stage * slot_bytes);
  }
};

// Walks the ring as a producer: slots filled so far decide when to wait for the consumers.
struct Cursor final {
  const Ring& ring;
  int stages;
  int it = 0;
  int stage = 0;
  uint32_t parity = 1;  // of the wait for an empty slot; the first round passes at once

  __device__ void WaitEmpty() const { BarrierWait(ring.empty + stage * 8, parity); }
  __device__ void Next() {
    ++it;
    if (++stage == stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// The barrier gets one arrival of this thread when its copies so far have landed.
__device__ inline void ArriveWhenCopied(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}

// Weights, by kCopyWarps warps, each a row of a chunk at a time. They are constants: no wait for
// the previous kernel, and the next one may start when the last copy is on its way.
template <int kChunk>
__device__ void CopyWeights(const SkinnyParams& p, const Share& share, const Ring& ring,
                            int chunks) {
  const int warp = static_cast<int>(threadIdx.x) / 32 - kWarps;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  Cursor cursor{ring, p.stages};
  for (int tile = 0; tile < share.tiles; ++tile) {
    const int first = share.TileBegin(tile) * kGroupRows;
    const int rows = min(share.TileBegin(tile + 1) * kGroupRows, p.n) - first;
    for (int chunk = 0; chunk < chunks; ++chunk, cursor.Next()) {
      cursor.WaitEmpty();
      const std::byte* from =
          p.weight + (static_cast<int64_t>(first + warp) * p.k + chunk * kChunk) * 2 + lane * 16;
      const uint32_t to = ring.slot(cursor.stage) + warp * kPitch<kChunk> + lane * 16;
      const int units = min(kChunk, p.k - chunk * kChunk) / 8;  // of 16 bytes
#pragma unroll 8
      for (int row = warp; row < rows; row += kCopyWarps) {
        const int step = row - warp;
#pragma unroll
        for (int unit = 0; unit < kChunk / 8; unit += 32) {
          if (unit + lane < units) {
            AsyncCopy16(to + step * kPitch<kChunk> + unit * 16,
                        from + static_cast<int64_t>(step) * p.k * 2 + unit * 16);
          }
        }
      }
      ArriveWhenCopied(ring.full + cursor.stage * 8);
    }
  }
}

// x, by one warp, after the previous kernel has ended.
template <int kChunk>
__device__ void CopyX(const SkinnyParams& p, const Share& share, const Ring& ring, int chunks) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  WaitForPrevious();
  Cursor cursor{ring, p.stages};
  for (int tile = 0; tile < share.tiles; ++tile) {
    for (int chunk = 0; chunk < chunks; ++chunk, cursor.Next()) {
      cursor.WaitEmpty();
      const std::byte* from = p.x + chunk * kChunk * 2 + lane * 16;
      const uint32_t to = ring.slot(cursor.stage) + ring.x_offset + lane * 16;
      const int units = min(kChunk, p.k - chunk * kChunk) / 8;
      for (int row = 0; row < p.m; ++row) {
#pragma unroll
        for (int unit = 0; unit < kChunk / 8; unit += 32) {
          if (unit + lane < units) {
            AsyncCopy16(to + row * kPitch<kChunk> + unit * 16,
                        from + row * p.x_stride_bytes + unit * 16);
          }
        }
      }
      ArriveWhenCopied(ring.full + cursor.stage * 8);
    }
  }
}

__device__ inline void LoadShared16(uint32_t (&out)[4], uint32_t address) {
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(address));
}

// 32 of k: weights of this thread's row, x of this thread's tokens (g and g + 8).
template <typename T, int kPitchBytes, bool kWide>
__device__ inline void Multiply32(float (&sum)[4], uint32_t weight, uint32_t x, bool valid) {
  uint32_t b[4] = {};
  uint32_t low[4] = {};
  uint32_t high[4] = {};
  if (valid) {
    LoadShared16(b, weight);
    LoadShared16(low, x);
    if (kWide) LoadShared16(high, x + 8 * kPitchBytes);
  }
  MmaM16N8K16<T>(sum, {low[0], high[0], low[1], high[1]}, b[0], b[1]);
  MmaM16N8K16<T>(sum, {low[2], high[2], low[3], high[3]}, b[2], b[3]);
}

// The sums of a group, of which this warp holds a share: [16 tokens x 8 rows] as mma leaves them.
template <int kSplits>
__device__ void Finish(const SkinnyParams& p, float (&sum)[4], float* partials, int group_slot,
                       int split, int group, bool active) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if constexpr (kSplits > 1) {
    const int stride = p.tile_groups * 32;
    float4* mine = reinterpret_cast<float4*>(partials) + group_slot * 32 + lane;
    if (split > 0 && split < kSplits) mine[(split - 1) * stride] = {sum[0], sum[1], sum[2], sum[3]};
    NamedBarrierSync(kConsumerBarrier, kWarps * 32);
    if (split == 0) {
#pragma unroll
      for (int s = 0; s < kSplits - 1; ++s) {
        const float4 other = mine[s * stride];
        sum[0] += other.x;
        sum[1] += other.y;
        sum[2] += other.z;
        sum[3] += other.w;
      }
    }
  }
  if (!active || split > 0) return;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int token = lane / 4 + (i / 2) * 8;
    const int column = group * kGroupRows + (lane % 4) * 2 + i % 2;
    if (token < p.m && column < p.n) StoreResult(p.sink, token, column, sum[i]);
  }
}

template <typename T, int kChunk, int kSplits, bool kWide>
__device__ void Consume(const SkinnyParams& p, const Share& share, const Ring& ring,
                        float* partials, int chunks) {
  constexpr int kPitchBytes = kPitch<kChunk>;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int group_slot = warp % p.tile_groups;
  const int split = warp / p.tile_groups;
  const int at = lane % 4 * 16;
  const int x_row = min(lane / 4, p.m - 1);  // rows beyond m: anything that is there
  const int weight_at = (group_slot * kGroupRows + lane / 4) * kPitchBytes + at;
  const int x_at = ring.x_offset + (kWide ? lane / 4 : x_row) * kPitchBytes + at;
  int stage = 0;
  uint32_t parity = 0;
  WaitForPrevious();
  for (int tile = 0; tile < share.tiles; ++tile) {
    const int group = share.TileBegin(tile) + group_slot;
    const bool active = group < share.TileBegin(tile + 1) && split < kSplits;
    float sum[4] = {};
    for (int chunk = 0; chunk < chunks; ++chunk) {
      BarrierWait(ring.full + stage * 8, parity);
      const uint32_t slot = ring.slot(stage);
      const int k_here = min(kChunk, p.k - chunk * kChunk);
      if (active && k_here == kChunk) {
#pragma unroll
        for (int step = 0; step < kChunk / 32; step += kSplits) {
          const int offset = (step + split) * 64;  // kSplits divides the steps
          Multiply32<T, kPitchBytes, kWide>(sum, slot + weight_at + offset, slot + x_at + offset,
                                            true);
        }
      } else if (active) {
        for (int step = split; step * 32 < k_here; step += kSplits) {
          const bool valid = step * 32 + lane % 4 * 8 < k_here;
          Multiply32<T, kPitchBytes, kWide>(sum, slot + weight_at + step * 64,
                                            slot + x_at + step * 64, valid);
        }
      }
      __syncwarp();
      if (lane == 0) BarrierArrive(ring.empty + stage * 8);
      if (++stage == p.stages) {
        stage = 0;
        parity ^= 1;
      }
    }
    // Two areas in turn: a warp may be one tile ahead of the one that still adds.
    Finish<kSplits>(p, sum, partials + (tile % 2) * (kWarps - 1) * 128, group_slot, split, group,
                    active);
  }
}

template <typename T, int kChunk, int kSplits, bool kWide>
__global__ void __launch_bounds__(kThreads, 2) SkinnyKernel(const SkinnyParams p) {
  extern __shared__ __align__(128) std::byte shared[];
  __shared__ __align__(8) uint64_t barriers[2 * kStagesMax];
  __shared__ __align__(16) float partials[kSplits > 1 ? 2 * (kWarps - 1) * 128 : 4];
  const int chunks = (p.k + kChunk - 1) / kChunk;
  const int x_offset = p.tile_groups * kGroupRows * kPitch<kChunk>;
  const Ring ring{SharedAddress(shared), SharedAddress(barriers),
                  SharedAddress(barriers + kStagesMax),
                  x_offset + (kWide ? 16 : p.m) * kPitch<kChunk>, x_offset};
  if (threadIdx.x == 0) {
    for (int i = 0; i < p.stages; ++i) {
      BarrierInit(ring.full + i * 8, (kCopyWarps + 1) * 32);
      BarrierInit(ring.empty + i * 8, kWarps);
    }
    FenceBarrierInit();
  }
  __syncthreads();
  LetNextStart();
  const Share share(p);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  if (warp < kWarps) {
    Consume<T, kChunk, kSplits, kWide>(p, share, ring, partials, chunks);
  } else if (warp < kWarps + kCopyWarps) {
    CopyWeights<kChunk>(p, share, ring, chunks);
  } else {
    CopyX<kChunk>(p, share, ring, chunks);
  }
}

// What a launch needs beyond the parameters.
struct SkinnyPlan final {
  SkinnyParams params;
  int blocks;
  int splits;
  cudaStream_t stream;
};

template <typename T, int kChunk, int kSplits>
Status LaunchSkinny(const SkinnyPlan& plan, const SkinnyTuning& tuning) {
  SkinnyParams params = plan.params;
  const int x_rows = params.m > 8 ? 16 : params.m;
  const int slot_bytes = (params.tile_groups * kGroupRows + x_rows) * kPitch<kChunk>;
  params.stages = std::clamp(tuning.ring_bytes / slot_bytes, 2, kStagesMax);
  const int shared_bytes = params.stages * slot_bytes;
  const auto kernel = params.m > 8 ? SkinnyKernel<T, kChunk, kSplits, true>
                                   : SkinnyKernel<T, kChunk, kSplits, false>;
  LACUNA_CUDA_RETURN_IF_ERROR(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  return Launch(kernel, dim3(static_cast<unsigned>(plan.blocks)), dim3(kThreads),
                static_cast<size_t>(shared_bytes), plan.stream, params);
}

template <typename T, int kChunk>
Status WithSplits(const SkinnyPlan& plan, const SkinnyTuning& tuning) {
  switch (plan.splits) {
    case 1:
      return LaunchSkinny<T, kChunk, 1>(plan, tuning);
    case 2:
      return LaunchSkinny<T, kChunk, 2>(plan, tuning);
    case 4:
      return LaunchSkinny<T, kChunk, 4>(plan, tuning);
    default:
      return LaunchSkinny<T, kChunk, 8>(plan, tuning);
  }
}

template <typename T>
Status WithChunk(const SkinnyPlan& plan, const SkinnyTuning& tuning) {
  switch (tuning.chunk) {
    case 128:
      return WithSplits<T, 128>(plan, tuning);
    case 512:
      return WithSplits<T, 512>(plan, tuning);
    default:
      return WithSplits<T, 256>(plan, tuning);
  }
}

}  // namespace

Status SkinnyMatmul(const MatmulTask& task, int sm_count, bool whole_k, const SkinnyTuning& tuning,
                    cudaStream_t stream) {
  if (task.m == 0 || task.n == 0) return OkStatus();
  const int64_t groups = CeilDiv(task.n, kGroupRows);
  const int blocks = static_cast<int>(std::min<int64_t>(groups, sm_count));
  const int64_t share = CeilDiv(groups, blocks);
  SkinnyPlan plan{.params = {.x = static_cast<const std::byte*>(task.x),
                             .weight = static_cast<const std::byte*>(task.weight),
                             .sink = SinkOf(task),
                             .x_stride_bytes = task.x_stride * 2,
                             .m = static_cast<int>(task.m),
                             .n = static_cast<int>(task.n),
                             .k = static_cast<int>(task.k),
                             .tile_groups = tuning.tile_groups,
                             .stages = 0},
                  .blocks = blocks,
                  .splits = 1,
                  .stream = stream};
  // With fewer groups than warps, several warps share a group and split k.
  while (plan.params.tile_groups / 2 >= share) plan.params.tile_groups /= 2;
  if (!whole_k) plan.splits = std::min(kWarps / plan.params.tile_groups, tuning.chunk / 32);
  return task.dtype == DType::kBF16 ? WithChunk<__nv_bfloat16>(plan, tuning)
                                    : WithChunk<__half>(plan, tuning);
}

}  // namespace lacuna::kernels::cuda
