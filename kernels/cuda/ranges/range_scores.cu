// The product of SelectRanges with mma.sync (sm_80) or FMA (f32): a block makes 128 rows x 128 key
// rows, folded in registers; logits never reach memory.
#include <cstdint>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ranges/range_fold.cuh"
#include "kernels/cuda/ranges/range_kernels.h"
#include "kernels/cuda/ranges/range_product.cuh"

namespace lacuna::kernels::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;
constexpr int kStages = 2;
static_assert(kWarps * 16 == kRangeTileRows && kThreads >= kRangeTileRows);

template <typename T>
constexpr int kSharedBytes = kStages * 2 * kRangeTileBytes<T>;

template <typename T, FoldKind kKind>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 2 ? 2 : 1)
    ScoresKernel(const __grid_constant__ RangeWork work) {
  LACUNA_DYNAMIC_SHARED(1024, std::byte, shared);
  LetNextStart();
  WaitForPrevious();
  const RangeProduct& product = work.product;
  const int row_tile = static_cast<int>(blockIdx.x), key_tile = static_cast<int>(blockIdx.y);
  const int kv = static_cast<int>(blockIdx.z);
  const int mine = row_tile * kRangeTileRows + static_cast<int>(threadIdx.x);
  const bool sees = static_cast<int>(threadIdx.x) < kRangeTileRows &&
                    mine < work.members * product.rows &&
                    work.visible[mine % product.rows] >= FirstKeyOf<kKind>(key_tile);
  if (__syncthreads_or(sees) == 0) return;

  constexpr int kElements = kRangeTileRows * kRangeTileColumns;
  const T* queries = static_cast<const T*>(work.packed_queries) +
                     int64_t{kv * product.row_tiles + row_tile} * product.steps * kElements;
  const T* keys = static_cast<const T*>(work.packed_keys) +
                  (int64_t{kv} * product.key_tiles + key_tile) * product.steps * kElements;
  const auto fill = [&](int step) {
    if (step < product.steps) {
      std::byte* to = shared + step % kStages * 2 * kRangeTileBytes<T>;
      CopyTileRows<T, kThreads, kRangeTileRows>(queries + int64_t{step} * kElements, kRangeTileRows,
                                                SharedAddress(to));
      CopyTileRows<T, kThreads, kRangeTileRows>(keys + int64_t{step} * kElements, kRangeTileRows,
                                                SharedAddress(to + kRangeTileBytes<T>));
    }
    AsyncCopyCommit();
  };
  const int warp = static_cast<int>(threadIdx.x) >> 5;
  RangeLogits logits = {};
  fill(0);
  for (int step = 0; step < product.steps; ++step) {
    fill(step + 1);
    AsyncCopyWait<1>();
    __syncthreads();
    const std::byte* tiles = shared + step % kStages * 2 * kRangeTileBytes<T>;
    AddProduct<T>(tiles, warp * 16, tiles + kRangeTileBytes<T>, logits);
    __syncthreads();
  }
  AsyncCopyWait<0>();
  FoldTile<kKind>(work, logits, key_tile,
                  RowsOfWarp(work, kv, row_tile * kRangeTileRows + warp * 16));
}

template <typename T, FoldKind kKind>
Status Run(const RangeWork& work, cudaStream_t stream) {
  const auto kernel = ScoresKernel<T, kKind>;
  LACUNA_CUDA_RETURN_IF_ERROR(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes<T>));
  const dim3 grid(static_cast<unsigned>(work.product.row_tiles),
                  static_cast<unsigned>(work.product.key_tiles), static_cast<unsigned>(work.kvs));
  return Launch(kernel, grid, dim3(kThreads), kSharedBytes<T>, stream, work);
}

}  // namespace

Status RangeScores(const RangeWork& work, DType dtype, const DeviceTraits& traits,
                   cudaStream_t stream) {
  if (traits.major == 9 && traits.minor == 0 && dtype != DType::kF32) {
    return work.antidiagonal() ? RangeScoresSm90(work, dtype, traits.sm_count, stream)
                               : RangeProbeSm90(work, dtype, traits, stream);
  }
  return WithProductType(dtype, [&](auto type) {
    using T = decltype(type);
    if (work.antidiagonal()) return Run<T, FoldKind::kBlocks>(work, stream);
    return work.spreads() ? Run<T, FoldKind::kTotals>(work, stream)
                          : Run<T, FoldKind::kParts>(work, stream);
  });
}

}  // namespace lacuna::kernels::cuda
