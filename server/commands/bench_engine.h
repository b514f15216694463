// The engine part of `lacuna bench offline --engine`: prompts of real (random) tokens through the
// same engine that serves, its thread, scheduler and event queues included. One call at a time.
#pragma once

#include <ostream>

#include "kernels/core/status.h"
#include "server/commands/bench_offline_command.h"

namespace lacuna::server {

// options.sequences requests of options.depth prompt tokens, options.generate tokens each, all
// submitted at once. Prints the time to the first tokens, the rate of decoding while all decode,
// and the share of that time in which the device was idle.
Status RunEngineBench(const BenchOfflineOptions& options, std::ostream& out);

}  // namespace lacuna::server
