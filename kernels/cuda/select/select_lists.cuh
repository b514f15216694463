// Lists of pages with masks from choices, and what is reported of them: one thread block makes the
// list of one (row, kv head). Device code.
//
// A source of choices has `uint64_t Pages<kFirst>(first)`, called by full warps: the chosen tokens
// of page first + lane; kFirst is true at the first of two calls for the same pages.
#pragma once

#include <cstdint>

#include "kernels/cuda/select/select_choice_block.cuh"
#include "kernels/cuda/select/select_keys.h"

namespace lacuna::kernels::cuda {

inline constexpr int kMaskTokens = 64;  // of a word of masks

// Bits [first, end), limited to the word.
__device__ inline uint64_t MaskBits(int first, int end) {
  first = min(max(first, 0), kMaskTokens);
  end = min(max(end, 0), kMaskTokens);
  if (first >= end) return 0;
  const uint64_t below = end == kMaskTokens ? ~uint64_t{0} : (uint64_t{1} << end) - 1;
  return below & ~uint64_t{0} << first;
}

// The forced tokens of a row that does not read everything.
struct ForcedTokens final {
  int sink_end, local_begin;  // tokens
  int tokens;                 // of the row

  __device__ ForcedTokens(const SelectKeysCall& call, const RowPlan& plan, const SelectRow& what)
      : sink_end(what.counts.sink_units * call.path.unit_tokens),
        local_begin((what.counts.units - what.counts.local_units) * call.path.unit_tokens),
        tokens(plan.tokens) {}
  // Of the tokens from `first` on, as far as the row has them.
  __device__ uint64_t In(int first) const {
    const uint64_t forced = MaskBits(0, sink_end - first) | MaskBits(local_begin - first, 64);
    return forced & Visible(first);
  }
  __device__ uint64_t Visible(int first) const { return MaskBits(0, tokens - first); }
};

__device__ inline uint64_t* ChoiceOf(const SelectKeysCall& call, const SelectRow& what, int owner) {
  return call.choices.masks + (what.choice * call.choices.owners + owner) * call.choices.pages_max;
}

// Heads with a window choose nothing and have no say.
__device__ inline bool OwnerChooses(const SelectKeysCall& call, int row, int owner) {
  return call.path.owner == OwnerKind::kLayer ? !AllHaveWindows(call, row)
                                              : !HasWindow(call, row, owner);
}

// A choice that is kept in memory.
struct KeptChoice final {
  const uint64_t* masks;
  int pages;

  template <bool kFirst>
  __device__ uint64_t Pages(int first) const {
    const int page = first + LaneId();
    return page < pages ? masks[page] : 0;
  }
};
struct NoChoice final {
  template <bool kFirst>
  __device__ uint64_t Pages(int) const {
    return 0;
  }
};

// Entries [begin, end) of a row that one warp handles, in steps of 32.
struct WarpShare final {
  int begin, end;

  __device__ explicit WarpShare(int count) {
    const int threads = BlockThreads(), each = (count + threads - 1) / threads * 32;
    begin = min(WarpId() * each, count);
    end = min(begin + each, count);
  }
};

class ListMaker final {
 public:
  __device__ ListMaker(const SelectKeysCall& call, const RowPlan& plan, int row, int kv_head)
      : call_(call),
        plan_(plan),
        what_(call.rows[row]),
        row_(row),
        kv_head_(kv_head),
        list_(static_cast<int64_t>(row) * call.kv_heads + kv_head),
        forced_(call, plan, what_),
        full_(MaskBits(0, call.page_tokens)) {
    if (HasWindow(call, row, kv_head)) window_ = call.shapes[list_];
  }

  // Returns the number of pages and of keys, to all threads.
  struct Counts final {
    uint32_t pages = 0, keys = 0;
  };
  template <typename Choice>
  __device__ Counts Make(Choice& choice, ChooseBlock& block) const {
    if (Dense()) return CopyAll();
    const WarpShare share(plan_.pages);
    uint32_t keys = 0, found = 0;
#pragma unroll 1
    for (int first = share.begin; first < share.end; first += 32) {
      int logical = 0;
      const uint64_t mask = MaskOf<true>(choice, first, share.end, logical);
      found += static_cast<uint32_t>(__popc(__ballot_sync(kAllLanes, mask != 0)));
      keys += static_cast<uint32_t>(__popcll(mask & forced_.Visible(logical * call_.page_tokens)));
    }
    keys = __reduce_add_sync(kAllLanes, keys);
    const auto sums = block.PrefixOfWarps(static_cast<uint64_t>(keys) << 32 | found);
    int64_t at = static_cast<uint32_t>(sums.before);
#pragma unroll 1
    for (int first = share.begin; first < share.end; first += 32) {
      int logical = 0;
      const uint64_t mask = MaskOf<false>(choice, first, share.end, logical);
      const uint32_t taken = __ballot_sync(kAllLanes, mask != 0);
      const int64_t mine = at + __popc(taken & ((1u << LaneId()) - 1));
      if (mask != 0) Write(mine, first + LaneId(), logical, mask);
      at += __popc(taken);
    }
    const auto pages = static_cast<uint32_t>(sums.total);
    const int64_t listed = min(int64_t{pages}, call_.out.stride);
    WriteEnds(listed);
    __syncthreads();
    LookUp(listed);
    return {pages, static_cast<uint32_t>(sums.total >> 32)};
  }

