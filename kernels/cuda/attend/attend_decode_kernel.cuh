// The decode attention kernel (sm_80 and newer): split-KV over page lists, a group's query heads
// packed, tensor cores, merge included.
//
// Keys are the rows of the matrix products (m16n8k16) and query heads the columns, so no rows are
// wasted: S^T = K Q^T for 16 keys x 8 heads, O^T += V^T P for all channels x 8 heads. P^T, the
// result of the first, becomes the operand of the second by two register transposes. Each consumer
// warp owns a quarter of every stage and 8 heads, and keeps its own maximum and sums; the maximum
// is raised only when a score exceeds it by 2^8, which costs no precision in f32 sums.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/cuda/attend/attend_decode_merge.cuh"
#include "kernels/cuda/attend/attend_decode_producer.cuh"
#include "kernels/cuda/kv_layout.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/prefetch.cuh"

namespace lacuna::kernels::cuda {

struct DecodeShared final {
  RingBarriers barriers[kRingStagesMax];
  StageHeader headers[kRingStagesMax];
  ScheduleScratch schedule;
  PendingTokens pending_tokens;
  MergeScratch merge;
};
static_assert(sizeof(DecodeShared) <= kDecodeSharedBytes);

template <typename T, int kHeadDim>
class Consumer final {
 public:
  using Merge = Merger<T, kHeadDim>;
  static constexpr int kSteps = kHeadDim / 16;
  static constexpr int kStripes = kHeadDim / kStripeColumns;
  static constexpr int kRest = kHeadDim % kStripeColumns;
  static_assert(kRest == 0 || kRest == 16 || kRest == 32);
  static constexpr float kRaise = 8.0f;

  __device__ Consumer(const DecodeParams& p, char* stages, DecodeShared& shared, int warp)
      : p_(p),
        stages_(stages),
        shared_(shared),
        warp_(warp),
        lane_(static_cast<int>(threadIdx.x) % 32) {}

  __device__ void Run() {
    const int threads = static_cast<int>(blockDim.x) - 32;
    Merge merger(p_, shared_.merge, warp_ * 32 + lane_, threads);
    for (;; cursor_.Advance(p_.ring_stages)) {
      const RingBarriers& barriers = shared_.barriers[cursor_.stage];
      const StageHeader& header = shared_.headers[cursor_.stage];
      char* stage = stages_ + cursor_.stage * DecodeStageBytes(kHeadDim, p_.tile_heads);
      WaitFor(barriers.k_full, cursor_.parity);
      if (header.stop) return;
      if (header.first) Begin(header.segment, SharedAddress(stage) + DecodeSlabsBytes(kHeadDim));
      const uint32_t visible = header.visible[warp_ % 4];
      float x[4];
      if (visible != 0) Scores(SharedAddress(stage), visible, x);
      WaitFor(barriers.v_full, cursor_.parity);
      if (visible != 0) AddValues(SharedAddress(stage), visible, x);
      if (header.last) {
        NamedBarrierSync(kConsumerBarrier, threads);  // nobody reads the stage any more
        PutSums(reinterpret_cast<float*>(stage));
        merger.Finish(header.segment, reinterpret_cast<float*>(stage));
        FenceBeforeCopies();
      }
      ArriveAt(barriers.empty);  // each lane, for what it has read itself
    }
  }

