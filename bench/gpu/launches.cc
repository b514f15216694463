// A library that CUDA loads into a program (CUDA_INJECTION64_PATH): it appends the mangled name of
// every kernel that the program launches, once, to the file that LACUNA_LAUNCHES names. For
// sanitize.sh.
//
// CUPTI is found at run time and what is used of it is declared here, as the toolkit that builds
// this may come without it. Source: CUPTI 13.0, cupti_callbacks.h.
#include <dlfcn.h>
#include <fcntl.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_set>

namespace {

constexpr int kDriverCalls = 1;  // CUPTI_CB_DOMAIN_DRIVER_API

// The beginning of CUpti_CallbackData.
struct Call final {
  int site = 0;  // 0: before the call
  const char* function = nullptr;
  const void* arguments = nullptr;
  void* result = nullptr;
  const char* kernel = nullptr;  // of launches
};
using OnCall = void (*)(void* user, int domain, uint32_t id, const Call* call);
using Subscribe = int (*)(void** subscriber, OnCall on_call, void* user);
using EnableDomain = int (*)(uint32_t enable, void* subscriber, int domain);

void NoteLaunch(void* /*user*/, int /*domain*/, uint32_t /*id*/, const Call* call) {
  static std::mutex mutex;
  static std::unordered_set<std::string> seen;
  static const char* const kPath = std::getenv("LACUNA_LAUNCHES");
  if (call->site != 0 || call->kernel == nullptr || kPath == nullptr ||
      !std::string_view(call->function).starts_with("cuLaunch")) {
    return;
  }
  const std::lock_guard lock(mutex);
  if (!seen.insert(call->kernel).second) return;
  const std::string line = std::string(call->kernel) + "\n";
  const int file = open(kPath, O_WRONLY | O_APPEND | O_CREAT, 0644);  // many processes append
  if (file < 0 || write(file, line.data(), line.size()) < 0) std::perror(kPath);
  close(file);
}

}  // namespace

extern "C" int InitializeInjection() {
  void* cupti = nullptr;
  for (const char* const name : {"libcupti.so.13", "libcupti.so.12", "libcupti.so"}) {
    if (cupti == nullptr) cupti = dlopen(name, RTLD_NOW);
  }
  void* subscriber = nullptr;
  if (cupti == nullptr) {
    std::fprintf(stderr, "launches: %s\n", dlerror());
    return 0;
  }
  const auto subscribe = reinterpret_cast<Subscribe>(dlsym(cupti, "cuptiSubscribe"));
  const auto enable = reinterpret_cast<EnableDomain>(dlsym(cupti, "cuptiEnableDomain"));
  return subscribe(&subscriber, NoteLaunch, nullptr) == 0 &&
         enable(1, subscriber, kDriverCalls) == 0;
}
