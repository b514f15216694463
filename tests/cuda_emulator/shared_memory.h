// Shared memory of the running block, for the scheduler: what device code may do is in block.h.
#pragma once

#include <cstddef>

namespace cuda_emulator {

// Fills it with NaN and forgets copies of the block before.
void ResetShared(size_t dynamic_bytes, int threads);
// At the end of a block: nothing was written behind the dynamic memory, no copy is under way.
void CheckShared();
int RunningThread();

}  // namespace cuda_emulator
