// Paged attention on the CPU: flash-style prefill and decode over lists of KV pages. One caller at
// a time (the engine thread); the work spreads over the pool's workers.
//
// KV slab layout. bf16: K as [head_dim / 2][page_tokens][2] (pairs of channels interleaved per key,
// the B operand of VDPBF16PS and TDPBF16PS), then V as [page_tokens / 2][head_dim][2]. f32: K as
// [head_dim][page_tokens], then V as [page_tokens][head_dim].
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>

#include "kernels/core/status.h"
#include "kernels/cpu/attention_tile.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/ops/attention.h"

namespace lacuna::kernels::cpu {

// Everything that the attentions write besides their outputs, for head_dim <= kHeadDimMax and any
// number of heads. Allocated once; the ops allocate nothing.
class AttentionScratch final {
 public:
  // Unnormalised result of one split of a decode row.
  struct Partial final {
    float* out;  // [heads, head_dim]
    float* max;  // [heads]
    float* sum;  // [heads]
  };

  explicit AttentionScratch(int threads);

  int partials() const { return partials_; }
  // Buffers of `worker`; the shape fields are the caller's to fill.
  AttentionTile Tile(int worker) const;
  Partial PartialAt(int index) const;

 private:
  struct Free final {
    void operator()(std::byte* memory) const { std::free(memory); }
  };
  std::unique_ptr<std::byte, Free> memory_;
  std::byte* partial_memory_ = nullptr;
  int partials_ = 0;
};

// head_dim: a multiple of 16 up to kHeadDimMax; page_tokens: 16, 32 or 64; else kInvalidArgument.
// With `deterministic` the bits of an output row depend only on its query, position, list and
// ranges, and decode gives the bits of prefill. lse leaves the sink logit and dropped_lse out. Keys
// that a list's masks leave out are never read where a whole group of 16 is left out.
Status AttendPrefillCpu(const AttendPrefillArgs& args, Isa isa, bool deterministic,
                        ThreadPool& pool, AttentionScratch& scratch);
Status AttendDecodeCpu(const AttendDecodeArgs& args, Isa isa, bool deterministic, ThreadPool& pool,
                       AttentionScratch& scratch);

}  // namespace lacuna::kernels::cpu
