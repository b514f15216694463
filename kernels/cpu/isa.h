// Isa: which instruction set the CPU kernels may use, found once at start. Any thread.
//
// The order matters: a higher one includes the lower ones. Code of one Isa lives in translation
// units of its own, compiled with that Isa's flags and holding nothing that the linker could share
// with the rest, so that the program starts on any x86-64-v2.
#pragma once

#include <string_view>

#include "kernels/core/status.h"

namespace lacuna::kernels::cpu {

enum class Isa {
  kScalar,
  kAvx2,        // AVX2, FMA, F16C
  kAvx512,      // F, BW, VL, DQ
  kAvx512Bf16,  // VDPBF16PS
  kAmx,         // AMX_TILE, AMX_BF16
};

// What this processor and operating system offer. Asks the kernel for the tile registers the first
// time, so call it once before threads start.
Isa DetectIsa();

// "scalar" ... "amx"; "auto" is the highest. kInvalidArgument names the choices.
Result<Isa> ParseIsa(std::string_view name);
std::string_view IsaName(Isa isa);

}  // namespace lacuna::kernels::cpu
