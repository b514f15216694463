// What a top_k or a min_p keeps when that is few tokens: one list in shared memory, ranked by
// comparing all pairs, by one block alone. Its state is in registers and shared memory: local
// memory of all threads would be read from far.
#pragma once

#include <cstdint>

#include "kernels/cuda/sample/sample_select.cuh"

namespace lacuna::kernels::cuda {

constexpr uint32_t kFewRank = 128;  // up to here the chunks' greatest values are likely to do

// The tokens of the domain to the list, the block's part being the whole row; after them `mine` has
// for each how many are before it and their mass. Returns their number, 0 when they are too many.
__device__ __forceinline__ int ListFew(const Domain& domain) {
  SelectScratch& s = SharedSelect();
  if (threadIdx.x == 0) s.cursor = 0;  // barriers follow
  Gather(domain);
  __syncthreads();
  const int gathered = s.gathered;
  const auto* const tokens = RowPart::At<Gathered>(s.part.gathered_at);
  if (gathered > s.part.gathered_max) {
    __syncthreads();  // whoever gathers next starts anew
    return 0;
  }
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < gathered; i += kSampleThreads) {
    const Gathered token = tokens[i];
    const float scaled = domain.Scaled(token.value);
    if (!(scaled >= domain.floor)) continue;
    const int at = atomicAdd(&s.cursor, 1);
    if (at < kListMax) {
      s.list[at] = {domain.Key(token.value, scaled, token.token), MassUnits(MassOf(scaled))};
    }
  }
  __syncthreads();
  const int count = s.cursor;
  __syncthreads();  // whoever lists next starts anew
  if (count > kListMax) return 0;
  Compare(count, [&](int i, uint32_t before, uint64_t mass) { s.mine[i] = {before, mass}; });
  __syncthreads();
  return count;
}

// The last listed token that is kept, and the mass up to it.
struct FewKept final {
  uint64_t last;
  uint64_t mass;
};

// Of the `count` listed tokens the first `rank` (0: all); f(mass) is the mass that is wanted of
// theirs.
template <typename F>
__device__ __forceinline__ FewKept CutFew(int count, uint32_t rank, const F& wanted_of) {
  SelectScratch& s = SharedSelect();
  const auto listed = static_cast<uint32_t>(count);
  const uint32_t kept = rank > 0 ? min(rank, listed) : listed;
  const auto i = static_cast<int>(threadIdx.x);
  const bool here = i < count;
  const auto before = static_cast<uint32_t>(here ? s.mine[i].key : kLastKey);
  const uint64_t mass_before = here ? s.mine[i].mass : 0;
  const uint64_t mass = here ? s.list[i].mass : 0;
  if (before + 1 == kept) s.pick_mass = mass_before + mass;
  __syncthreads();
  const uint64_t wanted = wanted_of(s.pick_mass);
  const bool begins = before == 0 || mass_before < wanted;
  const bool ends = before + 1 == kept || wanted <= mass_before + mass;
  if (before < kept && begins && ends) {
    s.found = s.list[i].key;
    s.pick_rest = mass_before + mass;
  }
  __syncthreads();
  return {s.found, s.pick_rest};
}

// The masses of the listed tokens up to `last`, to those of the chunks.
__device__ __forceinline__ void WeighFew(const RowPart& part, int count, uint64_t last) {
  const SelectScratch& s = SharedSelect();
  const auto i = static_cast<int>(threadIdx.x);
#pragma unroll 1
  for (int chunk = i; chunk < part.end; chunk += kSampleThreads) part.Mass(chunk) = 0;
  __syncthreads();
  if (i < count && s.list[i].key <= last) {
    atomicAdd(reinterpret_cast<unsigned long long*>(&part.Mass(TokenOf(s.list[i].key) / kChunk)),
              static_cast<unsigned long long>(s.list[i].mass));
  }
  __syncthreads();
}

}  // namespace lacuna::kernels::cuda
