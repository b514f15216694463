// EngineCollector: what the engine counts, as Prometheus families, read at each scrape. Any thread.
#pragma once

#include <prometheus/collectable.h>
#include <prometheus/metric_family.h>

#include <cstdint>
#include <string>
#include <vector>

#include "engine/stats.h"
#include "server/metrics/metric_table.h"

namespace lacuna::server {

// What a scrape reads from the engine.
struct EngineReading final {
  const engine::EngineStats* stats = nullptr;
  std::vector<engine::PageCounts> pages;  // one per KvGroup
  int64_t page_tokens = 0;
};

// `model_name` labels the vllm:* families.
std::vector<prometheus::MetricFamily> CollectEngine(const EngineReading& reading,
                                                    const std::string& model_name);

// One family with one sample: for gauges and counters that others hold.
prometheus::MetricFamily OneValue(MetricId id, double value,
                                  std::vector<prometheus::ClientMetric::Label> labels);

// The labels that every vllm:* family carries.
std::vector<prometheus::ClientMetric::Label> CommonLabels(const std::string& model_name);

}  // namespace lacuna::server
