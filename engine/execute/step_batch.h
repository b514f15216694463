// StepBatch and StepRunner: the seam between the engine loop and the device. SEAM.
//
// The engine loop fills a StepBatch from committed state; a StepRunner (the Executor, or a fake in
// the simulator) runs it to the end and gives back the logits that were asked for.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/core/ids.h"
#include "kernels/core/status.h"
#include "kernels/core/tensor_view.h"
#include "kvcache/pages/page_span.h"

namespace lacuna::engine {

struct StepSequence final {
  std::span<const TokenId> tokens;  // ids to run, at positions first_position, + 1, ...
  int32_t first_position = 0;
  bool decode = false;                       // one generated token (else a chunk of the prompt)
  std::span<const kvcache::PageSpan> pages;  // one per KvGroup, new tokens' pages included
  int32_t logits_from = -1;  // logits of tokens [logits_from, size) are wanted; -1: none
};

struct StepBatch final {
  std::vector<StepSequence> sequences;
};

class StepRunner {
 public:
  virtual ~StepRunner() = default;
  // Logits f32 [rows wanted, vocab] on the host, in the order of the sequences; the engine may
  // write to them; valid until the next Run. An error is the device's: every running sequence
  // fails.
  virtual Result<TensorView> Run(const StepBatch& batch) = 0;
};

}  // namespace lacuna::engine
