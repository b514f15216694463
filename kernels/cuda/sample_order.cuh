// The order of a row's tokens, their masses, and walks over a block's part of the row.
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

// This block's part of a row. What lies behind the row's end is -inf. ..._at: places in shared
// memory.
struct RowPart final {
  const float* row;  // [vocab] in memory
  int resident_at;   // f32 [resident_chunks][kChunk]: the first ones
  int greatest_at;   // f32 [chunks]
  int sum_at;        // f32 [chunks] of e^((value - greatest of the chunk) / temperature)
  int mass_at;       // u64 [chunks] in units: of what is kept, as far as it is known
  int first;         // the first chunk's place in the row
  int chunks;
  int resident_chunks;
  int vocab;
  bool aligned;  // `row` to 16 bytes

  __device__ float* Greatest() const { return At<float>(greatest_at); }
  __device__ float* Sum() const { return At<float>(sum_at); }
  __device__ uint64_t* Mass() const { return At<uint64_t>(mass_at); }
  __device__ float* Resident(int chunk) const { return At<float>(resident_at) + chunk * kChunk; }

  __device__ int FirstToken(int chunk) const { return (first + chunk) * kChunk; }
  __device__ bool IsWhole(int chunk) const {
    return aligned && FirstToken(chunk) + kChunk <= vocab;
  }
  __device__ float Value(int chunk, int token) const {
    if (chunk < resident_chunks) return Resident(chunk)[token];
    const int at = FirstToken(chunk) + token;
    return at < vocab ? row[at] : -INFINITY;
  }
  // `from`: a whole chunk.
  __device__ static void LoadWhole(const float* from, LaneChunk& to) {
#pragma unroll
    for (int i = 0; i < kLaneValues; i += 4) {
      const float4 four = *reinterpret_cast<const float4*>(from + LaneChunk::Token(i));
      to.values[i] = four.x;
      to.values[i + 1] = four.y;
      to.values[i + 2] = four.z;
      to.values[i + 3] = four.w;
    }
  }
  __device__ void LoadMemory(int chunk, LaneChunk& to) const {
    const float* const from = row + FirstToken(chunk);
    if (IsWhole(chunk)) return LoadWhole(from, to);
    const int count = vocab - FirstToken(chunk);
#pragma unroll
    for (int i = 0; i < kLaneValues; ++i) {
      to.values[i] = LaneChunk::Token(i) < count ? from[LaneChunk::Token(i)] : -INFINITY;
    }
  }
  __device__ void Load(int chunk, LaneChunk& to) const {
    if (chunk < resident_chunks) return LoadWhole(Resident(chunk), to);
    LoadMemory(chunk, to);
  }
  __device__ static void Store(const LaneChunk& from, float* chunk) {
#pragma unroll
    for (int i = 0; i < kLaneValues; i += 4) {
      *reinterpret_cast<float4*>(chunk + LaneChunk::Token(i)) = {
          from.values[i], from.values[i + 1], from.values[i + 2], from.values[i + 3]};
    }
  }
  // Four values at a time, the i-th being the chunk's tokens from LaneChunk::Token(4 i) on.
  __device__ float4 LoadFour(int chunk, int token) const {
    if (chunk < resident_chunks) return *reinterpret_cast<const float4*>(Resident(chunk) + token);
    return {Value(chunk, token), Value(chunk, token + 1), Value(chunk, token + 2),
            Value(chunk, token + 3)};
  }

  // Calls f(chunk) for this warp's chunks, from the last one to the first.
  template <typename F>
  __device__ __forceinline__ void ForEachChunk(const F& f) const {
    for (int chunk = chunks - 1 - WarpIndex(); chunk >= 0; chunk -= kSampleWarps) f(chunk);
  }
  // Calls f(chunk, values) for those of this warp's chunks that have a value in the domain. Chunks
  // that are not in shared memory come first, each fetched while the one before is at work.
  template <typename F>
  __device__ __forceinline__ void Visit(const Domain& domain, const F& f) const {
    const auto skip = [&](int chunk) {
      while (chunk >= 0 && !(domain.Scaled(Greatest()[chunk]) >= domain.floor)) {
        chunk -= kSampleWarps;
      }
      return chunk;
    };
    LaneChunk next;
    bool ahead = false;
    for (int chunk = skip(chunks - 1 - WarpIndex()); chunk >= 0;) {
      LaneChunk now;
      if (ahead) {
        now = next;
      } else {
        Load(chunk, now);
      }
      const int after = skip(chunk - kSampleWarps);
      ahead = after >= resident_chunks && IsWhole(after);
      if (ahead) LoadWhole(row + FirstToken(after), next);
      f(chunk, now);
      chunk = after;
    }
  }

 private:
  template <typename T>
  __device__ static T* At(int place) {
    return reinterpret_cast<T*>(SharedMemory() + place);
  }
};

}  // namespace lacuna::kernels::cuda
