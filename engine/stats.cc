#include "engine/stats.h"

#include <algorithm>
#include <cmath>

namespace lacuna::engine {

double LatencyHistogram::UpperSeconds(int bucket) { return std::ldexp(1e-6, bucket); }

void LatencyHistogram::Observe(double seconds) {
  int bucket = 0;
  while (bucket < kBuckets - 1 && seconds > UpperSeconds(bucket)) ++bucket;
  counts_[static_cast<size_t>(bucket)].fetch_add(1, std::memory_order_relaxed);
  sum_seconds_.fetch_add(seconds, std::memory_order_relaxed);
}

}  // namespace lacuna::engine
