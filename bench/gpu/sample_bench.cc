// Speed of Sample: vocabulary of 152064, from memory (sets rotate so that L2 does not serve them).
// Logits of a normal distribution, in which thousands of tokens share 0.9 of the mass; or, after
// the argument `peaked`, with some tokens in front, as a model's have.
//
// sample_bench [peaked]: per batch and kind of row the time of a launch within a graph of many
// (median, 10th to 90th percentile of replays) and the share of the time in which 4.2 TB/s read the
// logits.
#include <cstdio>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "bench/gpu/device_memory.h"
#include "kernels/cuda/ops.h"

namespace lacuna::bench {
namespace {

using kernels::SampleArgs;
using kernels::SampleResult;
using kernels::SampleRow;

constexpr int64_t kVocab = 152064;
constexpr int64_t kSets = 12;  // of 64 rows
constexpr double kCopyRate = 4.2e12;

struct Kind final {
  std::string name;
  SampleRow row;
};

std::vector<Kind> Kinds() {
  return {{"greedy", {}},
          {"temperature", {.temperature = 0.8f}},
          {"top_k 50", {.temperature = 0.8f, .top_k = 50}},
          {"top_p 0.9", {.temperature = 0.8f, .top_p = 0.9f}},
          {"top_p 0.95", {.temperature = 0.8f, .top_p = 0.95f}},
          {"top_p 0.99, temperature 1.5", {.temperature = 1.5f, .top_p = 0.99f}},
          {"min_p 0.05", {.temperature = 0.8f, .min_p = 0.05f}},
          {"top_k 50 top_p 0.9 min_p 0.01",
           {.temperature = 0.8f, .top_p = 0.9f, .min_p = 0.01f, .top_k = 50}},
          {"greedy, 5 logprobs", {.logprobs = 5}}};
}

void RunCase(const Kind& kind, int64_t batch, const DeviceVector<float>& logits,
             cudaStream_t stream) {
  const auto traits = TraitsOfDevice();
  std::vector<SampleRow> host(static_cast<size_t>(batch), kind.row);
  for (size_t i = 0; i < host.size(); ++i) host[i].seed = i;
  const DeviceVector<SampleRow> rows(host);
  const DeviceVector<SampleResult> results(host.size());
  const DeviceVector<int32_t> tokens(host.size());
  const DeviceVector<uint8_t> workspace(
      static_cast<size_t>(kernels::cuda::SampleWorkspaceBytes(batch, kVocab)));
  const int64_t sets = kSets * 64 / batch;
  const int launches = static_cast<int>(std::min<int64_t>(sets, 96));
  Check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  for (int i = 0; i < launches; ++i) {
    const SampleArgs args{
        .logits = {logits.data() + i * batch * kVocab, DType::kF32, {batch, kVocab}},
        .rows = rows.data(),
        .results = results.data(),
        .tokens = tokens.data()};
    Check(kernels::cuda::Sample(
        args, traits, {workspace.data(), static_cast<int64_t>(workspace.size())}, stream));
  }
  cudaGraph_t graph = nullptr;
  Check(cudaStreamEndCapture(stream, &graph), "capture");
  cudaGraphExec_t exec = nullptr;
  Check(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
  const Timing timing =
      TimeRuns([&](cudaStream_t s) { Check(cudaGraphLaunch(exec, s), "launch"); }, stream);
  const double us = timing.median_ms * 1e3 / launches;
  const double bytes = static_cast<double>(batch * kVocab * 4);
  std::printf("%3ld rows  %-30s %7.2f us (%.2f-%.2f)  %5.1f %% of 4.2 TB/s\n", batch,
              kind.name.c_str(), us, timing.low_ms * 1e3 / launches,
              timing.high_ms * 1e3 / launches, 100.0 * bytes / kCopyRate / (us / 1e6));
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
}

void RunAll(bool peaked) {
  std::vector<float> host(static_cast<size_t>(kSets * 64 * kVocab));
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0.0f, 2.5f);
  std::exponential_distribution<float> lead(0.3f);
  const size_t period = 4000037;
  for (size_t i = 0; i < host.size(); ++i) {
    if (i >= period) {
      host[i] = host[i - period];
    } else {
      host[i] = normal(random) + (peaked && random() % 4096 == 0 ? 6.0f + lead(random) : 0.0f);
    }
  }
  const DeviceVector<float> logits(host);
  cudaStream_t stream = nullptr;
  Check(cudaStreamCreate(&stream), "cudaStreamCreate");
  for (const int64_t batch : {1, 8, 16, 32, 64, 256}) {
    for (const Kind& kind : Kinds()) RunCase(kind, batch, logits, stream);
  }
}

}  // namespace
}  // namespace lacuna::bench

int main(int argc, char** argv) {
  lacuna::bench::RunAll(argc > 1 && std::string_view(argv[1]) == "peaked");
  return 0;
}
