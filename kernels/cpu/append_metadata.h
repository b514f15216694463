// AppendMetadata on the CPU. One caller at a time; the work spreads over the pool.
#pragma once

#include "kernels/core/status.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/ops/metadata.h"

namespace lacuna::kernels::cpu {

Status AppendMetadataCpu(const AppendMetadataArgs& args, Isa isa, ThreadPool& pool);

}  // namespace lacuna::kernels::cpu