 private:
  __device__ void Begin(const Segment& segment, uint32_t queries) {
    const int head = warp_ / 4 * 8 + lane_ / 4;
    const bool valid = head < TileHeads(p_, segment.tile);
    const uint32_t row =
        queries + static_cast<uint32_t>(head * DecodeQueryRowBytes(kHeadDim) + lane_ % 4 * 4);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        q_[step][half] =
            valid ? LoadShared32(row + static_cast<uint32_t>(step * 32 + half * 16)) : 0;
      }
#pragma unroll
      for (float& o : o_[step]) o = 0.0f;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      max_[i] = -INFINITY;
      l_[i] = 0.0f;
    }
  }

  // ldmatrix addresses in K or V (half 0, 1), as KvElement lays them out: this lane's row of the
  // warp's quarter, 16-byte chunk 2 * step + `odd`. A row starts at a multiple of its width and the
  // swizzle is an exclusive or, so a step is one, too.
  struct LaneRow final {
    uint32_t full;  // chunk `odd` in the first stripe of 64 columns
    uint32_t rest;  // and in the narrower last one
  };
  __device__ LaneRow RowOf(uint32_t stage, int half, int row, int odd) const {
    const int tokens = p_.page_tokens;
    const int page = tokens == 64 ? 0 : warp_ % 4;
    const int page_row = tokens == 64 ? warp_ % 4 * 16 + row : row;
    const uint32_t base = stage + static_cast<uint32_t>((2 * page + half) * tokens * kHeadDim * 2);
    LaneRow lane_row{};
    if (kStripes > 0) {
      lane_row.full = base + 2u * static_cast<uint32_t>(KvElement(page_row, odd * 8, tokens, 64));
    }
    if (kRest > 0) {
      lane_row.rest =
          base + 2u * static_cast<uint32_t>(kStripes * kStripeColumns * tokens +
                                            KvElement(page_row, odd * 8, tokens, kRest));
    }
    return lane_row;
  }
  __device__ uint32_t ChunkOf(const LaneRow& row, int step) const {
    const uint32_t turn = static_cast<uint32_t>(step % 4 * 32);
    if (step / 4 == kStripes) return row.rest ^ turn;
    return (row.full ^ turn) +
           static_cast<uint32_t>(step / 4 * kStripeColumns * 2 * p_.page_tokens);
  }

  // x = the scores of 16 keys x 8 heads (C layout: keys lane / 4 and + 8, heads lane % 4 * 2 and
  // + 1), scaled and capped, in units of log2(e); -inf where not `visible`.
  __device__ void Scores(uint32_t stage, uint32_t visible, float (&x)[4]) {
    float s[2][4] = {};  // two chains, for latency
    const LaneRow row = RowOf(stage, 0, lane_ % 16, lane_ / 16);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t k[4];
      LoadMatrix4(k, ChunkOf(row, step));
      MmaM16N8K16<T>(s[step % 2], k, q_[step][0], q_[step][1]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) x[i] = (s[0][i] + s[1][i]) * p_.scale;
    if (p_.softcap > 0.0f) {
#pragma unroll
      for (float& value : x) {  // tanh(a) = 1 - 2 / (e^2a + 1)
        const float tanh = 1.0f - 2.0f / (Exp2(2.0f * kDecodeLog2E * value) + 1.0f);
        value = p_.softcap * kDecodeLog2E * tanh;
      }
    }
    if (visible == 0xffff) return;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if ((visible >> (lane_ / 4 + i / 2 * 8) & 1) == 0) x[i] = -INFINITY;
    }
  }

  // Raises the maxima of the two heads of this lane to those of x, and scales what was summed.
  __device__ void RaiseMaxima(const float (&x)[4]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float top = fmaxf(x[i], x[i + 2]);
#pragma unroll
      for (int step = 4; step < 32; step *= 2) {
        top = fmaxf(top, __shfl_xor_sync(~0u, top, step));
      }
      top = fmaxf(top, max_[i]);
      const float factor = max_[i] == -INFINITY ? 0.0f : Exp2(max_[i] - top);
      max_[i] = top;
      l_[i] *= factor;
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        o_[step][i] *= factor;
        o_[step][i + 2] *= factor;
      }
    }
  }

  // The 16-bit elements, of a pair, whose tokens are visible.
  __device__ static uint32_t KeepPair(uint32_t visible) {
    return ((visible & 1) != 0 ? 0xffffu : 0) | ((visible & 2) != 0 ? 0xffff0000u : 0);
  }

  // Values of tokens that are not visible become zeros: a probability of 0 does not keep NaN out.
  __device__ void AddValues(uint32_t stage, uint32_t visible, const float (&x)[4]) {
    const bool raise = fmaxf(x[0], x[2]) > max_[0] + kRaise || fmaxf(x[1], x[3]) > max_[1] + kRaise;
    if (__any_sync(~0u, raise)) RaiseMaxima(x);
    float p[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      p[i] = Exp2(x[i] - (max_[i % 2] == -INFINITY ? 0.0f : max_[i % 2]));
      l_[i % 2] += p[i];
    }
    const uint32_t p0 = TransposeMatrix(PackPair<T>(p[0], p[1]));
    const uint32_t p1 = TransposeMatrix(PackPair<T>(p[2], p[3]));
    const LaneRow row = RowOf(stage, 1, lane_ / 16 * 8 + lane_ % 8, lane_ / 8 % 2);
    const uint32_t keep[2] = {KeepPair(visible >> lane_ % 4 * 2),
                              KeepPair(visible >> (lane_ % 4 * 2 + 8))};
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t v[4];
      LoadMatrix4Transposed(v, ChunkOf(row, step));
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] &= keep[i / 2];
      MmaM16N8K16<T>(o_[step], v, p0, p1);
    }
  }

  __device__ void PutSums(float* buffer) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int step = 4; step < 32; step *= 2) l_[i] += __shfl_xor_sync(~0u, l_[i], step);
      const int head = lane_ % 4 * 2 + i;
      if (lane_ < 4) shared_.merge.warp_sums[warp_][head] = {max_[i], l_[i]};
      float* o = Merge::WarpSums(buffer, warp_) + head * Merge::kSumStride + lane_ / 4;
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        o[step * 16] = o_[step][i];
        o[step * 16 + 8] = o_[step][i + 2];
      }
    }
  }

  const DecodeParams& p_;
  char* const stages_;
  DecodeShared& shared_;
  const int warp_;  // of the consumers
  const int lane_;
  RingCursor cursor_;
  uint32_t q_[kSteps][2];  // B operand: 8 heads
  float o_[kSteps][4];     // O^T: channels step * 16 + lane / 4 and + 8, heads lane % 4 * 2 and + 1
  float max_[2];           // the same in all lanes of a head
  float l_[2];             // of this lane's keys
};