  __device__ void WriteEnds(int64_t count) const {
    if (threadIdx.x != 0) return;
    call_.out.begins[list_] = list_ * call_.out.stride;
    call_.out.ends[list_] = list_ * call_.out.stride + count;
  }

  // What is reported of the list; `mass`: estimated, of a row that chose. By the first warp.
  __device__ void Report(const Counts& counts, float mass) const {
    if (call_.dropped_lse != nullptr) WriteDropped(counts);
    if (call_.stats == nullptr || !Selects() || threadIdx.x != 0) return;
    SelectStats& stats = call_.stats[list_];
    stats.pages_considered += plan_.pages;
    stats.pages_selected += counts.pages;
    stats.keys_selected += counts.keys;
    ++stats.layers;
    if (plan_.act != RowPlan::Act::kChoose) return;
    stats.estimated_mass += mass;
    ++stats.choices;
  }

 private:
  __device__ bool Selects() const {
    return plan_.act != RowPlan::Act::kDense && window_.window_tokens == 0;
  }
  __device__ bool Dense() const {
    return plan_.act == RowPlan::Act::kDense && window_.window_tokens == 0;
  }
  __device__ bool Whole() const {  // entry i is page i of the sequence
    return plan_.act == RowPlan::Act::kKeep || plan_.act == RowPlan::Act::kChoose;
  }

  // The tokens of the page of entry first + lane that the head reads, and its place. A page that is
  // read to its last visible token is listed whole, as dense attention lists it.
  template <bool kFirst, typename Choice>
  __device__ uint64_t MaskOf(Choice& choice, int first, int end, int& logical) const {
    const int entry = first + LaneId();
    const uint64_t chosen = choice.template Pages<kFirst>(first);
    if (entry >= end) return 0;
    logical = Whole() ? entry : call_.pages.logical[plan_.first_entry + entry];
    const int token = logical * call_.page_tokens;
    if (window_.window_tokens > 0) {
      const bool inside = token < window_.sink_tokens ||
                          token + call_.page_tokens > plan_.tokens - window_.window_tokens;
      return inside ? full_ : 0;
    }
    const uint64_t visible = full_ & forced_.Visible(token);
    const uint64_t mask = (chosen | forced_.In(token)) & visible;
    return mask == visible ? full_ : mask;
  }

  __device__ Counts CopyAll() const {
#pragma unroll 1
    for (int entry = static_cast<int>(threadIdx.x); entry < plan_.pages; entry += BlockThreads()) {
      Write(entry, call_.pages.pages[plan_.first_entry + entry],
            call_.pages.logical[plan_.first_entry + entry], full_);
    }
    WriteEnds(min(int64_t{plan_.pages}, call_.out.stride));
    return {};
  }
  __device__ void Write(int64_t at, int page, int logical, uint64_t mask) const {
    if (at >= call_.out.stride) return;
    const int64_t to = list_ * call_.out.stride + at;
    call_.out.pages[to] = page;
    call_.out.logical[to] = logical;
    call_.out.masks[to] = mask;
  }
  // Puts pages in the place of entries of the row's list: apart, so that no lookup waits for the
  // one before.
  __device__ void LookUp(int64_t listed) const {
    int32_t* pages = call_.out.pages + list_ * call_.out.stride;
#pragma unroll 4
    for (int64_t at = threadIdx.x; at < listed; at += BlockThreads()) {
      pages[at] = call_.pages.pages[plan_.first_entry + pages[at]];
    }
  }
  __device__ void WriteDropped(const Counts& counts) const {
    const int64_t dropped = Selects() ? int64_t{plan_.tokens} - counts.keys : 0;
    const bool corrects = call_.path.correct == DecodeCorrectKind::kDenominator && dropped > 0;
    if (WarpId() != 0) return;
#pragma unroll 1
    for (int i = LaneId(); i < call_.group; i += 32) {
      const int head = kv_head_ * call_.group + i;
      const float threshold = call_.path.head_thresholds ? call_.thresholds[head] : what_.threshold;
      call_.dropped_lse[row_ * call_.dropped_stride + head] =
          corrects ? threshold + logf(static_cast<float>(dropped)) : -INFINITY;
    }
  }

  const SelectKeysCall& call_;
  const RowPlan plan_;
  const SelectRow what_;
  int row_, kv_head_;
  int64_t list_;
  ForcedTokens forced_;
  uint64_t full_;
  StaticShape window_;
};

}  // namespace lacuna::kernels::cuda
