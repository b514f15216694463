// The second pass of probes over the keys (range_spread.cuh) with mma.sync (sm_80) or FMA (f32): a
// block has a tile of rows and a strip of keys.
#include <cstdint>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/ranges/range_kernels.h"
#include "kernels/cuda/ranges/range_product.cuh"
#include "kernels/cuda/ranges/range_spread.cuh"

namespace lacuna::kernels::cuda {
namespace {

constexpr int kTileKeys = 64;

// Steps of the product that shared memory holds at once: all, or in f32 one.
template <typename T>
__host__ __device__ constexpr int StepsHeld(int steps) {
  return sizeof(T) == 2 ? steps : 1;
}
template <typename T>
constexpr int SharedBytes(int steps) {
  return StepsHeld<T>(steps) * kRangeTileBytes<T> * 3 / 2 + kSpreadScratch * 4;
}

template <typename T>
class Spreader final {
 public:
  __device__ Spreader(const RangeWork& work, std::byte* shared)
      : work_(work),
        kv_(static_cast<int>(blockIdx.z)),
        row_tile_(static_cast<int>(blockIdx.x)),
        held_(StepsHeld<T>(work.product.steps)),
        queries_(shared),
        keys_(shared + held_ * kRangeTileBytes<T>),
        fold_(work, reinterpret_cast<float*>(keys_ + held_ * kRangeTileBytes<T> / 2), 1) {}

  __device__ void Run() {
    const int first_key = static_cast<int>(blockIdx.y) * kRangeStripTokens;
    const int end = min(first_key + kRangeStripTokens, LastVisible() + 1);
    if (first_key >= end) return;
    fold_.Begin(kv_, row_tile_);
    if (held_ == work_.product.steps) {
      for (int step = 0; step < held_; ++step) CopyQueries(step, step);
    }
    int at = first_key;
    for (; at < end; at += kRangeChunkKeys) {
      AddTile<0>(at);
      AddTile<1>(at);
      AddTile<2>(at);
      AddTile<3>(at);
      fold_.EndChunk(at);
    }
    fold_.End(at - kRangeChunkKeys);
  }

 private:
  // By all threads.
  __device__ int LastVisible() const {
    const int rows = work_.product.rows;
    int last = -1;
    for (int i = 0; i < kRangeTileRows; i += kRangePieceRows) {
      const int row = row_tile_ * kRangeTileRows + i + (static_cast<int>(threadIdx.x) & 31);
      if (row >= work_.members * rows) continue;
      last = max(last, max(work_.visible[row % rows], work_.visible[row % rows + 32]));
    }
    return __reduce_max_sync(~0u, last);
  }

  __device__ void CopyQueries(int step, int place) const {
    const T* from =
        static_cast<const T*>(work_.packed_queries) +
        (int64_t{kv_ * work_.product.row_tiles + row_tile_} * work_.product.steps + step) *
            (kRangeTileRows * kRangeTileColumns);
    CopyTileRows<T, kSpreadThreads, kRangeTileRows>(
        from, kRangeTileRows, SharedAddress(queries_ + place * kRangeTileBytes<T>));
  }
  __device__ void CopyKeys(int packed, int step, int place) const {
    const T* from =
        static_cast<const T*>(work_.packed_keys) +
        ((int64_t{kv_} * work_.product.key_tiles + packed / kRangeTileRows) * work_.product.steps +
         step) *
            (kRangeTileRows * kRangeTileColumns) +
        packed % kRangeTileRows * kRangeTileColumns;
    CopyTileRows<T, kSpreadThreads, kTileKeys>(
        from, kTileKeys, SharedAddress(keys_ + place * kRangeTileBytes<T> / 2));
  }

  template <int kTile>
  __device__ void AddTile(int first_key) {
    RangeLogits logits = {};
    const int packed = first_key + kTile * kTileKeys;
    for (int first = 0; first < work_.product.steps; first += held_) {
      __syncthreads();  // what is overwritten has been read
      for (int i = 0; i < held_; ++i) {
        CopyKeys(packed, first + i, i);
        if (held_ < work_.product.steps) CopyQueries(first + i, i);
      }
      AsyncCopyCommit();
      AsyncCopyWait<0>();
      __syncthreads();
      for (int i = 0; i < held_; ++i) {
        AddProduct<T>(keys_ + i * kRangeTileBytes<T> / 2, static_cast<int>(threadIdx.x) / 32 * 16,
                      queries_ + i * kRangeTileBytes<T>, logits);
      }
    }
    if (fold_.Whole(first_key)) {
      fold_.template Add<kTile, false>(logits, first_key);
    } else {
      fold_.template Add<kTile, true>(logits, first_key);
    }
  }

  const RangeWork& work_;
  const int kv_, row_tile_, held_;
  std::byte* const queries_;  // [steps held] tiles
  std::byte* const keys_;     // [steps held] halves of a tile
  SpreadFold fold_;
};

template <typename T>
__global__ void __launch_bounds__(kSpreadThreads)
    SpreadKernel(const __grid_constant__ RangeWork work) {
  LACUNA_DYNAMIC_SHARED(1024, std::byte, shared);
  LetNextStart();
  WaitForPrevious();
  Spreader<T>(work, shared).Run();
}

template <typename T>
Status Run(const RangeWork& work, cudaStream_t stream) {
  const int bytes = SharedBytes<T>(work.product.steps);
  LACUNA_CUDA_RETURN_IF_ERROR(
      cudaFuncSetAttribute(SpreadKernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
  return Launch(SpreadKernel<T>,
                dim3(static_cast<unsigned>(work.product.row_tiles),
                     static_cast<unsigned>(work.strips), static_cast<unsigned>(work.kvs)),
                dim3(kSpreadThreads), static_cast<size_t>(bytes), stream, work);
}

}  // namespace

Status RangeSpread(const RangeWork& work, DType dtype, const DeviceTraits& traits,
                   cudaStream_t stream) {
  if (traits.major == 9 && traits.minor == 0 && dtype != DType::kF32) {
    return RangeSpreadSm90(work, dtype, traits, stream);
  }
  return WithProductType(dtype, [&](auto type) { return Run<decltype(type)>(work, stream); });
}

}  // namespace lacuna::kernels::cuda
