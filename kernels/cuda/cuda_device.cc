#include "kernels/cuda/cuda_device.h"

#include <cstring>

#include "kernels/cuda/launch.cuh"

namespace lacuna::kernels::cuda {
namespace {

constexpr int kMajorMin = 8;  // mma on bf16, asynchronous copies

class CudaGraph final : public Graph {
 public:
  CudaGraph(const CudaDevice& device, cudaGraphExec_t exec) : device_(device), exec_(exec) {}
  CudaGraph(const CudaGraph&) = delete;
  CudaGraph& operator=(const CudaGraph&) = delete;
  ~CudaGraph() override { cudaGraphExecDestroy(exec_); }

  Status Launch(Stream& stream) override {
    LACUNA_RETURN_IF_ERROR(device_.Enter());
    LACUNA_CUDA_RETURN_IF_ERROR(cudaGraphLaunch(exec_, device_.Native(stream)));
    return OkStatus();
  }

 private:
  const CudaDevice& device_;
  cudaGraphExec_t exec_;
};

class DeviceEvent final : public Event {
 public:
  DeviceEvent(const CudaDevice& device, CudaEvent event)
      : device_(device), event_(std::move(event)) {}

  Status Record(Stream& stream) override {
    LACUNA_RETURN_IF_ERROR(device_.Enter());
    LACUNA_CUDA_RETURN_IF_ERROR(cudaEventRecord(event_.get(), device_.Native(stream)));
    return OkStatus();
  }
  Status Wait() override {
    LACUNA_RETURN_IF_ERROR(device_.Enter());
    LACUNA_CUDA_RETURN_IF_ERROR(cudaEventSynchronize(event_.get()));
    return OkStatus();
  }

 private:
  const CudaDevice& device_;
  CudaEvent event_;
};

Status Unavailable(const std::string& what) {
  return {StatusCode::kUnavailable, "device cuda: " + what};
}

Status CheckDevice(int ordinal) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorInsufficientDriver) {
    int driver = 0;
    cudaDriverGetVersion(&driver);
    if (driver == 0) {
      return Unavailable(
          "no NVIDIA driver (libcuda.so.1); install it, or give the container the "
          "GPU");
    }
    return Unavailable("the NVIDIA driver (CUDA " + std::to_string(driver / 1000) +
                       ") is too old for this program (CUDA " +
                       std::to_string(CUDART_VERSION / 1000) + "); update it");
  }
  if (error == cudaErrorNoDevice || (error == cudaSuccess && count == 0)) {
    return Unavailable("the driver sees no GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES");
  }
  if (error != cudaSuccess) return Unavailable(cudaGetErrorString(error));
  if (ordinal < 0 || ordinal >= count) {
    return InvalidArgument("device_ordinal: got " + std::to_string(ordinal) + ", need 0 to " +
                           std::to_string(count - 1));
  }
  return OkStatus();
}

std::string MiB(int64_t bytes) { return std::to_string(bytes >> 20) + " MiB"; }

void FreeDevice(void* data) { cudaFree(data); }
void FreeHost(void* data) { cudaFreeHost(data); }

}  // namespace

Result<CudaStream> CudaStream::Make() {
  CudaStream made;
  LACUNA_CUDA_RETURN_IF_ERROR(cudaStreamCreateWithFlags(&made.stream_, cudaStreamNonBlocking));
  return made;
}

CudaStream::~CudaStream() {
  if (stream_ != nullptr) cudaStreamDestroy(stream_);
}

Result<CudaEvent> CudaEvent::Make() {
  CudaEvent made;
  LACUNA_CUDA_RETURN_IF_ERROR(cudaEventCreateWithFlags(&made.event_, cudaEventDisableTiming));
  return made;
}

CudaEvent::~CudaEvent() {
  if (event_ != nullptr) cudaEventDestroy(event_);
}

Result<std::unique_ptr<CudaDevice>> CudaDevice::Open(int ordinal) {
  LACUNA_RETURN_IF_ERROR(CheckDevice(ordinal));
  cudaDeviceProp properties{};
  LACUNA_CUDA_RETURN_IF_ERROR(cudaGetDeviceProperties(&properties, ordinal));
  if (properties.major < kMajorMin) {
    return Unavailable(std::string(properties.name) + " has compute capability " +
                       std::to_string(properties.major) + "." + std::to_string(properties.minor) +
                       ", need 8.0 or newer");
  }
  std::unique_ptr<CudaDevice> device(new CudaDevice());
  device->traits_ = {.ordinal = ordinal,
                     .major = properties.major,
                     .minor = properties.minor,
                     .sm_count = properties.multiProcessorCount,
                     .shared_bytes_max = static_cast<int64_t>(properties.sharedMemPerBlockOptin)};
  device->model_ = properties.name;
  LACUNA_RETURN_IF_ERROR(device->Enter());
  LACUNA_ASSIGN_OR_RETURN(device->stream_, CudaStream::Make());
  return device;
}

