#include "kernels/cpu/isa.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace lacuna::kernels::cpu {
namespace {

constexpr std::array<std::string_view, 5> kNames = {"scalar", "avx2", "avx512", "avx512_bf16",
                                                    "amx"};

struct Leaf7 final {
  uint32_t edx = 0;         // sub-leaf 0
  uint32_t eax_second = 0;  // sub-leaf 1
};

Leaf7 ReadLeaf7() {
  Leaf7 leaf;
  uint32_t eax = 0;
  uint32_t ebx = 0;
  uint32_t ecx = 0;
  uint32_t edx = 0;
  if (__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return leaf;
  leaf.edx = edx;
  const uint32_t last_subleaf = eax;
  if (last_subleaf >= 1 && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0) {
    leaf.eax_second = eax;
  }
  return leaf;
}

// __builtin_cpu_supports of clang 14 does not know this one.
bool HasF16c() {
  uint32_t eax = 0;
  uint32_t ebx = 0;
  uint32_t ecx = 0;
  uint32_t edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

// Linux hands out the 8 KiB of tile state only to processes that asked for it.
bool RequestTiles() {
  constexpr int64_t kArchReqXcompPerm = 0x1023;
  constexpr int64_t kXfeatureTileData = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureTileData) == 0;
}

Isa Detect() {
  __builtin_cpu_init();  // its answers include what the operating system saves
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !HasF16c()) {
    return Isa::kScalar;
  }
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512dq")) {
    return Isa::kAvx2;
  }
  const Leaf7 leaf = ReadLeaf7();
  if ((leaf.eax_second >> 5 & 1u) == 0) return Isa::kAvx512;
  const bool amx_bf16 = (leaf.edx >> 22 & 1u) != 0;
  const bool amx_tile = (leaf.edx >> 24 & 1u) != 0;
  return amx_bf16 && amx_tile && RequestTiles() ? Isa::kAmx : Isa::kAvx512Bf16;
}

}  // namespace

Isa DetectIsa() {
  static const Isa isa = Detect();
  return isa;
}

Result<Isa> ParseIsa(std::string_view name) {
  if (name == "auto") return Isa::kAmx;
  for (size_t i = 0; i < kNames.size(); ++i) {
    if (kNames[i] == name) return static_cast<Isa>(i);
  }
  return InvalidArgument("instruction set: got \"" + std::string(name) +
                         "\", need auto, scalar, avx2, avx512, avx512_bf16 or amx");
}

std::string_view IsaName(Isa isa) { return kNames[static_cast<size_t>(isa)]; }

}  // namespace lacuna::kernels::cpu
