#include "server/metrics/metrics.h"

#include <prometheus/counter.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>
#include <prometheus/text_serializer.h>

#include <algorithm>
#include <array>
#include <utility>
#include <vector>

#include "kernels/core/clock.h"

namespace lacuna::server {
namespace {

using Buckets = prometheus::Histogram::BucketBoundaries;

// vLLM's bounds, so that its dashboards fit.
const Buckets kFirstTokenSeconds = {0.001, 0.005, 0.01, 0.02,  0.04,  0.06,  0.08, 0.1,
                                    0.25,  0.5,   0.75, 1.0,   2.5,   5.0,   7.5,  10.0,
                                    20.0,  40.0,  80.0, 160.0, 640.0, 2560.0};
const Buckets kTokenSeconds = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1,
                               0.15,  0.2,    0.3,   0.4,  0.5,   0.75, 1.0,   2.5,
                               5.0,   7.5,    10.0,  20.0, 40.0,  80.0};
const Buckets kRequestSeconds = {0.01, 0.05, 0.1,   0.3,   0.5,   0.8,   1.0,    1.5,
                                 2.0,  2.5,  5.0,   10.0,  15.0,  20.0,  30.0,   40.0,
                                 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0};

Buckets TokenCounts() {
  Buckets bounds;
  for (int64_t decade = 1; decade <= 1'000'000; decade *= 10) {
    for (const int64_t step : {1, 2, 5}) bounds.push_back(static_cast<double>(step * decade));
  }
  return bounds;
}

std::string Name(MetricId id) { return std::string(Row(id).name); }
std::string Help(MetricId id) { return std::string(Row(id).meaning); }

}  // namespace

struct Metrics::Registry final {
  Registry(std::string name, std::function<EngineReading()> reader)
      : model_name(std::move(name)), read(std::move(reader)) {}

  prometheus::Histogram& Histogram(MetricId id, const Buckets& bounds) {
    return prometheus::BuildHistogram().Name(Name(id)).Help(Help(id)).Register(registry).Add(
        Common(), bounds);
  }
  prometheus::Counter& Ended(const char* reason) {
    prometheus::Labels labels = Common();
    labels["finished_reason"] = reason;
    return ended_family.Add(labels);
  }
  prometheus::Labels Common() const { return {{"model_name", model_name}, {"engine", "0"}}; }

  const std::string model_name;
  const std::function<EngineReading()> read;
  prometheus::Registry registry;
  prometheus::Family<prometheus::Counter>& ended_family = prometheus::BuildCounter()
                                                              .Name(Name(MetricId::kRequestSuccess))
                                                              .Help(Help(MetricId::kRequestSuccess))
                                                              .Register(registry);
  prometheus::Family<prometheus::Counter>& http_family = prometheus::BuildCounter()
                                                             .Name(Name(MetricId::kHttpRequests))
                                                             .Help(Help(MetricId::kHttpRequests))
                                                             .Register(registry);
  prometheus::Gauge& ready = prometheus::BuildGauge()
                                 .Name(Name(MetricId::kReady))
                                 .Help(Help(MetricId::kReady))
                                 .Register(registry)
                                 .Add({});
  prometheus::Gauge& connections = prometheus::BuildGauge()
                                       .Name(Name(MetricId::kHttpConnections))
                                       .Help(Help(MetricId::kHttpConnections))
                                       .Register(registry)
                                       .Add({});
  // In the order of EndReason.
  const std::array<prometheus::Counter*, 4> ended = {&Ended("stop"), &Ended("length"),
                                                     &Ended("abort"), &Ended("error")};
  prometheus::Histogram& first_token = Histogram(MetricId::kTimeToFirstToken, kFirstTokenSeconds);
  prometheus::Histogram& inter_token = Histogram(MetricId::kInterToken, kTokenSeconds);
  prometheus::Histogram& per_token = Histogram(MetricId::kTimePerOutputToken, kTokenSeconds);
  prometheus::Histogram& end_to_end = Histogram(MetricId::kEndToEnd, kRequestSeconds);
  prometheus::Histogram& queue = Histogram(MetricId::kQueueTime, kRequestSeconds);
  prometheus::Histogram& prefill = Histogram(MetricId::kPrefillTime, kRequestSeconds);
  prometheus::Histogram& decode = Histogram(MetricId::kDecodeTime, kRequestSeconds);
  prometheus::Histogram& inference = Histogram(MetricId::kInferenceTime, kRequestSeconds);
  prometheus::Histogram& prompt_tokens = Histogram(MetricId::kRequestPromptTokens, TokenCounts());
  prometheus::Histogram& generation_tokens =
      Histogram(MetricId::kRequestGenerationTokens, TokenCounts());
};

Metrics::Metrics(std::string model_name, std::function<EngineReading()> read)
    : registry_(std::make_unique<Registry>(std::move(model_name), std::move(read))) {
  for (const char* handler : {"/v1/completions", "/v1/chat/completions"}) {
    registry_->http_family.Add({{"handler", handler}, {"method", "POST"}, {"status", "200"}});
  }
}

Metrics::~Metrics() = default;

void Metrics::ObserveEnd(EndReason reason, const engine::Usage& usage,
                         const engine::Timing& timing) {
  Registry& r = *registry_;
  r.ended[static_cast<size_t>(reason)]->Increment();
  if (reason == EndReason::kAbort || reason == EndReason::kError) return;
  r.end_to_end.Observe(Seconds(timing.finished - timing.submitted));
  r.queue.Observe(Seconds(timing.admitted - timing.submitted));
  r.prefill.Observe(Seconds(timing.first_token - timing.admitted));
  r.decode.Observe(Seconds(timing.finished - timing.first_token));
  r.inference.Observe(Seconds(timing.finished - timing.admitted));
  r.prompt_tokens.Observe(static_cast<double>(usage.prompt_tokens));
  r.generation_tokens.Observe(static_cast<double>(usage.completion_tokens));
  if (usage.completion_tokens > 0) {
    r.first_token.Observe(Seconds(timing.first_token - timing.submitted));
  }
  if (usage.completion_tokens > 1) {
    r.per_token.Observe(Seconds(timing.finished - timing.first_token) /
                        static_cast<double>(usage.completion_tokens - 1));
  }
}

void Metrics::ObserveAbort() {
  registry_->ended[static_cast<size_t>(EndReason::kAbort)]->Increment();
}

void Metrics::ObserveInterToken(double seconds) { registry_->inter_token.Observe(seconds); }

void Metrics::ObserveHttp(std::string_view handler, std::string_view method, int status) {
  registry_->http_family
      .Add({{"handler", std::string(handler)},
            {"method", std::string(method)},
            {"status", std::to_string(status)}})
      .Increment();
}

void Metrics::AddConnections(int delta) { registry_->connections.Increment(delta); }

void Metrics::SetReady(bool ready) { registry_->ready.Set(ready ? 1.0 : 0.0); }

std::string Metrics::Scrape() const {
  std::vector<prometheus::MetricFamily> families = registry_->registry.Collect();
  std::ranges::move(CollectEngine(registry_->read(), registry_->model_name),
                    std::back_inserter(families));
  return prometheus::TextSerializer().Serialize(families);
}

}  // namespace lacuna::server