// Units without pages: out = 0, lse = -inf. By threads `thread` of `threads`.
template <typename T, int kHeadDim>
__device__ void WriteEmptyUnits(const DecodeParams& p, int thread, int threads) {
#pragma unroll 1
  for (int entry = static_cast<int>(blockIdx.x); entry < EntryCount(p); entry += gridDim.x) {
    if (p.ends[entry] > p.begins[entry]) continue;
    const int row = entry / p.lists_per_row;
    const int heads = p.lists_per_row == 1 ? p.kv_heads * p.group : p.group;
    const int head_0 = entry % p.lists_per_row * p.group;
#pragma unroll 1
    for (int i = thread; i < heads * kHeadDim / 4; i += threads) {
      WriteResult<T>(p, kHeadDim, row, head_0 + i / (kHeadDim / 4), i % (kHeadDim / 4) * 4, Sums{});
    }
  }
}

// Brings to L2, before the previous kernel has ended, what the schedule of a few short lists reads
// first: weights have passed through L2 since the last launch. Nothing is read here. The lines that
// hold the first elements are asked for: what lies behind them may be nobody's.
__device__ inline void FetchLists(const DecodeParams& p) {
  if (blockIdx.x != 0) return;
  const void* arrays[] = {p.begins, p.ends, p.positions, p.pages, p.logical, p.masks};
  constexpr int kSectors = 4;  // of a line
  const int array = static_cast<int>(threadIdx.x) / kSectors;
#pragma unroll
  for (int i = 0; i < 6; ++i) {
    if (array != i || arrays[i] == nullptr) continue;
    const auto line = reinterpret_cast<uintptr_t>(arrays[i]) / 128 * 128;
    PrefetchL2(reinterpret_cast<const void*>(line + threadIdx.x % kSectors * 32));
  }
}

// By one thread of each block, before the previous kernel has ended: a slab of a single row's list,
// if that is short, is asked for while memory has nothing else to do. The list is a guess: it may
// be written just now. So it is read past L1, within the line of its first element, and decides
// nothing else.
template <int kHeadDim>
__device__ void FetchSlab(const DecodeParams& p) {
  constexpr int kPagesMax = 32;
  const int index = static_cast<int>(blockIdx.x) / p.kv_heads;
  const int room =
      kPagesMax - static_cast<int>(reinterpret_cast<uintptr_t>(p.pages) % 128 / sizeof(int32_t));
  if (EntryCount(p) != 1 || p.pages == nullptr || index >= room) return;
  const int64_t begin = __ldcg(p.begins);
  const int64_t end = __ldcg(p.ends);
  if (begin != 0 || index >= end || end > room) return;  // behind the end is nobody's memory
  const int page = __ldcg(p.pages + index);
  if (page < 0 || page >= p.pool_pages) return;
  const int head = static_cast<int>(blockIdx.x) - index * p.kv_heads;
  const int bytes = 2 * p.page_tokens * kHeadDim * 2;
  PrefetchBulkL2(p.pool + (static_cast<int64_t>(page) * p.kv_heads + head) * bytes,
                 static_cast<uint32_t>(bytes));
}

