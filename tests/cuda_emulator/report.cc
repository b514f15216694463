#include "tests/cuda_emulator/report.h"

#include <dlfcn.h>
#include <execinfo.h>

#include <cstdint>
#include <cstdio>

namespace cuda_emulator {
namespace {

// What addr2line prints of `address`, all inlined calls with `inlined`.
std::string Describe(const void* address, bool inlined) {
  Dl_info info{};
  if (dladdr(address, &info) == 0 || info.dli_fname == nullptr) return "?";
  char command[1024];
  std::snprintf(command, sizeof(command), "addr2line -Cfp%s -e '%s' 0x%zx 2>/dev/null",
                inlined ? "i" : "", info.dli_fname,
                reinterpret_cast<uintptr_t>(address) - reinterpret_cast<uintptr_t>(info.dli_fbase));
  std::FILE* pipe = popen(command, "r");
  if (pipe == nullptr) return "?";
  std::string text;
  char buffer[512];
  while (std::fgets(buffer, sizeof(buffer), pipe) != nullptr) text += buffer;
  pclose(pipe);
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text.empty() ? "?" : text;
}

}  // namespace

std::string FunctionAt(const void* address) {
  const std::string text = Describe(address, false);
  return text.substr(0, text.find(" at "));
}

void PrintCalls() {
  constexpr int kFramesMax = 24;
  void* frames[kFramesMax];
  const int count = backtrace(frames, kFramesMax);
  for (int i = 1; i < count; ++i) {
    const auto* call = static_cast<const char*>(frames[i]) - 1;  // within the call, not behind it
    const std::string text = Describe(call, true);
    if (text.find("cuda_emulator::") == std::string::npos) {
      std::fprintf(stderr, "    %s\n", text.c_str());
    }
  }
}

}  // namespace cuda_emulator
