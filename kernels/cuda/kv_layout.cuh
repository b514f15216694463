// The inner layout of a KV slab on CUDA: the one place that knows it. SEAM.
//
// A slab is the K and then the V of one (page, kv head), each [page_tokens, head_dim] in 2-byte
// elements, cut into column stripes of 64 (the last may be narrower): stripe after stripe, a stripe
// is [page_tokens rows][width] with the 16-byte chunks of a row permuted as the shared-memory
// swizzle of TMA and wgmma wants them (128 B rows: chunk ^ row % 8; 64 B: chunk ^ row / 2 % 4; 32
// B: chunk ^ row / 4 % 2). A bulk copy of a stripe to a 1024-byte aligned address is therefore a
// ready wgmma operand (K: K-major for QK; V: MN-major for PV), and ldmatrix on the same bytes is
// free of bank conflicts. Slabs of f32 (verification) are plain [page_tokens, head_dim].
#pragma once

#include <cstdint>

namespace lacuna::kernels::cuda {

inline constexpr int kStripeColumns = 64;

// Element index, within the K or the V of a slab, of (row, column); head_dim a multiple of 8.
__host__ __device__ inline int KvElement(int row, int column, int page_tokens, int head_dim) {
  const int stripe = column / kStripeColumns;
  const int rest = head_dim - stripe * kStripeColumns;
  const int width = rest < kStripeColumns ? rest : kStripeColumns;
  const int in_stripe = column - stripe * kStripeColumns;
  int chunk = in_stripe >> 3;
  if (width == 64) {
    chunk ^= row & 7;
  } else if (width == 32) {
    chunk ^= (row >> 1) & 3;
  } else if (width == 16) {
    chunk ^= (row >> 2) & 1;
  }
  return stripe * kStripeColumns * page_tokens + row * width + (chunk << 3) + (in_stripe & 7);
}

// Bytes, within the K or the V of a slab, of rows at one column, a multiple of 8.
template <int kHeadDim, int kPageTokens>
struct KvColumn final {
  static constexpr uint32_t kRest = kHeadDim % kStripeColumns;
  uint32_t stripe;  // its first byte
  uint32_t chunk;   // of 16 bytes, in a row of it
  bool rest;        // of the stripe that is narrower

  __host__ __device__ explicit KvColumn(int column)
      : stripe(static_cast<uint32_t>(column / kStripeColumns * kStripeColumns * kPageTokens * 2)),
        chunk(static_cast<uint32_t>(column % kStripeColumns / 8)),
        rest(kRest > 0 && column / kStripeColumns == kHeadDim / kStripeColumns) {}
  __host__ __device__ uint32_t At(uint32_t row) const {
    if (kRest == 32 && rest) return stripe + row * 64 + ((chunk ^ (row >> 1 & 3)) << 4);
    if (kRest == 16 && rest) return stripe + row * 32 + ((chunk ^ (row >> 2 & 1)) << 4);
    return stripe + row * 128 + ((chunk ^ (row & 7)) << 4);
  }
};

}  // namespace lacuna::kernels::cuda
