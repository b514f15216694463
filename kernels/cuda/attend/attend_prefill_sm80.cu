#include <cmath>
#include <cstdint>

#include "kernels/cuda/attend/attend_prefill_sm80.cuh"
#include "kernels/cuda/attend/attend_prefill_sm80.h"
#include "kernels/cuda/attend/attend_prefill_sm80_math.cuh"
#include "kernels/cuda/attend/attend_prefill_sm80_ring.cuh"
#include "kernels/cuda/launch.cuh"

namespace lacuna::kernels::cuda {
namespace sm80 {

// Queries of the block; rows outside the chunk become zeros.
template <typename T, typename Tile>
__device__ void CopyQueries(const PrefillParams& p, const T* q, int rows, uint32_t to) {
  constexpr int kDim = Tile::kDim;
  constexpr int kChunks = kDim / 8;
  for (int piece = static_cast<int>(threadIdx.x); piece < Tile::kRows * kChunks;
       piece += Tile::kThreads) {
    const int row = piece / kChunks;
    const int column = (piece - row * kChunks) * 8;
    const T* from = q + (row < rows ? row : 0) * p.q_row + column;
    AsyncCopy16(to + static_cast<uint32_t>(KvElement(row, column, Tile::kRows, kDim)) * 2, from,
                row < rows);
  }
}

// Divides by the sums and writes the warp's rows, through its own part of the memory of Q.
template <typename T, typename Tile>
__device__ void Finish(const PrefillParams& p, int64_t first_row, int rows, int warp, int head,
                       const Running<Tile::kMmaRows>& running,
                       const float (&out)[Tile::kMmaRows][Tile::kDim / 8][4], T* stage) {
  constexpr int kDim = Tile::kDim;
  const int lane = static_cast<int>(threadIdx.x) & 31;
  const int warp_row = warp * Tile::kWarpRows;
#pragma unroll
  for (int m = 0; m < Tile::kMmaRows; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = warp_row + m * 16 + half * 8 + (lane >> 2);
      float sum = running.sum[m][half];
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      const float max = running.max[m][half];
      float factor = sum > 0.0f ? 1.0f / sum : 0.0f;
      if (p.params.sink_logits != nullptr && sum > 0.0f) {
        const float sink = p.params.sink_logits[head] * 1.442695041f;
        const float top = fmaxf(max, sink);
        factor = exp2f(max - top) / fmaf(sum, exp2f(max - top), exp2f(sink - top));
      }
      if (p.lse != nullptr && (lane & 3) == 0 && row < rows) {
        p.lse[(first_row + row) * p.lse_row + head] =
            sum > 0.0f ? (max + log2f(sum)) * 0.6931471806f : -INFINITY;
      }
#pragma unroll
      for (int n = 0; n < kDim / 8; ++n) {
        const uint32_t pair =
            PackPair<T>(out[m][n][2 * half] * factor, out[m][n][2 * half + 1] * factor);
        const int column = n * 8 + (lane & 3) * 2;
        *reinterpret_cast<uint32_t*>(stage + KvElement(row, column, Tile::kRows, kDim)) = pair;
      }
    }
  }
  __syncwarp();
  constexpr int kChunks = kDim / 8;
  T* to = static_cast<T*>(p.out) + first_row * p.out_row + int64_t{head} * kDim;
  for (int piece = lane; piece < Tile::kWarpRows * kChunks; piece += 32) {
    const int row = warp_row + piece / kChunks;
    const int column = piece % kChunks * 8;
    if (row >= rows) break;
    *reinterpret_cast<uint4*>(to + row * p.out_row + column) =
        *reinterpret_cast<const uint4*>(stage + KvElement(row, column, Tile::kRows, kDim));
  }
}

// What a block computes, from its indices: heads run fastest, and late rows first, since with a
// causal mask they have the most keys.
template <typename Tile>
__device__ inline PlanRows RowsOfBlock(const PrefillParams& p, const ChunkTable::Entry& entry,
                                       int tile, int head) {
  PlanRows rows;
  const int query = tile * Tile::kRows;
  rows.first_position = entry.chunk.first_position + query;
  rows.rows = min(Tile::kRows, entry.chunk.rows - query);
  rows.list_begin = p.lists.begins[entry.index];
  rows.list_end = p.lists.ends[entry.index];
  if (p.ranges.begins == nullptr) return rows;
  constexpr int kQueries = KeyRanges::kQueryTileTokens;
  const int64_t tiles = (entry.chunk.rows - 1) / kQueries + 1;
  const int64_t list = p.ranges.chunk_offsets[entry.index] + head * tiles + query / kQueries;
  for (int half = 0; half < Tile::kRows / kQueries && half * kQueries < rows.rows; ++half) {
    rows.range_first[half] = p.ranges.begins[list + half];
    rows.range_end[half] = p.ranges.ends[list + half];
  }
  return rows;
}

template <typename T, typename Tile>
__device__ __forceinline__ void PrefillBlock(const PrefillParams& p) {
  constexpr int kDim = Tile::kDim;
  LACUNA_DYNAMIC_SHARED(1024, std::byte, shared);
  const uint32_t q_at = SharedAddress(shared);
  auto* storage = reinterpret_cast<PlanStorage*>(shared + Tile::kPlanAt);
  LetNextStart();
  WaitForPrevious();

  const int head = static_cast<int>(blockIdx.x);
  const int at = p.table.tiles - 1 - static_cast<int>(blockIdx.y);
  const ChunkTable::Entry& entry = p.table.Find(at);
  const int tile = at - entry.first_tile;
  const int64_t first_row = int64_t{entry.chunk.first_row} + tile * Tile::kRows;
  const int rows = min(Tile::kRows, entry.chunk.rows - tile * Tile::kRows);

  PrefillPlan plan(p.lists, p.ranges, p.page_tokens, storage);
  CopyQueries<T, Tile>(p, static_cast<const T*>(p.q) + first_row * p.q_row + int64_t{head} * kDim,
                       rows, q_at);
  AsyncCopyCommit();
  TileRing<Tile> ring(p, plan, head / p.group, q_at);
  if (threadIdx.x == 0) {
    plan.Begin(
        RowsOfBlock<Tile>(p, entry, tile, head),
        p.shapes == nullptr ? p.params.shape : p.shapes[entry.index * p.kv_heads + head / p.group]);
    ring.InitBarriers();
  }
  __syncthreads();

  const int warp = static_cast<int>(threadIdx.x) >> 5;
  const int warp_row = warp * Tile::kWarpRows;
  const int first_position = entry.chunk.first_position + tile * Tile::kRows;
  const WarpRows warp_rows{
      first_position + warp_row,
      rows <= warp_row ? -1 : first_position + min(rows, warp_row + Tile::kWarpRows) - 1};
  const int group_shift = warp_row / KeyRanges::kQueryTileTokens * kGroups;

  float out[Tile::kMmaRows][kDim / 8][4] = {};
  Running<Tile::kMmaRows> running;
#pragma unroll
  for (int m = 0; m < Tile::kMmaRows; ++m) {
    for (int half = 0; half < 2; ++half) {
      running.max[m][half] = kNoMaximum;
      running.sum[m][half] = 0.0f;
    }
  }
  while (true) {
    const int tiles = plan.Next();
    if (tiles == 0) break;
    ring.Begin(tiles);
    for (int index = 0; index < tiles; ++index) {
      const int meta = plan.Meta(index);
      const int first_key = (meta >> 8) * kKeyTile;
      const int groups = (meta >> group_shift) & 15;
      // Read anew each time: there are no registers to keep it.
      const StaticShape shape = p.shapes == nullptr ? p.params.shape : plan.shape();
      const TileKind kind = KindOf(warp_rows, first_key, groups, shape);
      TileScores<Tile::kMmaRows> scores;
      const uint32_t keys = ring.Keys(index, tiles);
      if (kind != TileKind::kSkip) {
        Scores<T, Tile>(q_at, warp_row, keys, scores);
        if (p.params.softcap > 0.0f) CapScores(p.params, scores);
        if (kind == TileKind::kMasked) {
          Mask(warp_rows, first_key, groups, shape, scores);
        }
        float keep[Tile::kMmaRows][2];
        Softmax(p.exponent_scale, scores, &running, keep);
        Rescale(keep, out);
      }
      const uint32_t values = ring.Values(index, tiles);
      if (kind != TileKind::kSkip) AddValues<T, Tile>(values, scores, out);
    }
  }
  AsyncCopyWait<0>();
  __syncthreads();
  Finish<T, Tile>(p, first_row, rows, warp, head, running, out, reinterpret_cast<T*>(shared));
}

template <typename T, typename Tile>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocksPerSm)
    PrefillKernel(const __grid_constant__ PrefillParams p) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  if constexpr (!Tile::kBulk) PrefillBlock<T, Tile>(p);
