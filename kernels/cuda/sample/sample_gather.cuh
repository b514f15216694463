// What a selection looks at: the tokens of a block's part of a row that are in its domain, brought
// to shared memory by one pass over the row. Chunks that find no room there are read again.
#pragma once

#include <cstdint>

#include "kernels/cuda/sample/sample_order.cuh"

namespace lacuna::kernels::cuda {

constexpr int kBins = kSampleThreads;
constexpr int kListMax = 256;

struct Candidate final {
  uint64_t key;
  uint64_t mass;
};

// Where the tokens of a chunk are gathered: their number below the place of the first.
constexpr uint32_t kCountBits = 10;
constexpr uint32_t kNotGathered = ~0u;
static_assert(kChunk < 1 << kCountBits);

// At the start of shared memory.
struct SelectScratch final {
  TeamScratch team;
  RowPart part;              // this block's, for selections
  Candidate list[kListMax];  // the team's
  Candidate mine[kListMax];  // this block's
  uint64_t copied;           // a barrier: a place that is one is never anything else
  uint64_t found;
  uint64_t pick_mass;               // of the drawn chunk
  uint64_t pick_rest;               // how far into it
  Gathered nobody[kSampleThreads];  // is never read
  int pick_chunk;
  bool likely_too_few;  // what the first block of a team has found
  int cursor;
  int visits;
  int gathered;      // tokens, those without room too
  uint32_t total;    // tokens of this block in the histogram
  uint32_t low;      // the picked bin, or the first of several
  uint32_t high;     // the last of several
  uint32_t before;   // what the bins before the picked ones hold
  uint32_t through;  // and with the picked ones
  uint32_t sums[kSampleWarps];
  uint32_t count[kBins];     // this block's histogram; masses in two halves
  uint32_t mass_low[kBins];  // of scaled values: what the blocks send to the bins' owner
  uint32_t mass_high[kBins];
  uint32_t team_count[kBins];  // the team's
  uint64_t team_mass[kBins];
};
__device__ inline SelectScratch& SharedSelect() {
  return *reinterpret_cast<SelectScratch*>(SharedMemory());
}

// Lists the chunks that have a value in the domain, in their order. Begins and ends with barriers
// of the block.
__device__ inline void ListVisits(const RowPart& part, const Domain& domain) {
  SelectScratch& s = SharedSelect();
  int count = 0;
  if (threadIdx.x == 0) s.gathered = 0;
#pragma unroll 1
  for (int base = part.begin; base < part.end; base += kSampleThreads) {
    const int chunk = base + static_cast<int>(threadIdx.x);
    const bool here = chunk < part.end && domain.Scaled(part.Greatest(chunk)) >= domain.floor;
    const uint32_t lanes = __ballot_sync(~0u, here);
    __syncthreads();  // sums and visits of before have been read
    if (LaneIndex() == 0) s.sums[WarpIndex()] = static_cast<uint32_t>(__popc(lanes));
    __syncthreads();
    const uint32_t of_warp = LaneIndex() < kSampleWarps ? s.sums[LaneIndex()] : 0u;
    const uint32_t before = __reduce_add_sync(~0u, LaneIndex() < WarpIndex() ? of_warp : 0u);
    const int place = count + static_cast<int>(before) +
                      __popc(lanes & ((1u << static_cast<uint32_t>(LaneIndex())) - 1u));
    if (here) part.Visit(place) = static_cast<uint16_t>(chunk);
    count += static_cast<int>(__reduce_add_sync(~0u, of_warp));
  }
  if (threadIdx.x == 0) s.visits = count;
  __syncthreads();
}

// Brings the tokens of the domain, and possibly some that are little below it, to shared memory. A
// warp finds there what it gathered itself; others after a barrier of the block.
__device__ __attribute__((noinline)) inline void Gather(const Domain wanted) {
  SelectScratch& s = SharedSelect();
  const Domain domain = wanted;
  const RowPart part = s.part;
  ListVisits(part, domain);
  const int count = s.visits;
  const float least = domain.LeastValue();
#pragma unroll 1
  for (int i = WarpIndex(); i < count; i += kSampleWarps) {
    LaneChunk x;
    LoadWhole(part.Chunk(part.Visit(i)), s.part.aligned, x);  // one loop for both kinds
    const int token = part.Visit(i) * kChunk;
    int mine = 0;
#pragma unroll
    for (int j = 0; j < kLaneValues; ++j) mine += x.values[j] >= least ? 1 : 0;
    const int through = WarpPrefix(mine);
    const int all = __shfl_sync(~0u, through, 31);
    const int first = __shfl_sync(~0u, LaneIndex() == 0 ? atomicAdd(&s.gathered, all) : 0, 0);
    const bool room = first + all <= part.gathered_max;
    if (LaneIndex() == 0) {
      const auto place = static_cast<uint32_t>(first << kCountBits | all);
      part.Place(i) = room ? place : kNotGathered;
    }
    if (!room) continue;
    Gathered* to = RowPart::At<Gathered>(part.gathered_at) + first + through - mine;
#pragma unroll
    for (int j = 0; j < kLaneValues; ++j) {  // without branches
      const bool here = x.values[j] >= least;
      *(here ? to : &s.nobody[threadIdx.x]) = {x.values[j], token + LaneChunk::Token(j)};
      to += here ? 1 : 0;
    }
  }
  __syncwarp();
}

// Calls f(value, token) for all tokens of the domain that the warp has found, and for some others;
// after those of a chunk end(chunk), by the whole warp.
template <typename F, typename G>
__device__ __forceinline__ void ForGathered(const RowPart& part, const F& f, const G& end) {
  const int visits = SharedSelect().visits;
#pragma unroll 1
  for (int visit = WarpIndex(); visit < visits; visit += kSampleWarps) {
    const int chunk = part.Visit(visit);
    const uint32_t place = part.Place(visit);
    const bool gathered = place != kNotGathered;
    const int count = gathered ? static_cast<int>(place & ((1u << kCountBits) - 1u)) : kChunk;
    const Gathered* list = RowPart::At<Gathered>(part.gathered_at);
    if (gathered) list += place >> kCountBits;
    const float* const values = part.Chunk(chunk);
    float4 four{};
#pragma unroll 1
    for (int i = LaneIndex(); i < count; i += 32) {
      Gathered token;
      if (gathered) {
        token = list[i];
      } else {
        const int at = LaneChunk::Token(i / 32);
        if (!SharedSelect().part.aligned) {
          four.x = values[at];
        } else if (at % 4 == 0) {
          four = *reinterpret_cast<const float4*>(values + at);
        } else {
          four = {four.y, four.z, four.w, 0.0f};
        }
        token = {four.x, chunk * kChunk + at};
      }
      f(token.value, token.token);
    }
    end(chunk);
  }
}

}  // namespace lacuna::kernels::cuda
