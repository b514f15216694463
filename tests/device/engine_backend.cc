#include "tests/device/engine_backend.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <string_view>

#include "kernels/make_backend.h"
#include "tests/cuda_emulator/emulated_backend.h"
#include "tests/device/split_backend.h"

namespace lacuna::kernels {

Result<std::unique_ptr<Backend>> MakeEngineBackend(const std::string& name,
                                                   const BackendOptions& options) {
  if (name == "split") return std::unique_ptr<Backend>(MakeSplitBackend(options));
  if (name == "emulated") return MakeEmulatedBackend(options);
  return MakeBackend(name == "cuda" ? DeviceKind::kCuda : DeviceKind::kCpu, options);
}

bool SkipsWithout(const std::string& name, bool sparse) {
  const auto backend = MakeEngineBackend(name, {.threads = 1});
  if (backend.ok() && (!sparse || (*backend)->has_sparse_ops())) return false;
  const std::string reason =
      backend.ok() ? name + " has no sparse attention" : backend.status().ToString();
  const char* require = std::getenv("LACUNA_REQUIRE_CUDA");
  const bool required = require != nullptr && std::string_view(require) == "1";
  [&] {
    if (required) FAIL() << reason;
    GTEST_SKIP() << reason;
  }();
  return true;
}

}  // namespace lacuna::kernels
