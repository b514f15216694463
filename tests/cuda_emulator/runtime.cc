// The CUDA runtime of the emulator: device memory is host memory, streams do their work at once,
// graphs are lists of what was recorded.
#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <vector>

#include "tests/cuda_emulator/guarded_memory.h"
#include "tests/cuda_emulator/launch.h"

namespace cuda_emulator {
namespace {

// An A100 in small: one multiprocessor would hide what several do to a schedule.
constexpr int kMajor = 8;
constexpr int kMinor = 0;
constexpr int kMultiprocessors = 4;
constexpr size_t kSharedBytesDefault = 48 << 10;

// Of a block. LACUNA_EMULATED_SHARED_KIB=99 makes it that of a GeForce.
size_t SharedBytesOptIn() {
  static const size_t bytes = [] {
    const char* const kib = std::getenv("LACUNA_EMULATED_SHARED_KIB");
    const auto wanted = static_cast<size_t>(kib == nullptr ? 163 : std::atoi(kib)) << 10;
    if (wanted >= kSharedBytesDefault && wanted <= kSharedBytesMax) return wanted;
    std::fprintf(stderr, "LACUNA_EMULATED_SHARED_KIB: got %s, need 48 to 227\n", kib);
    std::abort();
  }();
  return bytes;
}

using Work = std::vector<std::function<void()>>;

struct Stream final {
  bool captures = false;
  Work recorded;
};
Stream& Of(cudaStream_t stream) {
  static Stream& unnamed = *new Stream();
  return stream == nullptr ? unnamed : *reinterpret_cast<Stream*>(stream);
}

std::map<const void*, size_t>& SharedLimits() {
  static auto& limits = *new std::map<const void*, size_t>();
  return limits;
}

// Memory that nobody has touched takes no room, so large workspaces are kept untouched: what is
// large is zero from the start, and the memset that follows an allocation is left out.
constexpr size_t kLargeBytes = 1 << 20;
constexpr size_t kDeviceBytes = size_t{64} << 30;
struct Memory final {
  size_t bytes = 0;
  bool untouched = false;
};
std::map<void*, Memory>& Memories() {
  static auto& memories = *new std::map<void*, Memory>();
  return memories;
}

cudaError_t Allocate(void** to, size_t bytes) {
  if (bytes > kDeviceBytes) return cudaErrorMemoryAllocation;
  *to = MapGuarded(bytes);
  if (*to == nullptr) return cudaErrorMemoryAllocation;
  if (bytes < kLargeBytes) std::memset(*to, 0xff, bytes);
  Memories()[*to] = {bytes, bytes >= kLargeBytes};
  return cudaSuccess;
}

void Free(void* memory) {
  const auto found = Memories().find(memory);
  if (found == Memories().end()) return;
  UnmapGuarded(memory, found->second.bytes);
  Memories().erase(found);
}

void Set(void* to, int value, size_t bytes) {
  const auto found = Memories().find(to);
  if (found != Memories().end() && found->second.untouched) {
    found->second.untouched = false;
    if (value == 0) return;
  }
  std::memset(to, value, bytes);
}

}  // namespace

cudaError_t CheckLaunch(const cudaLaunchConfig_t& config, const void* kernel) {
  const auto limit = SharedLimits().find(kernel);
  const size_t shared_max = limit == SharedLimits().end() ? kSharedBytesDefault : limit->second;
  const dim3& block = config.blockDim;
  const dim3& grid = config.gridDim;
  if (uint64_t{block.x} * block.y * block.z == 0 || uint64_t{grid.x} * grid.y * grid.z == 0 ||
      uint64_t{block.x} * block.y * block.z > kThreadsMax || grid.x > 0x7fffffff ||
      grid.y > 0xffff || grid.z > 0xffff || config.dynamicSmemBytes > shared_max) {
    return cudaErrorInvalidConfiguration;
  }
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config.attrs[i];
    const auto& cluster = attribute.val.clusterDim;
    if (attribute.id != cudaLaunchAttributeClusterDimension) continue;
    if (cluster.y != 1 || cluster.z != 1) return cudaErrorNotSupported;
    if (cluster.x == 0 || cluster.x > kClusterMax || grid.x % cluster.x != 0) {
      return cudaErrorInvalidConfiguration;
    }
  }
  return cudaSuccess;
}

