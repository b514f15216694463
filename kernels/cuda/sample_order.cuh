// The order of a row's tokens, their masses, and a block's part of a row.
//
// Tokens are ordered by a 64-bit key: likelier first, then the lower id. A row is cut into chunks
// of 512 tokens, whatever the number of blocks; a warp takes a chunk at a time, its lanes always
// the same tokens of it, so that a chunk's f32 sums have one order. Sums of chunks are integers
// (2^-42 of the mass of the likeliest token). So results depend neither on blocks nor on the batch.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/cuda/sample_team.cuh"

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

// What a lane holds of a chunk.
struct LaneChunk final {
  float values[kLaneValues];
  // Calls f(i, value) in order, in a loop over four at a time: code that runs once is short, as its
  // instructions come from far.
  template <typename F>
  __device__ __forceinline__ void ForEach(const F& f) const {
    LaneChunk rest = *this;
#pragma unroll 1
    for (int i = 0; i < kLaneValues; i += 4) {
#pragma unroll
      for (int j = 0; j < 4; ++j) f(i + j, rest.values[j]);
#pragma unroll
      for (int j = 0; j + 4 < kLaneValues; ++j) rest.values[j] = rest.values[j + 4];
    }
  }
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
  __device__ uint64_t Key(float value, float scaled, int token) const {
    return KeyOf(raw ? value : scaled, token);
  }
};

// What a lane takes of a chunk in memory, of any kind.
__device__ inline void LoadAligned(const float* from, LaneChunk& to) {
#pragma unroll
  for (int i = 0; i < kLaneValues; i += 4) {
    const float4 four = *reinterpret_cast<const float4*>(from + LaneChunk::Token(i));
    to.values[i] = four.x;
    to.values[i + 1] = four.y;
    to.values[i + 2] = four.z;
    to.values[i + 3] = four.w;
  }
}
__device__ inline void LoadWhole(const float* from, bool aligned, LaneChunk& to) {
  if (aligned) return LoadAligned(from, to);
#pragma unroll
  for (int i = 0; i < kLaneValues; ++i) to.values[i] = from[LaneChunk::Token(i)];
}
__device__ inline void StoreWhole(const LaneChunk& from, float* to) {
#pragma unroll
  for (int i = 0; i < kLaneValues; i += 4) {
    *reinterpret_cast<float4*>(to + LaneChunk::Token(i)) = {from.values[i], from.values[i + 1],
                                                            from.values[i + 2], from.values[i + 3]};
  }
}

// This block's part of a row: the chunks [begin, end) of `all`. ..._at: places in shared memory;
// the greatest values are those of the whole row.
struct RowPart final {
  const float* row;   // in memory
  const float* tail;  // [kChunk]: the row's last chunk, when that is not whole; behind its end -inf
  int resident_at;    // f32 [resident][kChunk]: copies of the first ones
  int loaded_at;      // u64 [resident]: barriers, passed once the copy is there
  int greatest_at;    // f32 [all]
  int sum_at;         // f32 [all] of e^((value - greatest of the chunk) / temperature)
  int mass_at;        // u64 [all] in units: of what is kept, as far as it is known
  int visit_at;       // u16 [end - begin]: scratch of Visit
  int begin;
  int end;
  int resident;
  int vocab;
  bool aligned;  // `row` to 16 bytes

  __device__ float* Greatest() const { return At<float>(greatest_at); }
  __device__ float* Sum() const { return At<float>(sum_at); }
  __device__ uint64_t* Mass() const { return At<uint64_t>(mass_at); }
  __device__ int All() const { return (vocab + kChunk - 1) / kChunk; }
  __device__ float* Resident(int chunk) const {
    return At<float>(resident_at) + (chunk - begin) * kChunk;
  }
  __device__ uint32_t Loaded(int chunk) const {
    return SharedAddress(At<uint64_t>(loaded_at) + (chunk - begin));
  }
  __device__ bool IsResident(int chunk) const { return chunk - begin < resident; }
  // Its kChunk values, aligned where the row is.
  __device__ const float* Chunk(int chunk) const {
    if (IsResident(chunk)) {
      if constexpr (kHasClusters) BarrierWait(Loaded(chunk), 0);
      return Resident(chunk);
    }
    const bool cut = (chunk + 1) * kChunk > vocab;
    return cut ? tail : row + static_cast<int64_t>(chunk) * kChunk;
  }

