// StepImage: everything that the kernels of one step read, packed into one block of memory, so that
// one copy brings it to the device.
//
// The layout is a function of the sizes alone. Steps with the same sizes have every array at the
// same place, which is what a recorded graph needs; what varies most in length stands last. Where
// the host's memory is the device's, the block is read in place. Engine thread only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/execute/step_batch.h"
#include "engine/model/model.h"
#include "kernels/core/status.h"
#include "kernels/core/tensor_view.h"
#include "kvcache/sparse/selection_builder.h"

namespace lacuna::engine {

struct StepSizes final {
  int64_t rows = 0;         // tokens; those of a graph include padding
  int64_t decode_rows = 0;  // of them, the first ones
  int64_t chunks = 0;
  int64_t wanted = 0;  // sampled rows
  int64_t edits = 0;
  bool previous_pages = false;
  int64_t sparse_bytes = 0;  // see SparseImage
  struct Group {
    int64_t decode_entries = 0, prefill_entries = 0;  // room in the page lists
  };
  std::vector<Group> groups;
};

class StepImage final {
 public:
  void SetSizes(const StepSizes& sizes);
  const StepSizes& sizes() const { return sizes_; }
  int64_t bytes() const { return bytes_; }

  // Where the arrays lie when the block begins at `base`, on the host or on the device.
  struct Arrays {
    int32_t* ids = nullptr;        // [rows]; must stand first: see Executor
    int32_t* sources = nullptr;    // [rows] rows of (tokens sampled before, ids): where an id is
    int32_t* positions = nullptr;  // [rows]
    int32_t* wanted = nullptr;     // [wanted] rows to sample
    kernels::SampleRow* sample_rows = nullptr;  // [wanted]
    std::byte* sparse = nullptr;                // [sparse_bytes]
    kernels::LogitEdit* edits = nullptr;        // [edits]
    struct Group {
      int32_t* slots = nullptr;           // [rows]
      int32_t* previous_pages = nullptr;  // [rows], if anybody reads them
      kvcache::SelectionArrays decode, prefill;
    };
    std::vector<Group> groups;
  };
  void Locate(std::byte* base, Arrays& out) const;

 private:
  int64_t Take(int64_t count, size_t element_bytes);  // gives the offset

  struct Lists {
    int64_t pages = 0, logical = 0, offsets = 0;
  };
  struct Group {
    int64_t slots = 0, previous_pages = 0;
    Lists decode, prefill;
  };
  static kvcache::SelectionArrays Locate(std::byte* base, const Lists& lists);

  StepSizes sizes_;
  int64_t bytes_ = 0;
  // Offsets of the arrays.
  int64_t ids_ = 0, sources_ = 0, positions_ = 0, wanted_ = 0, sample_rows_ = 0, edits_ = 0,
          sparse_ = 0;
  std::vector<Group> groups_;
};

}  // namespace lacuna::engine
