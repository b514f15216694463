#include "engine/execute/path_tables.h"

#include <algorithm>
#include <cstring>

namespace lacuna::engine {
namespace {

using kernels::PrefillHead;
using kvcache::SparsePlan;

template <typename T>
int64_t Bytes(const std::vector<T>& values) {
  return static_cast<int64_t>(values.size() * sizeof(T));
}

bool HasTables(const SparsePlan& plan) {
  return !plan.thresholds.empty() || !plan.prefill_heads.empty();
}

template <typename T>
void CopyArranged(const HeadOrder* order, const std::vector<T>& values, std::byte* to) {
  if (values.empty()) return;
  const std::vector<T> arranged =
      order == nullptr ? values : order->Arranged(std::span<const T>(values));
  std::memcpy(to, arranged.data(), arranged.size() * sizeof(T));
}

}  // namespace

Status PathTables::Allocate(kernels::Device& device,
                            std::span<const std::shared_ptr<const SparsePlan>> plans,
                            const HeadOrder* order, int64_t sequences_max) {
  device_ = &device;
  order_ = order;
  int64_t head_bytes = 0;
  for (const auto& plan : plans) {
    threshold_bytes_ = std::max(threshold_bytes_, Bytes(plan->thresholds));
    head_bytes = std::max(head_bytes, Bytes(plan->prefill_heads));
  }
  place_bytes_ = threshold_bytes_ + head_bytes;
  if (place_bytes_ == 0) return OkStatus();
  // A step's own paths, and those of the steps under way.
  places_.resize(plans.size() + static_cast<size_t>(kStepsUnderWay * sequences_max));
  const int64_t bytes = static_cast<int64_t>(places_.size()) * place_bytes_;
  LACUNA_ASSIGN_OR_RETURN(memory_, device.Allocate(bytes));
  LACUNA_ASSIGN_OR_RETURN(staging_, device.AllocateHost(bytes));
  kernels::Stream stream;
  for (const auto& plan : plans) {
    LACUNA_RETURN_IF_ERROR(Of(*plan, 0, stream).status());
  }
  for (Place& place : places_) place.served = place.path != 0;
  return device.Synchronize(stream);
}

Result<PathTables::Tables> PathTables::Of(const SparsePlan& plan, int64_t step,
                                          kernels::Stream& stream) {
  if (!HasTables(plan)) return Tables{};
  if (Bytes(plan.thresholds) > threshold_bytes_ ||
      Bytes(plan.prefill_heads) > place_bytes_ - threshold_bytes_) {
    return InternalError("a step holds plan " + plan.name + ", for whose tables is no memory");
  }
  size_t place = 0;
  if (const auto found = by_path_.find(plan.path_fingerprint); found != by_path_.end()) {
    place = found->second;
  } else {
    LACUNA_ASSIGN_OR_RETURN(place, FreePlace(step));
    LACUNA_RETURN_IF_ERROR(Write(plan, place, stream));
  }
  places_[place].step = step;
  const std::byte* data = memory_.data() + static_cast<int64_t>(place) * place_bytes_;
  Tables tables;
  if (!plan.thresholds.empty()) tables.thresholds = reinterpret_cast<const float*>(data);
  if (!plan.prefill_heads.empty()) {
    tables.heads = reinterpret_cast<const PrefillHead*>(data + threshold_bytes_);
  }
  return tables;
}

Status PathTables::Write(const SparsePlan& plan, size_t place, kernels::Stream& stream) {
  const int64_t at = static_cast<int64_t>(place) * place_bytes_;
  // Whoever was copied from here is done: see FreePlace.
  CopyArranged(order_, plan.thresholds, staging_.data() + at);
  CopyArranged(order_, plan.prefill_heads, staging_.data() + at + threshold_bytes_);
  LACUNA_RETURN_IF_ERROR(
      device_->Copy(memory_.data() + at, staging_.data() + at, place_bytes_, stream));
  places_[place].path = plan.path_fingerprint;
  by_path_.emplace(plan.path_fingerprint, place);
  return OkStatus();
}

// There is always one: steps under way and this one name fewer.
Result<size_t> PathTables::FreePlace(int64_t step) {
  size_t oldest = places_.size();
  for (size_t i = 0; i < places_.size(); ++i) {
    const Place& place = places_[i];
    if (place.path == 0) return i;
    if (place.served || place.step > step - kStepsUnderWay) continue;
    if (oldest == places_.size() || place.step < places_[oldest].step) oldest = i;
  }
  if (oldest == places_.size()) return InternalError("a step names more paths than sequences");
  evicted_.push_back(places_[oldest].path);
  by_path_.erase(places_[oldest].path);
  return oldest;
}

}  // namespace lacuna::engine
