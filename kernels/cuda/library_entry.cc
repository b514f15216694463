// The one symbol that liblacuna_cuda.so exports.
#include <exception>
#include <string>

#include "kernels/cuda/cuda_backend.h"
#include "kernels/ops/backend_library.h"

using lacuna::kernels::BackendLibraryCall;

extern "C" __attribute__((visibility("default"))) int lacuna_make_cuda_backend(
    const BackendLibraryCall* call) {
  if (call->abi != lacuna::kernels::kBackendLibraryAbi ||
      call->options_bytes != static_cast<int64_t>(sizeof(lacuna::kernels::BackendOptions))) {
    return 2;
  }
  auto backend = lacuna::kernels::cuda::MakeCudaBackend(*call->options);
  if (!backend.ok()) {
    *call->status = backend.status();
    return 1;
  }
  *call->backend = std::move(backend).value();
  return 0;
}
