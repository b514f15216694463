// EngineStats: what the engine counts; written by the engine thread, read by any thread. SEAM.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <vector>

#include "engine/event.h"

namespace lacuna::engine {

// Fixed buckets, powers of two from 1 microsecond: bucket i counts values <= 2^i us.
class LatencyHistogram final {
 public:
  static constexpr int kBuckets = 32;
  void Observe(double seconds);
  static double UpperSeconds(int bucket);
  uint64_t count(int bucket) const {
    return counts_[static_cast<size_t>(bucket)].load(std::memory_order_relaxed);
  }
  double sum_seconds() const { return sum_seconds_.load(std::memory_order_relaxed); }

 private:
  std::array<std::atomic<uint64_t>, kBuckets> counts_{};
  std::atomic<double> sum_seconds_{0.0};
};

// Pages of one KvGroup; free + used + cached = total at every step border.
struct PageCounts final {
  int64_t total = 0, free = 0, used = 0, cached = 0;
};

// Of requests with a plan. What is computed again after a preemption counts again, but for audits.
struct SparseStats final {
  std::atomic<uint64_t> dense_steps{0}, sparse_steps{0};  // decode rows
  std::atomic<uint64_t> pages_considered{0}, pages_selected{0};
  std::atomic<uint64_t> prefill_blocks_considered{0}, prefill_blocks_selected{0};
  std::atomic<uint64_t> audited_steps{0}, budgets_widened{0};
  // Per layer group: audits of groups that have layers, and over them sums of shares of 1.
  static constexpr int kLayerGroups = SparseUsage::kLayerGroups;
  std::array<std::atomic<uint64_t>, kLayerGroups> group_audits{};
  std::array<std::atomic<double>, kLayerGroups> captured_mass{}, output_error{};
};

struct EngineStats final {
  std::atomic<int64_t> running{0}, waiting{0}, waiting_tokens{0};
  std::atomic<uint64_t> submitted{0}, finished_stop{0}, finished_length{0}, cancelled{0}, failed{0};
  std::atomic<uint64_t> rejected{0};  // refused at intake; no event was ever due
  std::atomic<uint64_t> preemptions{0}, steps{0};
  std::atomic<uint64_t> prompt_tokens{0}, generated_tokens{0};
  std::atomic<uint64_t> prefix_queried_tokens{0}, prefix_hit_tokens{0}, evicted_pages{0};
  std::atomic<int64_t> batch_sequences_max{0};  // largest step so far
  // Launched; `steps` counts those that ended. eager_decode: of the eager ones, see StepKind.
  std::atomic<uint64_t> graph_steps{0}, eager_steps{0}, eager_decode_steps{0};
  std::atomic<uint64_t> sample_rereads{0};  // see SampleResult
  // gap: per step, how long the device had nothing to do although there was work (by host clocks,
  // never too small by more than it takes to see that a step is done).
  LatencyHistogram plan_seconds, step_seconds, gap_seconds;
  SparseStats sparse;
};

}  // namespace lacuna::engine
