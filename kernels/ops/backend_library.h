// What a backend in a shared library exports: one C function, found by name. Engine thread, once.
//
// Program and library pass C++ types of kernels/ops to each other, so they come from one build:
// `abi` and `options_bytes` are compared before anything else is touched.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/core/status.h"
#include "kernels/ops/backend.h"

namespace lacuna::kernels {

// Raised when a header of kernels/core, kernels/device or kernels/ops changes in a way that an
// older library would misread.
inline constexpr int32_t kBackendLibraryAbi = 5;

struct BackendLibraryCall final {
  int32_t abi = kBackendLibraryAbi;
  int64_t options_bytes = static_cast<int64_t>(sizeof(BackendOptions));
  const BackendOptions* options = nullptr;
  std::unique_ptr<Backend>* backend = nullptr;  // filled on success
  Status* status = nullptr;                     // filled on failure
};

// Returns 0 on success, 1 with `status`, or 2 when abi or options_bytes are not its own.
using BackendLibraryEntry = int (*)(const BackendLibraryCall*);
inline constexpr char kCudaLibraryFile[] = "liblacuna_cuda.so";
inline constexpr char kCudaLibraryEntry[] = "lacuna_make_cuda_backend";

}  // namespace lacuna::kernels
