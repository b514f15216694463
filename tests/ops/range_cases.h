// The specs that SelectRanges is tested with: every kind, odd lengths, both page sizes. Pure.
#pragma once

#include <string>
#include <vector>

#include "tests/ops/range_world.h"

namespace lacuna::kernels {

struct NamedSpec final {
  std::string name;
  RangeSpec spec;
  float spread = 1.0f;  // of the queries
};

RangeSpec PooledSpec(PrefillPool pool, PrefillSelectKind select);
RangeSpec ProbedSpec(PrefillSelectKind select, ProbePlace place);
std::vector<NamedSpec> RangeCases();
// One of each kind of estimate, for what is slow.
std::vector<NamedSpec> FewRangeCases();

}  // namespace lacuna::kernels
