#include "engine/execute/step_image.h"

#include "kernels/core/checked_math.h"

namespace lacuna::engine {
namespace {

constexpr int64_t kAlign = 16;

template <typename T>
T* At(std::byte* base, int64_t offset) {
  return reinterpret_cast<T*>(base + offset);
}

}  // namespace

int64_t StepImage::Take(int64_t count, size_t element_bytes) {
  const int64_t offset = bytes_;
  bytes_ += CeilDiv(count * static_cast<int64_t>(element_bytes), kAlign) * kAlign;
  return offset;
}

void StepImage::SetSizes(const StepSizes& sizes) {
  sizes_ = sizes;
  bytes_ = 0;
  groups_.resize(sizes.groups.size());
  ids_ = Take(sizes.rows, sizeof(int32_t));
  sources_ = Take(sizes.rows, sizeof(int32_t));
  positions_ = Take(sizes.rows, sizeof(int32_t));
  wanted_ = Take(sizes.wanted, sizeof(int32_t));
  sample_rows_ = Take(sizes.wanted, sizeof(kernels::SampleRow));
  for (Group& group : groups_) {
    group.slots = Take(sizes.rows, sizeof(int32_t));
    group.previous_pages = Take(sizes.previous_pages ? sizes.rows : 0, sizeof(int32_t));
    group.decode.offsets = Take(sizes.decode_rows + 1, sizeof(int64_t));
    group.prefill.offsets = Take(sizes.chunks + 1, sizeof(int64_t));
  }
  for (size_t g = 0; g < groups_.size(); ++g) {
    const StepSizes::Group& entries = sizes.groups[g];
    groups_[g].decode.pages = Take(entries.decode_entries, sizeof(int32_t));
    groups_[g].decode.logical = Take(entries.decode_entries, sizeof(int32_t));
    groups_[g].prefill.pages = Take(entries.prefill_entries, sizeof(int32_t));
    groups_[g].prefill.logical = Take(entries.prefill_entries, sizeof(int32_t));
  }
  sparse_ = Take(sizes.sparse_bytes, 1);
  edits_ = Take(sizes.edits, sizeof(kernels::LogitEdit));
}

kvcache::SelectionArrays StepImage::Locate(std::byte* base, const Lists& lists) {
  return {.pages = At<int32_t>(base, lists.pages),
          .logical = At<int32_t>(base, lists.logical),
          .offsets = At<int64_t>(base, lists.offsets)};
}

void StepImage::Locate(std::byte* base, Arrays& out) const {
  out.ids = At<int32_t>(base, ids_);
  out.sources = At<int32_t>(base, sources_);
  out.positions = At<int32_t>(base, positions_);
  out.wanted = At<int32_t>(base, wanted_);
  out.sample_rows = At<kernels::SampleRow>(base, sample_rows_);
  out.edits = At<kernels::LogitEdit>(base, edits_);
  out.sparse = base + sparse_;
  out.groups.resize(groups_.size());
  for (size_t g = 0; g < groups_.size(); ++g) {
    out.groups[g] = {.slots = At<int32_t>(base, groups_[g].slots),
                     .previous_pages = At<int32_t>(base, groups_[g].previous_pages),
                     .decode = Locate(base, groups_[g].decode),
                     .prefill = Locate(base, groups_[g].prefill)};
  }
}

}  // namespace lacuna::engine
