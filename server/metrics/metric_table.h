// Every metric that /metrics shows: name, type, labels and meaning. Nothing is exported that is not
// in this table, and everything in it is there from the first scrape on (tests compare the two).
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace lacuna::server {

enum class MetricKind { kCounter, kGauge, kHistogram };

// Names as prometheus prints them (counters with _total). All "vllm:*" rows carry the labels
// model_name and engine besides those listed.
enum class MetricId {
  kRunning,
  kWaiting,
  kKvUsage,
  kCacheConfig,
  kPromptTokens,
  kGenerationTokens,
  kRequestSuccess,
  kPreemptions,
  kPrefixQueries,
  kPrefixHits,
  kTimeToFirstToken,
  kInterToken,
  kTimePerOutputToken,
  kEndToEnd,
  kQueueTime,
  kPrefillTime,
  kDecodeTime,
  kInferenceTime,
  kRequestPromptTokens,
  kRequestGenerationTokens,
  kKvPages,
  kWaitingTokens,
  kSteps,
  kGraphSteps,
  kEagerSteps,
  kEagerDecodeSteps,
  kSampleRereads,
  kPlanSeconds,
  kStepSeconds,
  kGapSeconds,
  kBatchMax,
  kSubmitted,
  kRejected,
  kEvictedPages,
  kSparseDecodeSteps,
  kSparsePagesConsidered,
  kSparsePagesSelected,
  kSparsePrefillBlocksConsidered,
  kSparsePrefillBlocksSelected,
  kSparseAuditedSteps,
  kSparseAudits,
  kSparseCapturedMass,
  kSparseOutputError,
  kSparseBudgetsWidened,
  kReady,
  kHttpRequests,
  kHttpConnections,
  kCount,
};

struct MetricRow final {
  MetricId id;
  MetricKind kind;
  std::string_view name;
  std::string_view labels;  // comma separated, beyond the common ones
  std::string_view meaning;
};

std::span<const MetricRow> MetricTable();  // in the order of MetricId
const MetricRow& Row(MetricId id);

}  // namespace lacuna::server