// Grid: any number of blocks (the ranges depend on it). The last warp is the producer.
template <typename T, int kHeadDim, int kWarps, bool kGathers>
__global__ void __launch_bounds__(32 * kWarps, DecodeBlocksPerSm(kHeadDim, kWarps))
    DecodeKernel(const __grid_constant__ DecodeParams p) {
  LACUNA_DYNAMIC_SHARED(128, char, stages);
  __shared__ __align__(16) char shared_bytes[sizeof(DecodeShared)];
  DecodeShared& shared = *reinterpret_cast<DecodeShared*>(shared_bytes);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  if (threadIdx.x == 0) {
#pragma unroll 1
    for (int i = 0; i < p.ring_stages; ++i) {
      BarrierInit(SharedAddress(&shared.barriers[i].k_full), FullArrivals(p));
      BarrierInit(SharedAddress(&shared.barriers[i].v_full), FullArrivals(p));
      BarrierInit(SharedAddress(&shared.barriers[i].empty), 32 * (kWarps - 1));
    }
#if LACUNA_DECODE_BULK_COPIES
    FenceBarrierInit();
#endif
  }
  FetchLists(p);
  LetNextStart();
  __syncthreads();  // the barriers
  if (threadIdx.x == 0) FetchSlab<kHeadDim>(p);
  WaitForPrevious();
  const int blocks = static_cast<int>(gridDim.x);
  Line line;
  if (!FewEntries(p)) line = MeasureLine(p, shared.schedule);
  if (warp == kWarps - 1) {
    if (FewEntries(p)) line = MeasureFew(p, shared.schedule, blocks);
    const Ranges ranges(p, line, blocks);
    Producer<kHeadDim, kGathers> producer(p, stages, shared.barriers, shared.headers,
                                          &shared.pending_tokens);
    VisitRanges(p, shared.schedule, ranges,
                [&](const Segment& segment) { producer.Send(segment); });
    producer.Stop();
  } else {
    // While the first stage comes.
    WriteEmptyUnits<T, kHeadDim>(p, static_cast<int>(threadIdx.x), (kWarps - 1) * 32);
    Consumer<T, kHeadDim>(p, stages, shared, warp).Run();
  }
}

template <typename T, int kHeadDim>
Status LaunchDecode(const DecodeParams& params, const DecodeLaunch& launch, cudaStream_t stream) {
  const auto kernel_of = [&]<bool kGathers>() {
    return params.tile_heads <= 8 ? DecodeKernel<T, kHeadDim, DecodeWarps(8), kGathers>
                                  : DecodeKernel<T, kHeadDim, DecodeWarps(16), kGathers>;
  };
  const auto kernel = DecodeGathers(params) ? kernel_of.template operator()<true>()
                                            : kernel_of.template operator()<false>();
  LACUNA_CUDA_RETURN_IF_ERROR(cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(launch.shared_bytes)));
  return Launch(kernel, dim3(static_cast<unsigned>(launch.blocks)),
                dim3(static_cast<unsigned>(32 * DecodeWarps(params.tile_heads))),
                launch.shared_bytes, stream, params);
}

template <typename T>
Status LaunchDecodeOf(const DecodeParams& params, int64_t head_dim, const DecodeLaunch& launch,
                      cudaStream_t stream) {
  switch (head_dim) {
    case 32:
      return LaunchDecode<T, 32>(params, launch, stream);
    case 64:
      return LaunchDecode<T, 64>(params, launch, stream);
    case 80:
      return LaunchDecode<T, 80>(params, launch, stream);
    case 96:
      return LaunchDecode<T, 96>(params, launch, stream);
    case 128:
      return LaunchDecode<T, 128>(params, launch, stream);
    case 256:
      return LaunchDecode<T, 256>(params, launch, stream);
    default:
      return {StatusCode::kInternal, "AttendDecode: no kernel for this head_dim"};
  }
}

}  // namespace lacuna::kernels::cuda
