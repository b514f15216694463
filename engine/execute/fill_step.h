// From a StepBatch to the arrays of a StepImage: where each token's row, slot and page list go.
//
// Rows stand as StepOrder says; sampled rows keep the order of the sequences. Pure functions over
// host memory; engine thread.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/execute/step_batch.h"
#include "engine/execute/step_image.h"
#include "engine/execute/step_order.h"
#include "kernels/core/status.h"
#include "kernels/ops/attention.h"

namespace lacuna::engine {

// What a batch is checked against and filled with.
struct StepContext final {
  int64_t vocab_size = 0;
  int64_t context_tokens_max = 0;
  size_t groups = 0;
  int64_t page_tokens = 0;
  int64_t rows_max = 0;
  int64_t sequences_max = 0;
  int64_t sampled_rows_max = 0;  // rows that the step before may have sampled; 0: none can be named
  bool previous_pages = false;   // somebody reads them
  // What plans must be made for; plans are refused when it has no layers.
  kvcache::AttentionShape shape = {};
};

// The chunks of a step, in host memory, as StepInputs wants them.
struct StepChunks final {
  std::vector<kernels::PrefillChunk> all, last;
};

int64_t SampledRowsOf(const StepBatch& batch);

// kInternal: a batch that the loop must not have made.
Status CheckBatch(const StepBatch& batch, const StepContext& context);

// Of a checked batch, with the decode rows of `order` and without what its classes need.
StepSizes SizesOf(const StepBatch& batch, const StepOrder& order, const StepContext& context);

// `sizes` are those of the batch, or larger for a step of decode rows alone. Rows that no sequence
// has stand without a slot, a page or a result that anybody reads. kInternal: a page is missing.
Status FillStep(const StepBatch& batch, const StepOrder& order, const StepContext& context,
                const StepSizes& sizes, const StepImage::Arrays& out, StepChunks& chunks);

}  // namespace lacuna::engine