  // Calls f(chunk, values) for those of the chunks that have a value in the domain, each by a warp;
  // from both ends, so that a chunk that comes from memory is fetched while a copy is at work.
  template <typename F>
  __device__ __forceinline__ void Visit(const Domain& domain, const F& f) const {
    uint16_t* const list = At<uint16_t>(visit_at);
    const int count = ListVisits(domain, list);
    ForPairs(
        count, [list](int i) { return static_cast<int>(list[i]); }, f);
  }
  // The same for all chunks of the part.
  template <typename F>
  __device__ __forceinline__ void VisitAll(const F& f) const {
    ForPairs(
        end - begin, [](int i) { return i; }, f);
  }

 private:
  template <typename T>
  __device__ static T* At(int place) {
    return reinterpret_cast<T*>(SharedMemory() + place);
  }
  template <typename G, typename F>
  __device__ __forceinline__ void ForPairs(int count, const G& chunk_of, const F& f) const {
#pragma unroll 1
    for (int i = WarpIndex(); 2 * i < count; i += kSampleWarps) {
      const int first = begin + chunk_of(i);
      const int second = begin + chunk_of(count - 1 - i);
      LaneChunk other;
      LaneChunk x;
      LoadWhole(Chunk(second), aligned, other);
      LoadWhole(Chunk(first), aligned, x);
#pragma unroll 1
      for (int chunk = first != second ? first : second;;) {
        if (chunk == second) x = other;
        f(chunk, x);
        if (chunk == second) break;
        chunk = second;
      }
    }
  }

  // To `list`, in their order, how many chunks there are with a value in the domain, and which.
  __device__ __forceinline__ int ListVisits(const Domain& domain, uint16_t* list) const {
    uint64_t(&warps)[kSampleWarps] = SharedTeam().warps;
    int count = 0;
#pragma unroll 1
    for (int base = begin; base < end; base += kSampleThreads) {
      const int chunk = base + static_cast<int>(threadIdx.x);
      const bool here = chunk < end && domain.Scaled(Greatest()[chunk]) >= domain.floor;
      const uint32_t lanes = __ballot_sync(~0u, here);
      __syncthreads();  // `warps` and `list` have been read
      if (LaneIndex() == 0) warps[WarpIndex()] = static_cast<uint64_t>(__popc(lanes));
      __syncthreads();
      const auto of_warp =
          LaneIndex() < kSampleWarps ? static_cast<uint32_t>(warps[LaneIndex()]) : 0u;
      const uint32_t before = __reduce_add_sync(~0u, LaneIndex() < WarpIndex() ? of_warp : 0u);
      const auto place = count + static_cast<int>(before) +
                         __popc(lanes & ((1u << static_cast<uint32_t>(LaneIndex())) - 1u));
      if (here) list[place] = static_cast<uint16_t>(chunk - begin);
      count += static_cast<int>(__reduce_add_sync(~0u, of_warp));
    }
    __syncthreads();
    return count;
  }
};

// Raises the domain's floor to what the `rank` first tokens are known to reach: the rank-th of the
// greatest values of chunks, found by comparing all pairs. False when there are too few.
__device__ inline bool BoundByRank(const RowPart& part, uint32_t rank, Domain& domain) {
  constexpr int kComparedMax = 1024;  // of some chunks it is a bound too
  const float* const greatest = part.Greatest();
  const int count = min(part.All(), kComparedMax);
  if (static_cast<uint32_t>(count) < rank) return false;
  uint64_t least = kLastKey;  // of those with fewer than `rank` above them
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kSampleThreads) {
    const float value = greatest[i];
    uint32_t above = 0;
    int j = 0;
#pragma unroll 4
    for (; j + 4 <= count; j += 4) {
      const float4 others = *reinterpret_cast<const float4*>(greatest + j);
      above += others.x > value ? 1 : 0;
      above += others.y > value ? 1 : 0;
      above += others.z > value ? 1 : 0;
      above += others.w > value ? 1 : 0;
    }
#pragma unroll 1
    for (; j < count; ++j) above += greatest[j] > value ? 1 : 0;
    if (above < rank) least = min(least, static_cast<uint64_t>(Ascending(value)));
  }
  const float bound = FromAscending(static_cast<uint32_t>(BlockMin(least)));
  __syncthreads();  // sums of the block are read
  if (bound == -INFINITY) return false;
  domain.floor = fmaxf(domain.floor, domain.Scaled(bound));
  return true;
}

}  // namespace lacuna::kernels::cuda