#else
  PrefillBlock<T, Tile>(p);
#endif
}

}  // namespace sm80

namespace {

using sm80::Copies;
using sm80::PrefillParams;
using sm80::Tiling;

template <typename T, typename Tile>
Status Run(const PrefillParams& params, int q_heads, cudaStream_t stream) {
  constexpr int kShared = Tile::kSharedBytes;
  const auto kernel = sm80::PrefillKernel<T, Tile>;
  LACUNA_CUDA_RETURN_IF_ERROR(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared));
  const dim3 grid(static_cast<unsigned>(q_heads), static_cast<unsigned>(params.table.tiles));
  return Launch(kernel, grid, dim3(Tile::kThreads), kShared, stream, params);
}

template <int kDim, typename Visit>
Status VisitTilingOf(const DeviceTraits& traits, const Visit& visit) {
  constexpr Tiling<kDim, Copies::kBulk> kBulk;
  constexpr Tiling<kDim, Copies::kAsync> kAsync;
  if (traits.major >= 9 && kBulk.kSharedBytes <= traits.shared_bytes_max) return visit(kBulk);
  if (kAsync.kSharedBytes <= traits.shared_bytes_max) return visit(kAsync);
  if constexpr (kDim == 256) {
    constexpr Tiling<kDim, Copies::kTight> kTight;
    if (kTight.kSharedBytes <= traits.shared_bytes_max) return visit(kTight);
  }
  return InvalidArgument("attention with mma.sync: not enough shared memory");
}
// visit(the Tiling for the head size on this device), if there is one.
template <typename Visit>
Status VisitTiling(int64_t head_dim, const DeviceTraits& traits, const Visit& visit) {
  switch (head_dim) {
    case 16:
      return VisitTilingOf<16>(traits, visit);
    case 32:
      return VisitTilingOf<32>(traits, visit);
    case 64:
      return VisitTilingOf<64>(traits, visit);
    case 80:
      return VisitTilingOf<80>(traits, visit);
    case 96:
      return VisitTilingOf<96>(traits, visit);
    case 128:
      return VisitTilingOf<128>(traits, visit);
    case 256:
      return VisitTilingOf<256>(traits, visit);
    default:
      return InvalidArgument("attention with mma.sync: no kernel for this head_dim");
  }
}