Status CudaDevice::Enter() const {
  thread_local int current = -1;
  if (current == traits_.ordinal) return OkStatus();
  LACUNA_CUDA_RETURN_IF_ERROR(cudaSetDevice(traits_.ordinal));
  current = traits_.ordinal;
  return OkStatus();
}

Result<Buffer> CudaDevice::Allocate(int64_t bytes) {
  if (bytes < 0) return InvalidArgument("memory: a negative size");
  if (bytes == 0) return Buffer();
  LACUNA_RETURN_IF_ERROR(Enter());
  void* data = nullptr;
  const cudaError_t error = cudaMalloc(&data, static_cast<size_t>(bytes));
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // not sticky, but the next launch check would report it
    return Exhausted("device memory: asked for " + MiB(bytes) + ", " + MiB(FreeBytes()) + " free");
  }
  LACUNA_CUDA_RETURN_IF_ERROR(error);
  Buffer buffer(data, bytes, FreeDevice);
  LACUNA_CUDA_RETURN_IF_ERROR(cudaMemsetAsync(data, 0, static_cast<size_t>(bytes), stream_.get()));
  LACUNA_CUDA_RETURN_IF_ERROR(cudaStreamSynchronize(stream_.get()));
  return buffer;
}

Result<Buffer> CudaDevice::AllocateHost(int64_t bytes) {
  if (bytes < 0) return InvalidArgument("memory: a negative size");
  if (bytes == 0) return Buffer();
  LACUNA_RETURN_IF_ERROR(Enter());
  void* data = nullptr;
  const cudaError_t error = cudaMallocHost(&data, static_cast<size_t>(bytes));
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    return Exhausted("pinned host memory: asked for " + MiB(bytes));
  }
  LACUNA_CUDA_RETURN_IF_ERROR(error);
  std::memset(data, 0, static_cast<size_t>(bytes));
  return Buffer(data, bytes, FreeHost);
}

Status CudaDevice::Copy(void* to, const void* from, int64_t bytes, Stream& stream) {
  if (bytes < 0) return InvalidArgument("copy: a negative size");
  if (bytes == 0) return OkStatus();
  LACUNA_RETURN_IF_ERROR(Enter());
  LACUNA_CUDA_RETURN_IF_ERROR(
      cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDefault, Native(stream)));
  return OkStatus();
}

Status CudaDevice::Synchronize(Stream& stream) {
  LACUNA_RETURN_IF_ERROR(Enter());
  LACUNA_CUDA_RETURN_IF_ERROR(cudaStreamSynchronize(Native(stream)));
  return OkStatus();
}

Result<std::unique_ptr<Event>> CudaDevice::MakeEvent() {
  LACUNA_RETURN_IF_ERROR(Enter());
  LACUNA_ASSIGN_OR_RETURN(CudaEvent event, CudaEvent::Make());
  return std::unique_ptr<Event>(std::make_unique<DeviceEvent>(*this, std::move(event)));
}

int64_t CudaDevice::FreeBytes() const {
  size_t free = 0;
  size_t total = 0;
  if (!Enter().ok() || cudaMemGetInfo(&free, &total) != cudaSuccess) return -1;
  return static_cast<int64_t>(free);
}

Status CudaDevice::BeginCapture(Stream& stream) {
  LACUNA_RETURN_IF_ERROR(Enter());
  LACUNA_CUDA_RETURN_IF_ERROR(
      cudaStreamBeginCapture(Native(stream), cudaStreamCaptureModeThreadLocal));
  return OkStatus();
}

Result<std::unique_ptr<Graph>> CudaDevice::EndCapture(Stream& stream) {
  LACUNA_RETURN_IF_ERROR(Enter());
  cudaGraph_t graph = nullptr;
  LACUNA_CUDA_RETURN_IF_ERROR(cudaStreamEndCapture(Native(stream), &graph));
  cudaGraphExec_t exec = nullptr;
  const cudaError_t error = cudaGraphInstantiate(&exec, graph, 0);
  cudaGraphDestroy(graph);
  LACUNA_CUDA_RETURN_IF_ERROR(error);
  auto made = std::make_unique<CudaGraph>(*this, exec);
  LACUNA_CUDA_RETURN_IF_ERROR(cudaGraphUpload(exec, Native(stream)));
  return std::unique_ptr<Graph>(std::move(made));
}

}  // namespace lacuna::kernels::cuda