unsigned ClusterOf(const cudaLaunchConfig_t& config) {
  for (unsigned i = 0; i < config.numAttrs; ++i) {
    const cudaLaunchAttribute& attribute = config.attrs[i];
    if (attribute.id == cudaLaunchAttributeClusterDimension) return attribute.val.clusterDim.x;
  }
  return 1;
}

void RunOrRecord(cudaStream_t stream, std::function<void()> work) {
  Stream& to = Of(stream);
  if (to.captures) {
    to.recorded.push_back(std::move(work));
  } else {
    work();
  }
}

namespace {

struct Graph final {
  Work work;
};

}  // namespace
}  // namespace cuda_emulator

using cuda_emulator::Graph;
using cuda_emulator::Of;

extern "C" {

// ---- device ----

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int) { return cudaSuccess; }
cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {};
  std::strcpy(properties->name, "emulated");
  properties->major = cuda_emulator::kMajor;
  properties->minor = cuda_emulator::kMinor;
  properties->multiProcessorCount = cuda_emulator::kMultiprocessors;
  properties->sharedMemPerBlockOptin = cuda_emulator::SharedBytesOptIn();
  return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = cuda_emulator::kMultiprocessors;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(cuda_emulator::SharedBytesOptIn());
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = cuda_emulator::kMajor;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = cuda_emulator::kMinor;
      return cudaSuccess;
    default:
      return cudaErrorNotSupported;
  }
}
cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
cudaError_t cudaGetLastError() { return cudaSuccess; }
const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorNotSupported:
      return "operation not supported by the emulator";
    default:
      return "error of the emulator";
  }
}

// ---- kernels ----

cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute != cudaFuncAttributeMaxDynamicSharedMemorySize) return cudaSuccess;
  if (value < 0 || static_cast<size_t>(value) > cuda_emulator::SharedBytesOptIn()) {
    return cudaErrorInvalidValue;
  }
  cuda_emulator::SharedLimits()[kernel] = static_cast<size_t>(value);
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void*, const cudaLaunchConfig_t*) {
  *clusters = cuda_emulator::kMultiprocessors;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, size_t) {
  *blocks = 2;
  return cudaSuccess;
}

// ---- memory ----

cudaError_t cudaMalloc(void** to, size_t bytes) { return cuda_emulator::Allocate(to, bytes); }
cudaError_t cudaMallocHost(void** to, size_t bytes) { return cuda_emulator::Allocate(to, bytes); }
cudaError_t cudaFree(void* memory) {
  cuda_emulator::Free(memory);
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* memory) { return cudaFree(memory); }
cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total_bytes) {
  *total_bytes = cuda_emulator::kDeviceBytes;
  *free_bytes = size_t{1} << 28;  // what a test may well take
  return cudaSuccess;
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemcpy2D(void* to, size_t to_pitch, const void* from, size_t from_pitch,
                         size_t width, size_t height, cudaMemcpyKind) {
  for (size_t row = 0; row < height; ++row) {
    std::memcpy(static_cast<std::byte*>(to) + row * to_pitch,
                static_cast<const std::byte*>(from) + row * from_pitch, width);
  }
  return cudaSuccess;
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind,
                            cudaStream_t stream) {
  cuda_emulator::RunOrRecord(stream, [=] { std::memcpy(to, from, bytes); });
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  cuda_emulator::RunOrRecord(stream, [=] { cuda_emulator::Set(to, value, bytes); });
  return cudaSuccess;
}

// ---- streams, events, graphs ----

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = reinterpret_cast<cudaStream_t>(new cuda_emulator::Stream());
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  delete &Of(stream);
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return Of(stream).captures ? cudaErrorStreamCaptureUnsupported : cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = nullptr;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaSuccess; }
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  Of(stream).captures = true;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  Of(stream).captures = false;
  *graph = reinterpret_cast<cudaGraph_t>(new Graph{std::move(Of(stream).recorded)});
  Of(stream).recorded.clear();
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  *exec = reinterpret_cast<cudaGraphExec_t>(new Graph(*reinterpret_cast<Graph*>(graph)));
  return cudaSuccess;
}
cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return cudaSuccess; }
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t) {
  for (const auto& work : reinterpret_cast<Graph*>(exec)->work) work();
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete reinterpret_cast<Graph*>(graph);
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete reinterpret_cast<Graph*>(exec);
  return cudaSuccess;
}

}  // extern "C"
