#include "server/metrics/engine_collector.h"

#include <algorithm>
#include <iterator>
#include <utility>

namespace lacuna::server {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using Labels = std::vector<ClientMetric::Label>;

double Value(const std::atomic<int64_t>& counter) {
  return static_cast<double>(counter.load(std::memory_order_relaxed));
}
double Value(const std::atomic<uint64_t>& counter) {
  return static_cast<double>(counter.load(std::memory_order_relaxed));
}

MetricFamily Family(MetricId id) {
  const MetricRow& row = Row(id);
  MetricFamily family;
  family.name = row.name;
  family.help = row.meaning;
  switch (row.kind) {
    case MetricKind::kCounter:
      family.type = prometheus::MetricType::Counter;
      break;
    case MetricKind::kGauge:
      family.type = prometheus::MetricType::Gauge;
      break;
    case MetricKind::kHistogram:
      family.type = prometheus::MetricType::Histogram;
      break;
  }
  return family;
}

void AddSample(MetricFamily& family, double value, Labels labels) {
  ClientMetric sample;
  sample.label = std::move(labels);
  sample.gauge.value = value;
  sample.counter.value = value;
  family.metric.push_back(std::move(sample));
}

MetricFamily Latencies(MetricId id, const engine::LatencyHistogram& histogram) {
  MetricFamily family = Family(id);
  ClientMetric sample;
  uint64_t total = 0;
  // The engine counts each value in one bucket; Prometheus wants the sum up to each bound.
  for (int i = 0; i < engine::LatencyHistogram::kBuckets; ++i) {
    total += histogram.count(i);
    sample.histogram.bucket.push_back({total, engine::LatencyHistogram::UpperSeconds(i)});
  }
  sample.histogram.sample_count = total;
  sample.histogram.sample_sum = histogram.sum_seconds();
  family.metric.push_back(std::move(sample));
  return family;
}

MetricFamily Pages(const std::vector<engine::PageCounts>& pages) {
  MetricFamily family = Family(MetricId::kKvPages);
  for (size_t group = 0; group < pages.size(); ++group) {
    const engine::PageCounts& counts = pages[group];
    const std::pair<const char*, int64_t> states[] = {{"free", counts.free},
                                                      {"used", counts.used},
                                                      {"cached", counts.cached},
                                                      {"total", counts.total}};
    for (const auto& [state, count] : states) {
      AddSample(family, static_cast<double>(count),
                {{"group", std::to_string(group)}, {"state", state}});
    }
  }
  return family;
}

// What sparse attention read, and what its audits saw.
std::vector<MetricFamily> Sparse(const engine::SparseStats& stats) {
  std::vector<MetricFamily> out;
  const auto add = [&out](MetricId id, const std::atomic<uint64_t>& counter) {
    out.push_back(OneValue(id, Value(counter), {}));
  };
  MetricFamily steps = Family(MetricId::kSparseDecodeSteps);
  AddSample(steps, Value(stats.dense_steps), {{"kind", "dense"}});
  AddSample(steps, Value(stats.sparse_steps), {{"kind", "sparse"}});
  out.push_back(std::move(steps));
  add(MetricId::kSparsePagesConsidered, stats.pages_considered);
  add(MetricId::kSparsePagesSelected, stats.pages_selected);
  add(MetricId::kSparsePrefillBlocksConsidered, stats.prefill_blocks_considered);
  add(MetricId::kSparsePrefillBlocksSelected, stats.prefill_blocks_selected);
  add(MetricId::kSparseAuditedSteps, stats.audited_steps);
  add(MetricId::kSparseBudgetsWidened, stats.budgets_widened);
  MetricFamily audits = Family(MetricId::kSparseAudits);
  MetricFamily mass = Family(MetricId::kSparseCapturedMass);
  MetricFamily error = Family(MetricId::kSparseOutputError);
  constexpr const char* kGroups[engine::SparseStats::kLayerGroups] = {"first", "middle", "last"};
  for (size_t group = 0; group < std::size(kGroups); ++group) {
    const Labels labels = {{"layer_group", kGroups[group]}};
    AddSample(audits, Value(stats.group_audits[group]), labels);
    AddSample(mass, stats.captured_mass[group].load(std::memory_order_relaxed), labels);
    AddSample(error, stats.output_error[group].load(std::memory_order_relaxed), labels);
  }
  for (MetricFamily* family : {&audits, &mass, &error}) out.push_back(std::move(*family));
  return out;
}

double FullestPool(const std::vector<engine::PageCounts>& pages) {
  double usage = 0.0;
  for (const engine::PageCounts& counts : pages) {
    if (counts.total == 0) continue;
    usage = std::max(usage, static_cast<double>(counts.used) / static_cast<double>(counts.total));
  }
  return usage;
}

}  // namespace

Labels CommonLabels(const std::string& model_name) {
  return {{"model_name", model_name}, {"engine", "0"}};
}

MetricFamily OneValue(MetricId id, double value, Labels labels) {
  MetricFamily family = Family(id);
  AddSample(family, value, std::move(labels));
  return family;
}

std::vector<MetricFamily> CollectEngine(const EngineReading& reading,
                                        const std::string& model_name) {
  const engine::EngineStats& stats = *reading.stats;
  const Labels common = CommonLabels(model_name);
  Labels config = common;
  const int64_t first_pool = reading.pages.empty() ? 0 : reading.pages.front().total;
  config.push_back({"block_size", std::to_string(reading.page_tokens)});
  config.push_back({"num_gpu_blocks", std::to_string(first_pool)});

  std::vector<MetricFamily> out;
  const auto add = [&](MetricId id, double value, const Labels& labels) {
    out.push_back(OneValue(id, value, labels));
  };
  add(MetricId::kRunning, Value(stats.running), common);
  add(MetricId::kWaiting, Value(stats.waiting), common);
  add(MetricId::kKvUsage, FullestPool(reading.pages), common);
  add(MetricId::kCacheConfig, 1.0, config);
  add(MetricId::kPromptTokens, Value(stats.prompt_tokens), common);
  add(MetricId::kGenerationTokens, Value(stats.generated_tokens), common);
  add(MetricId::kPreemptions, Value(stats.preemptions), common);
  add(MetricId::kPrefixQueries, Value(stats.prefix_queried_tokens), common);
  add(MetricId::kPrefixHits, Value(stats.prefix_hit_tokens), common);
  add(MetricId::kWaitingTokens, Value(stats.waiting_tokens), {});
  add(MetricId::kSteps, Value(stats.steps), {});
  add(MetricId::kGraphSteps, Value(stats.graph_steps), {});
  add(MetricId::kEagerSteps, Value(stats.eager_steps), {});
  add(MetricId::kEagerDecodeSteps, Value(stats.eager_decode_steps), {});
  add(MetricId::kSampleRereads, Value(stats.sample_rereads), {});
  add(MetricId::kBatchMax, Value(stats.batch_sequences_max), {});
  add(MetricId::kSubmitted, Value(stats.submitted), {});
  add(MetricId::kRejected, Value(stats.rejected), {});
  add(MetricId::kEvictedPages, Value(stats.evicted_pages), {});
  out.push_back(Pages(reading.pages));
  std::ranges::move(Sparse(stats.sparse), std::back_inserter(out));
  out.push_back(Latencies(MetricId::kPlanSeconds, stats.plan_seconds));
  out.push_back(Latencies(MetricId::kStepSeconds, stats.step_seconds));
  out.push_back(Latencies(MetricId::kGapSeconds, stats.gap_seconds));
  return out;
}

}  // namespace lacuna::server
