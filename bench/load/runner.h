// Runner: one phase of a load test, closed or open loop, over any number of Clients.
#pragma once

#include <boost/asio/io_context.hpp>
#include <functional>
#include <vector>

#include "bench/load/client.h"

namespace lacuna::bench {

struct PhaseResult final {
  std::vector<Sample> samples;  // of the requests that were sent
  double duration_s = 0;
};

struct Progress final {
  size_t sent = 0, ended = 0, failed = 0, planned = 0;
  double elapsed_s = 0;
};

// Sends `plan` on `io`, which it runs until the last answer. Open loops are measured from the time
// a request was due, so that a stalled server is not spared. `on_progress` (may be empty) is called
// about twice a second.
PhaseResult RunPhase(boost::asio::io_context& io, const ClientContext& context,
                     const std::vector<PlannedRequest>& plan, double duration_s,
                     const std::function<void(const Progress&)>& on_progress);

}  // namespace lacuna::bench
