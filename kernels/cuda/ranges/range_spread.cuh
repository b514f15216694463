// True attention of a few query rows of each cell, summed along columns and diagonals (MInference,
// Jiang et al. 2024): what becomes of the second product of probes, now that each row's sum is
// known. Device code, of four warps that have 256 keys x two pieces of 64 rows.
//
// The product is of keys (64 of each tile) and packed rows, so that a thread has 8 neighbouring
// keys and 16 neighbouring rows of each piece (PieceRow, ChunkKey): it adds up its part of 8
// columns and 23 diagonals in registers. Columns go through shuffles, diagonals through shared
// memory; every sum is made in one order. Neighbouring chunks share 64 distances, which the first
// hands on in a register; neighbouring strips too, of which each leaves its own.
#pragma once

#include <cstdint>

#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/ranges/range_fold.cuh"
#include "kernels/cuda/ranges/range_work.h"

namespace lacuna::kernels::cuda {

inline constexpr int kSpreadThreads = 128;
inline constexpr int kSpreadTiles = kRangeChunkKeys / 64;

namespace spread {
constexpr int kRows = 16, kKeys = 8;           // of a thread
constexpr int kDiagonals = kRows + kKeys - 1;  // of a thread
constexpr int kGroups = kRangeChunkKeys / kKeys;
// Strides of the scratch [4 quads][32 groups of keys][24 diagonals]: no bank conflicts.
constexpr int kGroupStride = 25, kQuadStride = kGroups * kGroupStride + 8;
}  // namespace spread
inline constexpr int kSpreadScratch = 4 * spread::kQuadStride;  // floats

class SpreadFold final {
 public:
  // `scratch` and the barrier belong to the four warps, whose first thread is a multiple of 128.
  __device__ SpreadFold(const RangeWork& work, float* scratch, int barrier)
      : work_(work), scratch_(scratch), barrier_(barrier) {
    scratch_[Slot() + spread::kDiagonals] = 0.0f;
  }

  // Begins a strip of keys for the pieces of a packed tile of rows.
  __device__ void Begin(int kv, int row_tile) {
    const int rows = work_.product.rows;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      Piece& piece = pieces_[i];
      const int in_group = row_tile * kRangeTileRows + i * kRangePieceRows;
      piece.row =
          in_group < work_.members * rows ? int64_t{kv} * work_.members * rows + in_group : -1;
      piece.position = piece.row < 0 ? -1 : work_.visible[in_group % rows];
      piece.carry = 0.0f;
#pragma unroll
      for (int a = 0; a < spread::kRows; ++a) {
        piece.lse[a] = piece.row < 0 ? kNoRow : work_.lse[piece.row + 16 * Quad() + a];
      }
    }
    BeginChunk();
  }

  // Whether all rows see all keys of the chunk that begins at `first_key`.
  __device__ bool Whole(int first_key) const {
    return min(pieces_[0].position, pieces_[1].position) >= first_key + kRangeChunkKeys - 1;
  }

  // Adds tile `kTile` of the chunk at `first_key`.
  template <int kTile, bool kMasked>
  __device__ __forceinline__ void Add(const RangeLogits& logits, int first_key) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      Piece& piece = pieces_[i];
      // A key is seen when the place among the thread's keys less that among its rows is at most:
      const int limit = piece.position - first_key + 16 * Quad() - 8 * Group();
#pragma unroll
      for (int j = 0; j < 8; ++j) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int e = 0; e < 2; ++e) {
            const int row = 2 * j + e, key = 2 * kTile + half;
            const float logit = logits[4 * (8 * i + j) + 2 * half + e];
            float p = Exp2(fmaf(logit, work_.logit_factor, -piece.lse[row]));
            if (kMasked && key - row > limit) p = 0.0f;
            piece.columns[key] += p;
            piece.diagonals[row - key + spread::kKeys - 1] += p;
          }
        }
      }
    }
  }

  // Writes the sums of the chunk that begins at `first_key`.
  __device__ void EndChunk(int first_key) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      StoreColumns(pieces_[i], first_key);
      StoreDiagonals(pieces_[i], first_key);
    }
    BeginChunk();
  }
  // Writes the distances that the strip's last chunk, at `first_key`, has handed on.
  __device__ void End(int first_key) {
    if (Thread() >= kRangePieceRows) return;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (pieces_[i].row >= 0) PartialsOf(pieces_[i], first_key)[Thread()] = pieces_[i].carry;
    }
  }

 private:
  struct Piece final {
    int64_t row;   // first, in the arrays of the slice, or -1
    int position;  // of that row, or -1
    float lse[spread::kRows];
    float columns[spread::kKeys], diagonals[spread::kDiagonals];
    float carry;  // of distance Thread()
  };

  __device__ static int Thread() { return static_cast<int>(threadIdx.x) % kSpreadThreads; }
  __device__ static int Quad() { return static_cast<int>(threadIdx.x) & 3; }
  // The thread's keys are [8 * Group(), 8 * Group() + 8) of the chunk.
  __device__ static int Group() { return Thread() / 4; }
  __device__ static int Slot() {
    return Quad() * spread::kQuadStride + Group() * spread::kGroupStride;
  }

  __device__ void BeginChunk() {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int key = 0; key < spread::kKeys; ++key) pieces_[i].columns[key] = 0.0f;
