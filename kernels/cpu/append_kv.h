// AppendKv on the CPU: writes keys and values into the slabs that attention.h lays out. One caller
// at a time; a kv head's slabs are written by one worker.
#pragma once

#include "kernels/core/status.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/ops/attention.h"

namespace lacuna::kernels::cpu {

// The same bytes for every Isa.
Status AppendKvCpu(const AppendKvArgs& args, Isa isa, ThreadPool& pool);

}  // namespace lacuna::kernels::cpu
