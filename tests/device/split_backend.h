// SplitBackend: the CPU's ops behind a device that has memory of its own, runs late and records.
//
// A stand-in for a GPU where there is none. Work runs when somebody waits, in order, not sooner: so
// whoever changes a staging buffer too early, or reads a result too early, is found out. Ops whose
// tensors do not lie in the device's memory fail. Work between BeginCapture and EndCapture is kept
// and runs at each Launch of the graph. One thread.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/ops/backend.h"

namespace lacuna::kernels {

struct SplitCounts final {
  int64_t copies_in = 0, copies_out = 0;  // to and from the device
  int64_t bytes_in = 0, bytes_out = 0;
  int64_t waits = 0;  // Synchronize and Event::Wait
  int64_t graphs = 0, graph_launches = 0;
  int64_t allocations = 0;
  int64_t ops = 0;  // that ran
};

class SplitBackend : public Backend {
 public:
  virtual const SplitCounts& counts() const = 0;
};

std::unique_ptr<SplitBackend> MakeSplitBackend(const BackendOptions& options);

}  // namespace lacuna::kernels
