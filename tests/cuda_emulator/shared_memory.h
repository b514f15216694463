// Shared memory of the running block, for the scheduler: what device code may do is in block.h.
#pragma once

#include <cstddef>

namespace cuda_emulator {

// That of the blocks of a cluster, by rank. Fills it with NaN and forgets copies of the block
// before.
void ResetShared(int rank, size_t dynamic_bytes, int threads);
// Goes on with that of this block.
void SelectShared(int rank);
// At the end of a block: nothing was written behind the dynamic memory, no copy is under way.
void CheckShared(int rank);
// Where the dynamic memory of that block begins.
std::byte* SharedOf(int rank);
int RunningThread();

}  // namespace cuda_emulator
