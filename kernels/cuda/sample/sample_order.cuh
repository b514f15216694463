// The order of a row's tokens, their masses, and a block's part of a row.
//
// Tokens are ordered by a 64-bit key: likelier first, then the lower id. A row is cut into chunks
// of 512 tokens, whatever the number of blocks; a warp takes a chunk at a time, its lanes always
// the same tokens of it, so that a chunk's f32 sums have one order. Sums of chunks are integers
// (2^-42 of the mass of the likeliest token). So results depend neither on blocks nor on the batch.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/sample/sample_team.cuh"
#include "kernels/cuda/vectors.cuh"

namespace lacuna::kernels::cuda {

constexpr int kChunk = 512;
constexpr int kLaneValues = kChunk / 32;
constexpr float kMassUnits = 4398046511104.0f;  // 2^42: vocabularies up to 2^21 do not overflow
constexpr float kLog2E = 1.44269504088896340736f;
constexpr float kLowest = -3.402823466e38f;
constexpr uint64_t kLastKey = ~uint64_t{0};

// Ascending with the value; -0 and 0 are equal. Never ~0.
__device__ inline uint32_t Ascending(float value) {
  const uint32_t bits = __float_as_uint(value + 0.0f);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
__device__ inline float FromAscending(uint32_t ascending) {
  return __uint_as_float((ascending & 0x80000000u) != 0 ? ascending & 0x7fffffffu : ~ascending);
}
// Ascending keys: likelier first, then the lower id.
__device__ inline uint64_t KeyOf(float value, int token) {
  return static_cast<uint64_t>(~Ascending(value)) << 32 | static_cast<uint32_t>(token);
}
__device__ inline float ValueOf(uint64_t key) {
  return FromAscending(~static_cast<uint32_t>(key >> 32));
}
__device__ inline int TokenOf(uint64_t key) { return static_cast<int>(static_cast<uint32_t>(key)); }

// e^value for value <= 0, and as an integer.
__device__ inline float MassOf(float value) { return Exp2(value * kLog2E); }
__device__ inline uint64_t MassUnits(float mass) {
  return static_cast<uint64_t>(mass * kMassUnits);
}

// The mass of a chunk of this greatest value and sum, `top` being the row's greatest value.
__device__ inline uint64_t MassOfChunk(float sum, float greatest, float top, float inverse) {
  return MassUnits(sum * expf(__fmul_rn(__fsub_rn(greatest, top), inverse)));
}
// The place at the same share of `total`, not 0, as `rest` is of `whole`.
__device__ inline uint64_t SameShare(uint64_t rest, uint64_t whole, uint64_t total) {
  const float ratio = __fdividef(static_cast<float>(total), static_cast<float>(whole));
  const double place = static_cast<double>(rest) * static_cast<double>(ratio);
  return min(static_cast<uint64_t>(place), total - 1);
}

// A token with its logit.
struct alignas(8) Gathered final {
  float value;
  int token;
};

// What a lane holds of a chunk.
struct LaneChunk final {
  float values[kLaneValues];
  // Of the i-th value, in the chunk.
  __device__ static int Token(int i) { return i / 4 * 128 + LaneIndex() * 4 + i % 4; }
};

// Which tokens take part in a selection, and on what scale.
struct Domain final {
  float origin;           // the greatest value
  float inverse = 1.0f;   // of the temperature
  float floor = kLowest;  // what is below, scaled, is out; -inf: nothing is
  bool raw = false;       // ordered by the values as they are, not as scaled

  __device__ float Scaled(float value) const {
    return __fmul_rn(__fsub_rn(value, origin), inverse);
  }
  // No value below this is in the domain; those a little above may not be.
  __device__ float LeastValue() const {
    constexpr float kRoundings = 1e-6f;
    const float distance = __fdividef(floor, inverse);
    return origin + distance - (fabsf(origin) + fabsf(distance)) * kRoundings;
  }
  __device__ uint64_t Key(float value, float scaled, int token) const {
    return KeyOf(raw ? value : scaled, token);
  }
};

// What a lane takes of a chunk in memory, of any kind.
__device__ inline void LoadAligned(const float* from, LaneChunk& to) {
#pragma unroll
  for (int i = 0; i < kLaneValues; i += 4) LoadFour(from + LaneChunk::Token(i), to.values + i);
}
// Any row; -inf from `count` on. A loop: instructions that run once or twice come from far.
__device__ inline void LoadUnaligned(const float* from, int count, LaneChunk& to) {
#pragma unroll 1
  for (int first = 0; first < kChunk; first += 128) {
#pragma unroll
    for (int i = 0; i + 4 < kLaneValues; ++i) to.values[i] = to.values[i + 4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int at = first + LaneChunk::Token(i);
      to.values[kLaneValues - 4 + i] = at < count ? from[at] : -INFINITY;
    }
  }
}
__device__ inline void LoadWhole(const float* from, bool aligned, LaneChunk& to) {
  if (aligned) {
    LoadAligned(from, to);
  } else {
    LoadUnaligned(from, kChunk, to);
  }
}
__device__ inline void StoreWhole(const LaneChunk& from, float* to) {
#pragma unroll
  for (int i = 0; i < kLaneValues; i += 4) {
    *reinterpret_cast<float4*>(to + LaneChunk::Token(i)) = {from.values[i], from.values[i + 1],
                                                            from.values[i + 2], from.values[i + 3]};
  }
}

// This block's part of a row: the chunks [begin, end) of `all`. ..._at: places in shared memory;
// the greatest values and sums are those of the whole row.
struct RowPart final {
  const float* row;   // in memory
  const float* tail;  // [kChunk]: the row's last chunk, when that is not whole; behind its end -inf
  int greatest_at;    // f32 [all]
  int mass_at;        // u64 [all] in units: of what is kept, as far as it is known; before that Sum
  int place_at;       // i32 [all]: Place
  int visit_at;       // u16 [all]: Visit
  int gathered_at;    // Gathered [gathered_max]
  int gathered_max;
  int begin;
  int end;
  int vocab;
  bool aligned;  // `row` to 16 bytes

  __device__ float& Greatest(int chunk) const { return At<float>(greatest_at)[chunk]; }
  __device__ uint64_t& Mass(int chunk) const { return At<uint64_t>(mass_at)[chunk]; }
  // Of e^((value - greatest of the chunk) / temperature); of greedy rows as in ChunkStats.
  __device__ float& Sum(int chunk) const { return reinterpret_cast<float&>(Mass(chunk)); }
  // The i-th chunk that a selection visits, and where its tokens are gathered.
  __device__ uint16_t& Visit(int i) const { return At<uint16_t>(visit_at)[i]; }
  __device__ uint32_t& Place(int i) const { return At<uint32_t>(place_at)[i]; }
  __device__ int All() const { return (vocab + kChunk - 1) / kChunk; }
  // Its kChunk values, aligned where the row is.
  __device__ const float* Chunk(int chunk) const {
    const bool cut = (chunk + 1) * kChunk > vocab;
    return cut ? tail : row + static_cast<int64_t>(chunk) * kChunk;
  }
  template <typename T>
  __device__ static T* At(int place) {
    return reinterpret_cast<T*>(SharedMemory() + place);
  }
};

// Raises the domain's floor to what the `rank` first tokens are known to reach: the rank-th of the
// greatest values of chunks, of which the leading bits are found one by one. False when there are
// too few.
__device__ inline bool BoundByRank(const RowPart& part, uint32_t rank, Domain& domain) {
  constexpr int kFirstBit = 31;
  constexpr int kLastBit = 11;
  const int count = min(part.All(), kSampleThreads);  // of some chunks it is a bound too
  if (static_cast<uint32_t>(count) < rank) return false;
  const auto i = static_cast<int>(threadIdx.x);
  const uint32_t mine = i < count ? Ascending(part.Greatest(i)) : 0u;
  uint32_t bound = 0;
#pragma unroll 1
  for (int bit = kFirstBit; bit >= kLastBit; --bit) {
    const uint32_t next = bound | 1u << static_cast<uint32_t>(bit);
    if (static_cast<uint32_t>(__syncthreads_count(mine >= next ? 1 : 0)) >= rank) bound = next;
  }
  if (bound <= Ascending(-INFINITY)) return false;
  domain.floor = fmaxf(domain.floor, domain.Scaled(FromAscending(bound)));
  return true;
}

}  // namespace lacuna::kernels::cuda
