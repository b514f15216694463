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

}  // namespace lacuna::kernels::cuda
