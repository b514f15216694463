// Stands before the toolkit's header of this name: the same types, and device code that a host
// compiler takes. Included first of all (-include), so that the toolkit's own headers are read as
// for host code and ours as for device code.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include_next <cuda_runtime.h>

#include "tests/cuda_emulator/intrinsics.h"
#include "tests/cuda_emulator/launch.h"
#include "tests/cuda_emulator/warp.h"

// One thread block runs at a time. Sections of their own, so that the emulator finds the variables;
// one for each, as a section cannot hold those of inline functions and of others.
#define LACUNA_EMULATED_TEXT_OF(x) #x
#define LACUNA_EMULATED_TEXT(x) LACUNA_EMULATED_TEXT_OF(x)
#undef __shared__
#define __shared__ \
  static __attribute__((section("lacuna_shared" LACUNA_EMULATED_TEXT(__COUNTER__))))
#define LACUNA_DYNAMIC_SHARED(alignment, type, name) \
  type* const name = reinterpret_cast<type*>(::cuda_emulator::DynamicShared())
#undef __launch_bounds__
#define __launch_bounds__(...)

#define warpSize 32

#define cudaLaunchKernelEx ::cuda_emulator::LaunchKernel

#define __CUDACC__
