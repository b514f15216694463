// PathTables: what kernels read of plans by head, on the device: thresholds, and the prefill of
// each query head. One place for each path (path_fingerprint) that steps under way may name.
//
// All memory is allocated at creation. Served plans have their places from then on; requests bring
// others (a dial may change a table), which take the place of the one that was named longest ago.
// Engine thread only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "engine/model/head_order.h"
#include "kernels/core/status.h"
#include "kernels/device/device.h"
#include "kvcache/sparse/plan.h"

namespace lacuna::engine {

class PathTables final {
 public:
  struct Tables {
    const float* thresholds = nullptr;            // [layers, q_heads], or null
    const kernels::PrefillHead* heads = nullptr;  // [layers, q_heads], or null
  };
  // Steps that the device may not have done when a later one is launched.
  static constexpr int64_t kStepsUnderWay = 2;

  // For steps of at most `sequences_max` sequences. `order` may be null, and outlives the tables.
  Status Allocate(kernels::Device& device,
                  std::span<const std::shared_ptr<const kvcache::SparsePlan>> plans,
                  const HeadOrder* order, int64_t sequences_max);
  // Of the plan, for step number `step`; copied behind the steps before when its path is new.
  // kInternal: a table that no served plan has.
  Result<Tables> Of(const kvcache::SparsePlan& plan, int64_t step, kernels::Stream& stream);
  // Paths whose place was given away since the last call: graphs that read it are void.
  std::vector<uint64_t> TakeEvicted() { return std::exchange(evicted_, {}); }
  int64_t bytes() const { return memory_.bytes(); }

 private:
  struct Place {
    uint64_t path = 0;  // 0: free
    int64_t step = 0;   // that named it last
    bool served = false;
  };
  Status Write(const kvcache::SparsePlan& plan, size_t place, kernels::Stream& stream);
  Result<size_t> FreePlace(int64_t step);

  kernels::Device* device_ = nullptr;
  const HeadOrder* order_ = nullptr;
  int64_t threshold_bytes_ = 0, place_bytes_ = 0;  // 0: no served plan has any
  kernels::Buffer memory_, staging_;               // [places]
  std::vector<Place> places_;
  std::unordered_map<uint64_t, size_t> by_path_;
  std::vector<uint64_t> evicted_;
};

}  // namespace lacuna::engine