bool RowsAligned(const TensorView& view) {
  return reinterpret_cast<uintptr_t>(view.data()) % 16 == 0 && view.stride(0) % 8 == 0 &&
         view.stride(1) == view.dim(2);
}

PrefillParams MakeParams(const AttendPrefillArgs& args) {
  constexpr float kLog2E = 1.442695041f;
  PrefillParams params;
  params.q = args.q.data();
  params.out = args.out.data();
  params.q_row = args.q.stride(0);
  params.out_row = args.out.stride(0);
  if (!args.lse.empty()) {
    params.lse = args.lse.as<float>();
    params.lse_row = args.lse.stride(0);
  }
  params.pool = static_cast<const std::byte*>(args.pool.data);
  params.slab_bytes = args.pool.SlabBytes();
  params.kv_heads = static_cast<int>(args.pool.kv_heads);
  params.group = static_cast<int>(args.q.dim(1) / args.pool.kv_heads);
  params.page_tokens = static_cast<int>(args.pool.page_tokens);
  params.exponent_scale = kLog2E * (args.params.softcap > 0.0f ? 1.0f : args.params.scale);
  params.params = args.params;
  params.shapes = args.shapes;
  params.lists = args.lists;
  if (args.ranges != nullptr) params.ranges = *args.ranges;
  return params;
}

}  // namespace

bool ServesSm80(const AttendPrefillArgs& args, const DeviceTraits& traits) {
  const KvPool& pool = args.pool;
  const Status fits =
      VisitTiling(pool.head_dim, traits, [](auto /*tiling*/) { return OkStatus(); });
  return traits.major >= 8 && fits.ok() &&
         (pool.dtype == DType::kBF16 || pool.dtype == DType::kF16) &&
         (pool.page_tokens == 16 || pool.page_tokens == 64) && args.params.scale > 0.0f &&
         RowsAligned(args.q) && RowsAligned(args.out);
}

Status AttendPrefillSm80(const AttendPrefillArgs& args, const DeviceTraits& traits,
                         cudaStream_t stream) {
  if (!ServesSm80(args, traits)) return InternalError("AttendPrefillSm80: arguments not served");
  PrefillParams params = MakeParams(args);
  const int q_heads = static_cast<int>(args.q.dim(1));
  return VisitTiling(args.pool.head_dim, traits, [&](auto tiling) -> Status {
    using Tile = decltype(tiling);
    const auto run = args.pool.dtype == DType::kF16 ? Run<__half, Tile> : Run<__nv_bfloat16, Tile>;
    for (size_t next = 0; next < args.chunks.size();) {
      next = params.table.Fill(args.chunks, next, Tile::kRows);
      if (params.table.count == 0) break;
      LACUNA_RETURN_IF_ERROR(run(params, q_heads, stream));
    }
    return OkStatus();
  });
}

}  // namespace lacuna::kernels::cuda
