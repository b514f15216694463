// How q, k and v of many tokens reach the blocks of append_kv.cu: a ring of stages in a block's
// shared memory, each with kBlockTokens tokens side by side of a share of the heads. Device code.
//
// So a block writes rows of a stripe (kv_layout.cuh) that lie side by side, 1 KB, which memory
// takes faster than rows one by one. On sm_90 bulk copies fill a stage, before that 16-byte copies.
#pragma once

#include <cstdint>

#include "kernels/cuda/append/append_kv.cuh"
#include "kernels/cuda/prefetch.cuh"
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/vectors.cuh"

namespace lacuna::kernels::cuda::append {

inline constexpr int kBlockTokens = 8;
inline constexpr int kTogether = 3;  // heads of a thread
inline constexpr int kStages = 4;
template <int kLanes>
inline constexpr int kBlockHeads = kTogether*(kThreads / kLanes / kBlockTokens);

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
inline constexpr bool kBulkCopies = false;
#else
inline constexpr bool kBulkCopies = true;
#endif

// A thread's chunks of its heads of a token.
template <typename T>
struct TokenPart final {
  Pack<T> a[kTogether];
  Pack<T> b[kTogether];
};

// The heads of q, of k or of v among those that a block has.
template <typename T>
struct Share final {
  const T* from;  // of token 0
  int64_t stride;
  int to;              // elements behind those that the block has of a token
  int channels;        // 0: nothing
  int token_channels;  // that the block has of a token

  // `heads` from `first` on are the block's, as far as there are any.
  __device__ Share(const Params& params, Kind kind, int first, int heads) {
    const Heads& rows = kind == Kind::kQ ? params.q : kind == Kind::kK ? params.k : params.v;
    const int before = kind == Kind::kQ   ? 0
                       : kind == Kind::kK ? params.q_heads
                                          : params.q_heads + params.kv_heads;
    const int count = kind == Kind::kQ ? params.q_heads : params.kv_heads;
    const int end = min(first + heads, params.q_heads + 2 * params.kv_heads);
    const int head = max(first, before);
    stride = rows.stride;
    from = static_cast<const T*>(rows.data) + (head - before) * params.head_dim;
    to = (head - first) * params.head_dim;
    channels = max(min(end, before + count) - head, 0) * params.head_dim;
    token_channels = (end - first) * params.head_dim;
  }
  __device__ uint32_t Bytes() const { return static_cast<uint32_t>(channels * sizeof(T)); }
};

// Threads that make bulk copies: each has a token and a Share.
inline constexpr int kCopiers = 3 * kBlockTokens;
__device__ inline int CopierToken() { return static_cast<int>(threadIdx.x) / 3; }
template <typename T>
__device__ Share<T> CopierShare(const Params& params, int first, int heads) {
  return {params, static_cast<Kind>(threadIdx.x % 3), first, heads};
}

// Brings what a block has of the tokens from `start` on to L2.
template <typename T>
__device__ void PrefetchShares(const Params& params, const Share<T>& share, int start) {
  const int token = start + CopierToken();
  if (threadIdx.x >= kCopiers || token >= params.tokens || share.channels == 0) return;
  PrefetchBulkL2(share.from + token * share.stride, share.Bytes());
}

template <typename T, int kLanes>
struct Ring final {
  static constexpr int kHeadDim = 2 * kVector * kLanes;
  // Groups of few lanes, which read together, find their tokens in different banks.
  static constexpr int kPadding = kLanes < 8 ? kLanes * kVector : 0;

  T channels[kStages][kBlockTokens][kBlockHeads<kLanes> * kHeadDim + kPadding];
  uint64_t full[kStages];

  // By one thread, before a barrier of the block.
  __device__ void Init() {
    for (uint64_t& barrier : full) {
      BarrierInit(SharedAddress(&barrier), kBulkCopies ? 1 : kThreads);
    }
    if constexpr (kBulkCopies) FenceBarrierInit();
  }
  // By the whole block, when no thread reads the stage any more: begins to copy the block's heads,
  // those from `first` on, of the tokens from `start` on. `share` is CopierShare's.
  __device__ void Fetch(const Params& params, const Share<T>& share, int first, int start,
                        int stage) {
    const uint32_t barrier = SharedAddress(&full[stage]);
    const int tokens = min(params.tokens - start, kBlockTokens);
    if constexpr (kBulkCopies) {
      if (threadIdx.x >= 32) return;
      if (threadIdx.x == 0) {
        BarrierArriveExpect(barrier,
                            static_cast<uint32_t>(tokens * share.token_channels * sizeof(T)));
      }
      __syncwarp();
      const int token = CopierToken();
      if (token >= tokens || share.channels == 0) return;
      BulkCopyToShared(SharedAddress(&channels[stage][token][share.to]),
                       share.from + (start + token) * share.stride, share.Bytes(), barrier);
    } else {
      constexpr int kTokenThreads = kThreads / kBlockTokens;
      const int token = static_cast<int>(threadIdx.x) / kTokenThreads;
      const int thread = static_cast<int>(threadIdx.x) % kTokenThreads;
      for (const Kind kind : {Kind::kQ, Kind::kK, Kind::kV}) {
        const Share<T> part(params, kind, first, kBlockHeads<kLanes>);
        for (int at = thread * kVector; token < tokens && at < part.channels;
             at += kTokenThreads * kVector) {
          AsyncCopy16(SharedAddress(&channels[stage][token][part.to + at]),
                      part.from + (start + token) * part.stride + at);
        }
      }
      AsyncCopyArrive(barrier);
    }
  }
  __device__ void Wait(int stage, uint32_t parity) {
    const uint32_t barrier = SharedAddress(&full[stage]);
    if constexpr (kBulkCopies) {
      BarrierWait(barrier, parity);
    } else {
      while (!BarrierTestWait(barrier, parity)) {
      }
    }
  }
  // Chunks a and b of the heads first, first + 1 / kTogether of all ... of a token.
  __device__ TokenPart<T> Part(int stage, int token, int first, int a, int b) const {
    TokenPart<T> part;
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      const int head = first + i * (kBlockHeads<kLanes> / kTogether);
      const T* const from = &channels[stage][token][head * kHeadDim];
      part.a[i] = *reinterpret_cast<const Pack<T>*>(from + a);
      part.b[i] = *reinterpret_cast<const Pack<T>*>(from + b);
    }
    return part;
  }
};

}  // namespace lacuna::kernels::cuda::append