#pragma unroll
      for (int u = 0; u < spread::kDiagonals; ++u) pieces_[i].diagonals[u] = 0.0f;
    }
  }

  // Over the four lanes that share keys; lane q writes the keys 2 q and 2 q + 1.
  __device__ void StoreColumns(Piece& piece, int first_key) const {
    const bool high = (Quad() & 2) != 0, odd = (Quad() & 1) != 0;
    float four[4], two[2];
#pragma unroll
    for (int key = 0; key < 4; ++key) {
      const float mine = high ? piece.columns[key + 4] : piece.columns[key];
      const float other = high ? piece.columns[key] : piece.columns[key + 4];
      four[key] = mine + __shfl_xor_sync(~0u, other, 2);
    }
#pragma unroll
    for (int key = 0; key < 2; ++key) {
      const float mine = odd ? four[key + 2] : four[key];
      const float other = odd ? four[key] : four[key + 2];
      two[key] = mine + __shfl_xor_sync(~0u, other, 1);
    }
    if (piece.row < 0) return;
    float* to = work_.column_sums + piece.row / kRangePieceRows * work_.keys_stride + first_key;
    *reinterpret_cast<float2*>(to + 2 * Thread()) = make_float2(two[0], two[1]);
  }

  // Where the chunk's distances go: the first is that of its last key from the piece's first row.
  __device__ float* PartialsOf(const Piece& piece, int first_key) const {
    const int strip = first_key / kRangeStripTokens;
    return work_.partials + (piece.row / kRangePieceRows * work_.strips + strip) * kRangePartials +
           kRangeStripTokens - kRangeChunkKeys - first_key % kRangeStripTokens;
  }

  // Distance `index` of the chunk, of [0, 320): thread (quad, group) has diagonal u of those with
  // index = 248 + 16 quad - 8 group + u.
  __device__ float Distance(int index) const {
    const int u = index & 7, first_group = spread::kGroups - 1 - (index >> 3);
    float sum = 0.0f;
#pragma unroll
    for (int quad = 0; quad < 4; ++quad) {
#pragma unroll
      for (int i = 0; i < 3; ++i) {
        const int group = first_group + 2 * quad + i;
        if (static_cast<unsigned>(group) < static_cast<unsigned>(spread::kGroups)) {
          sum += scratch_[quad * spread::kQuadStride + group * spread::kGroupStride + u + 8 * i];
        }
      }
    }
    return sum;
  }

  __device__ void StoreDiagonals(Piece& piece, int first_key) const {
#pragma unroll
    for (int u = 0; u < spread::kDiagonals; ++u) scratch_[Slot() + u] = piece.diagonals[u];
    NamedBarrierSync(barrier_, kSpreadThreads);
    const int thread = Thread();
    const bool shared = thread < kRangePieceRows;  // with the next chunk
    const float first = Distance(thread), second = Distance(thread + kSpreadThreads);
    const float last = shared ? Distance(thread + 2 * kSpreadThreads) + piece.carry : 0.0f;
    NamedBarrierSync(barrier_, kSpreadThreads);
    piece.carry = first;
    if (piece.row < 0) return;
    float* to = PartialsOf(piece, first_key);
    if (!shared) to[thread] = first;
    to[thread + kSpreadThreads] = second;
    if (shared) to[thread + 2 * kSpreadThreads] = last;
  }

  const RangeWork& work_;
  float* const scratch_;
  const int barrier_;
  Piece pieces_[2];
};

}  // namespace lacuna::kernels::cuda
