// AppendMetadata on the CPU. One caller at a time; the work spreads over the pool.
// metadata_layout.h says where the numbers lie.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/core/status.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/ops/metadata.h"

namespace lacuna::kernels::cpu {

// Keeps its memory from call to call.
struct AppendMetadataScratch final {
  // Consecutive tokens of one call in one page.
  struct Run final {
    int32_t page, previous_page;  // previous_page: -1 for none, or not needed
    int32_t first, end;           // offsets in the page; keys below `end` are valid
  };
  std::vector<Run> runs;
};

// head_dim: a multiple of 16; else kInvalidArgument. The same bytes for every Isa.
Status AppendMetadataCpu(const AppendMetadataArgs& args, Isa isa, ThreadPool& pool,
                         AppendMetadataScratch& scratch);

}  // namespace lacuna::kernels::cpu
