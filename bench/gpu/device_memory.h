// What the programs of bench/gpu share: device memory by value, checked calls, timing by events.
// Single-threaded; an error ends the program.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <utility>
#include <vector>

#include "kernels/core/status.h"
#include "kernels/cuda/ops.h"

namespace lacuna::bench {

inline void Check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}
inline void Check(const Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.ToString().c_str());
  std::exit(1);
}

template <typename T>
class DeviceVector final {
 public:
  explicit DeviceVector(size_t count) : count_(count) {
    if (count > 0) Check(cudaMalloc(&data_, count * sizeof(T)), "cudaMalloc");
  }
  explicit DeviceVector(const std::vector<T>& host) : DeviceVector(host.size()) { Upload(host); }
  ~DeviceVector() { cudaFree(data_); }
  DeviceVector(DeviceVector&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), count_(std::exchange(other.count_, 0)) {}
  DeviceVector& operator=(DeviceVector&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(count_, other.count_);
    return *this;
  }
  DeviceVector(const DeviceVector&) = delete;
  DeviceVector& operator=(const DeviceVector&) = delete;

  T* data() const { return data_; }
  size_t size() const { return count_; }
  void Upload(const std::vector<T>& host) const {
    Check(cudaMemcpy(data_, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice),
          "upload");
  }
  std::vector<T> Download() const {
    std::vector<T> host(count_);
    Check(cudaMemcpy(host.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost), "download");
    return host;
  }

 private:
  T* data_ = nullptr;
  size_t count_ = 0;
};

// Of a block, on devices of sm_86, sm_89 and sm_120.
inline constexpr int64_t kGeForceSharedBytes = 99 << 10;

inline kernels::cuda::DeviceTraits TraitsOfDevice() {
  cudaDeviceProp properties{};
  Check(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
  return {0, properties.major, properties.minor, properties.multiProcessorCount,
          static_cast<int64_t>(properties.sharedMemPerBlockOptin)};
}

struct Timing final {
  double median_ms = 0.0;
  double low_ms = 0.0;   // 10th percentile
  double high_ms = 0.0;  // 90th
};

// `run` enqueues work on `stream`; one event pair for each repetition, after a warm-up.
inline Timing TimeRuns(const std::function<void(cudaStream_t)>& run, cudaStream_t stream,
                       int repetitions = 25, int warm_up = 5) {
  for (int i = 0; i < warm_up; ++i) run(stream);
  std::vector<cudaEvent_t> events(static_cast<size_t>(2 * repetitions));
  for (cudaEvent_t& event : events) Check(cudaEventCreate(&event), "cudaEventCreate");
  for (size_t i = 0; i < events.size(); i += 2) {
    Check(cudaEventRecord(events[i], stream), "cudaEventRecord");
    run(stream);
    Check(cudaEventRecord(events[i + 1], stream), "cudaEventRecord");
  }
  Check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
  std::vector<double> times;
  for (size_t i = 0; i < events.size(); i += 2) {
    float ms = 0.0f;
    Check(cudaEventElapsedTime(&ms, events[i], events[i + 1]), "cudaEventElapsedTime");
    times.push_back(double{ms});
  }
  for (cudaEvent_t event : events) cudaEventDestroy(event);
  std::ranges::sort(times);
  return {times[times.size() / 2], times[times.size() / 10], times[times.size() * 9 / 10]};
}

// Time of one of `launches` calls run(stream, i) that a graph holds; medians over its replays.
inline Timing TimeInGraph(const std::function<void(cudaStream_t, int)>& run, int launches,
                          cudaStream_t stream, int repetitions = 21) {
  for (int i = 0; i < 2; ++i) run(stream, i);
  Check(cudaStreamSynchronize(stream), "warm-up");
  Check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  for (int i = 0; i < launches; ++i) run(stream, i);
  cudaGraph_t graph = nullptr;
  Check(cudaStreamEndCapture(stream, &graph), "capture");
  cudaGraphExec_t exec = nullptr;
  Check(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
  Timing timing = TimeRuns([&](cudaStream_t s) { Check(cudaGraphLaunch(exec, s), "launch"); },
                           stream, repetitions, 3);
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  timing.median_ms /= launches;
  timing.low_ms /= launches;
  timing.high_ms /= launches;
  return timing;
}

}  // namespace lacuna::bench
