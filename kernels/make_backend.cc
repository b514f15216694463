#include "kernels/make_backend.h"

#include <dlfcn.h>

#include <filesystem>
#include <string>
#include <system_error>
#include <utility>

#include "kernels/cpu/cpu_backend.h"
#include "kernels/ops/backend_library.h"

namespace lacuna::kernels {
namespace {

Status Missing(const std::string& what) {
  return {StatusCode::kUnavailable, "device cuda: " + what};
}

// Beside the program first: that is the library of the same build.
Result<void*> OpenCudaLibrary() {
  std::error_code error;
  const auto program = std::filesystem::read_symlink("/proc/self/exe", error);
  const std::filesystem::path beside = program.parent_path() / kCudaLibraryFile;
  const bool is_beside = !error && std::filesystem::exists(beside, error);
  const std::string path = is_beside ? beside.string() : kCudaLibraryFile;
  // Never closed: its threads and device memory live until the process ends.
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library != nullptr) return library;
  const char* reason = dlerror();
  const std::string detail = reason != nullptr ? reason : "unknown error";
  if (!is_beside && detail.starts_with(kCudaLibraryFile)) {
    return Missing(std::string(kCudaLibraryFile) +
                   " is neither beside the program nor on the library path; build with nvcc, or "
                   "install it there");
  }
  return Missing("cannot load " + path + ": " + detail +
                 "; install the CUDA runtime libraries (cuBLAS) of its version");
}

Result<std::unique_ptr<Backend>> MakeCudaBackend(const BackendOptions& options) {
  LACUNA_ASSIGN_OR_RETURN(void* library, OpenCudaLibrary());
  const auto entry =
      reinterpret_cast<BackendLibraryEntry>(dlsym(library, kCudaLibraryEntry));  // NOLINT
  if (entry == nullptr) return Missing(std::string(kCudaLibraryFile) + " is not a backend");
  std::unique_ptr<Backend> backend;
  Status status;
  BackendLibraryCall call;
  call.options = &options;
  call.backend = &backend;
  call.status = &status;
  const int result = entry(&call);
  if (result == 2) {
    return Missing(std::string(kCudaLibraryFile) +
                   " is of another build than the program; install both from one build");
  }
  if (result != 0) return status;
  return backend;
}

}  // namespace

Result<std::unique_ptr<Backend>> MakeBackend(DeviceKind kind, const BackendOptions& options) {
  switch (kind) {
    case DeviceKind::kCpu:
      return cpu::MakeCpuBackend(options);
    case DeviceKind::kCuda:
      return MakeCudaBackend(options);
  }
  return InvalidArgument("device: unknown kind");
}

}  // namespace lacuna::kernels
